"""Copies objects from one vault to another: to another region, another provider."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from blocks.ports import Vault
from policy.errors import DafnckError, Damaged


def copy(
    source: Vault, to: Vault, digests: Mapping[str, str], locked_until: float | None = None
) -> int:
    """`digests`: key -> SHA-256 in hex that it must have. Each is held against it on its way, and
    read back from `to`. -> bytes. Raises Damaged; what is damaged is not left in `to`."""
    copied = 0
    for key, wanted in digests.items():
        size, _ = to.write(key, _checked(source, key, wanted), locked_until)
        try:
            for _ in _checked(to, key, wanted):
                pass
        except Damaged:
            with suppress(DafnckError):  # locked, or away: the damage is what must be told
                to.delete(key)
            raise
        copied += size
    return copied


def _checked(vault: Vault, key: str, wanted: str) -> Iterator[bytes]:
    """Its content. Raises Damaged at its end, so that a vault that is written from it stores
    nothing."""
    digest = hashlib.sha256()
    for piece in vault.read(key):
        digest.update(piece)
        yield piece
    if (found := digest.hexdigest()) != wanted:
        raise Damaged(
            f"{vault}: {key} is not what was written: its SHA-256 is {found[:12]}…, written was "
            f"{wanted[:12]}…"
        )
