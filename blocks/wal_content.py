"""One file of PostgreSQL's write-ahead log: sealed, opened, and whether it is what its name says.

In memory and in this process: a segment has 16 MiB, and who does this does nothing else.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from policy.errors import BadInput, Damaged
from policy.wal_segments import is_segment, number_of

LEVEL = 3  # of zstd
MOST_BYTES = 2**30  # PostgreSQL has no larger segments

# Of the first page: magic, info, timeline, position, rest of a record; system, sizes
# (src/include/access/xlog_internal.h).
_PAGE = struct.Struct("=HHIQI4xQII")
_LONG_HEADER = 2


def not_as_named(name: str, content: bytes) -> str | None:
    """A segment tells in its first page where in the log it belongs: one that was swapped with
    another would end a recovery early, without a word."""
    if not is_segment(name) and not name.endswith(".partial"):
        return None
    if len(content) < _PAGE.size:
        return f"has {len(content)} bytes and is no segment of the write-ahead log"
    _, info, _, position, _, _, segment_bytes, _ = _PAGE.unpack_from(content)
    if not info & _LONG_HEADER or segment_bytes != len(content):
        return f"is no whole segment of the write-ahead log ({len(content)} bytes)"
    if position != number_of(name, segment_bytes) * segment_bytes:
        return f"holds another part of the log ({position >> 32:X}/{position & 0xFFFFFFFF:X})"
    return None


def sealed(content: bytes, recipients: Sequence[str]) -> bytes:
    import pyrage
    import zstandard

    if not recipients:
        raise BadInput("there is no age recipient; nothing was stored")
    try:
        keys = [pyrage.x25519.Recipient.from_str(one) for one in recipients]
    except pyrage.RecipientError:
        raise BadInput("one of the recipients is no age public key; nothing was stored") from None
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(content)
    return bytes(pyrage.encrypt(packed, keys))


def opened(sealed: bytes, identity_file: Path, key: str) -> bytes:
    import pyrage
    import zstandard

    try:
        packed = pyrage.decrypt(sealed, _identities(identity_file))
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= MOST_BYTES:
            raise Damaged(f"{key} does not hold a file of the log; it was not restored")
        return zstandard.ZstdDecompressor().decompress(packed)
    except pyrage.DecryptError as error:
        raise Damaged(
            f"{key} cannot be decrypted with {identity_file} ({error}): it was changed, cut, or "
            "stored for other keys; it was not restored"
        ) from None
    except zstandard.ZstdError as error:
        raise Damaged(f"{key} cannot be unpacked ({error}); it was not restored") from None


def _identities(file: Path) -> list[object]:
    import pyrage

    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        found: list[object] = [pyrage.x25519.Identity.from_str(key) for key in keys]
    except OSError as error:
        raise BadInput(f"the key {file} cannot be read ({error.strerror})") from None
    except (pyrage.IdentityError, UnicodeDecodeError):
        found = []  # what the file holds must not be told
    if not found:
        raise BadInput(f"{file} holds no age private key")
    return found
