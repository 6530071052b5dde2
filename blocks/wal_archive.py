"""The write-ahead log of a PostgreSQL server in a vault, zstd and then age, one object a file:

    <prefix>/wal/<timeline>/<file>.<SHA-256 of its content>.zst.age

Invariants: what is stored under a name is never replaced. A server that pushes has public keys
alone and cannot read what it stored: so the hash is in the name, and two servers that write the
same log differently (two primaries after a failover) leave both, and are told. `fetch` says "not
there" only where the log ends: PostgreSQL takes that for the end of a recovery.

PostgreSQL starts a process for each segment (`wal_command.py`): imports cost.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.wal_content import not_as_named, opened, sealed
from policy.errors import BadInput, Damaged, Refused
from policy.wal_segments import (
    SEGMENT_BYTES,
    WAL_FILE,
    Range,
    is_segment,
    number_of,
    timeline_of,
)
from policy.wal_segments import gaps as gaps_among

if TYPE_CHECKING:
    from blocks.ports import Vault

SUFFIX = ".zst.age"
FIRST_HISTORY = "00000001.history"  # is asked for, and never written


def push(
    vault: "Vault",
    prefix: str,
    path: Path,
    recipients: Sequence[str],
    *,
    name: str | None = None,
    locked_until: float | None = None,
) -> bool:
    """Store a file of the log. -> False: it was there already, with this content.
    `locked_until`: seconds since the epoch, before which nobody can delete it.

    Raises Refused when it is there with other content, or is not what its name says; BadInput,
    Unreachable, NotAllowed: nothing was stored, the server keeps its file and tries again."""
    name = name or path.name
    _known(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); nothing was stored") from None
    if wrong := not_as_named(name, content):
        raise Refused(f"{path} {wrong}; it was not stored")
    digest = hashlib.sha256(content).hexdigest()
    if there := stored(vault, prefix, name):
        if digest in there:
            return False
        raise Refused(
            f"{name} is in {prefix}/wal already, with other content: does another server archive "
            "to the same place, or was this one made anew? What is there stays. Give each server a "
            "place of its own"
        )
    vault.write(_key(prefix, name, digest), [sealed(content, recipients)], locked_until)
    return True


def fetch(vault: "Vault", prefix: str, name: str, to_path: Path, identity_file: Path) -> bool:
    """Have a file of the log at `to_path`, whole or not at all. -> False: the log in the archive
    ends before it.

    Raises Damaged: it is missing though later ones are there, or it is not what was stored, or not
    for this key; Refused: there are two of this name; BadInput, Unreachable, NotAllowed."""
    content = read(vault, prefix, name, identity_file)
    if content is None:
        return False
    _have(to_path, content)
    return True


def read(vault: "Vault", prefix: str, name: str, identity_file: Path) -> bytes | None:
    """What `fetch` fetches; None where it says False."""
    _known(name)
    there = stored(vault, prefix, name)
    if not there:
        _end_of_log(vault, prefix, name)
        return None
    if len(there) > 1:
        raise Refused(
            f"{name} is in {prefix}/wal with {len(there)} contents: two servers archived to the "
            "same place. Find out whose log it is, and delete the other object: "
            + ", ".join(sorted(there.values()))
        )
    [key] = there.values()
    return _content(b"".join(vault.read(key)), identity_file, key, name)


def _content(stored: bytes, identity_file: Path, key: str, name: str) -> bytes:
    """As PostgreSQL wrote it. Raises Damaged."""
    content = opened(stored, identity_file, key)
    if hashlib.sha256(content).hexdigest() != _named(key)[1]:
        raise Damaged(f"{key} holds something else than its name says; it was not restored")
    if wrong := not_as_named(name, content):
        raise Damaged(f"{key} {wrong}; it was not restored")
    return content


def archived(vault: "Vault", prefix: str) -> dict[str, list[str]]:
    """Name of each file of the log -> its keys; more than one where two servers wrote it."""
    found: dict[str, list[str]] = {}
    for key in sorted(vault.sizes(f"{prefix}/wal/")):
        name, digest = _named(key)
        if digest:
            found.setdefault(name, []).append(key)
    return found


def copy_log(
    source: "Vault",
    to: "Vault",
    prefix: str,
    identity_file: Path,
    locked_until: float | None = None,
) -> int:
    """Have in `to` what it has not yet. Each file is opened as it was written and as it is read
    back, and held against its name. -> how many. Raises Damaged when all others are copied."""
    here, there = source.sizes(f"{prefix}/wal/"), to.sizes(f"{prefix}/wal/")
    copied = 0
    damaged: list[Damaged] = []
    for name, keys in archived(source, prefix).items():
        for key in keys:
            if there.get(key) == here.get(key):
                continue
            try:
                _copied(source, to, key, name, identity_file, locked_until)
                copied += 1
            except Damaged as error:
                damaged.append(error)
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if damaged[1:] else ""
        raise Damaged(f"{damaged[0]}{more}; all else is in {to}")
    return copied


def _copied(
    source: "Vault",
    to: "Vault",
    key: str,
    name: str,
    identity_file: Path,
    locked_until: float | None,
) -> None:
    content = b"".join(source.read(key))
    _content(content, identity_file, key, name)
    to.write(key, [content], locked_until)
    if b"".join(to.read(key)) != content:
        with suppress(Refused):  # it is locked: the next time it is written again
            to.delete(key)
        raise Damaged(f"{to}: {key} is not what was written there")


def gaps(vault: "Vault", prefix: str, segment_bytes: int = SEGMENT_BYTES) -> list[Range]:
    """Which segments are missing among those that are there."""
    return gaps_among(archived(vault, prefix), segment_bytes)


def no_longer_needed(
    vault: "Vault", prefix: str, oldest: str, segment_bytes: int = SEGMENT_BYTES
) -> list[str]:
    """Keys of what comes before `oldest`, the first segment that the oldest backup needs, in any
    timeline. The ways of the timelines stay. What two backups of one server both hold is one."""
    first = number_of(oldest, segment_bytes)
    return [
        key
        for name, keys in archived(vault, prefix).items()
        if not name.endswith(".history") and number_of(name, segment_bytes) < first
        for key in keys
    ]


def _end_of_log(vault: "Vault", prefix: str, name: str) -> None:
    """Raises Damaged when the archive goes on after this file, which it has not."""
    timeline = timeline_of(name)
    if name == FIRST_HISTORY or not (is_segment(name) or name.endswith(".history")):
        return
    later = sorted(
        other
        for key in vault.sizes(f"{prefix}/wal/{timeline:08X}/")
        if is_segment(other := _named(key)[0]) and (not is_segment(name) or other > name)
    )
    if later:
        raise Damaged(
            f"{name} is missing in {prefix}/wal, and {later[0]} is there: a recovery cannot go on "
            "from here, and must not end here as if nothing came after. Look for it in the store "
            "(a copy, a delete marker) and in pg_wal of the server; or name an earlier target"
        )


def stored(vault: "Vault", prefix: str, name: str) -> dict[str, str]:
    """SHA-256 of the content -> key."""
    found = {}
    for key in vault.sizes(_key(prefix, name, "").removesuffix(SUFFIX)):
        known, digest = _named(key)
        if digest and known == name:
            found[digest] = key
    return found


def _key(prefix: str, name: str, digest: str) -> str:
    return f"{prefix}/wal/{timeline_of(name):08X}/{name}.{digest}{SUFFIX}"


def _named(key: str) -> tuple[str, str]:
    """(name of the file, SHA-256 of its content), both empty for what is not ours."""
    name, _, digest = key.rpartition("/")[2].removesuffix(SUFFIX).rpartition(".")
    ours = key.endswith(SUFFIX) and WAL_FILE.fullmatch(name) and len(digest) == 64
    return (name, digest) if ours else ("", "")


def _known(name: str) -> None:
    if WAL_FILE.fullmatch(name) is None:
        raise BadInput(f"{name!r} is no name of a file of the write-ahead log")


def _have(path: Path, content: bytes) -> None:
    from blocks.files import remove_half_written, scratch

    try:
        remove_half_written(path.parent)
        with scratch(path.parent, "wal") as here:
            half = here / path.name
            with half.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror})") from None
