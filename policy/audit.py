"""Who did what and when, as a chain: each entry holds the hash of the one before it, so that none
can be changed or taken out without changing all that come after. Pure.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

FIRST = "0" * 64  # what the first entry holds as the hash before it


@dataclass(frozen=True)
class Entry:
    """`at`: seconds since the epoch. `actor`: a person, or dafnck. `subject`: "shop in prod",
    "secret shop/url". `hash`: of all the rest, as 64 hex digits."""

    number: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    before: str
    hash: str


def hash_of(entry: Entry) -> str:
    """SHA-256 over the entry without its hash, as JSON with sorted keys and no spaces (the form of
    RFC 8785 for what is in it: texts, whole numbers, null, and `at` in microseconds)."""
    content = asdict(entry)
    del content["hash"]
    content["at"] = round(entry.at * 1e6)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(
    number: int,
    at: float,
    actor: str,
    action: str,
    subject: str,
    detail: dict[str, Any],
    before: str,
) -> Entry:
    entry = Entry(number, at, actor, action, subject, detail, before, "")
    return Entry(**asdict(entry) | {"hash": hash_of(entry)})


def first_break(entries: Iterable[Entry], *, head: tuple[int, str]) -> str:
    """Why the chain is not whole, in words; empty when it is. `entries`: all, oldest first.
    `head`: number and hash of the newest, as they were kept apart from it."""
    number, before = 0, FIRST
    for entry in entries:
        if entry.number != number + 1:
            return f"after entry {number} comes {entry.number}: what was between is gone"
        if entry.before != before:
            return (
                f"entry {entry.number} does not go on from entry {number}: one was put in, or out"
            )
        if hash_of(entry) != entry.hash:
            return f"entry {entry.number} was changed: its hash is another one"
        number, before = entry.number, entry.hash
    if (number, before) != head:
        return f"it ends at entry {number}, and {head[0]} were written: the last ones are gone"
    return ""
