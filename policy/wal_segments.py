"""Names of the files of PostgreSQL's write-ahead log, and what is missing among them.

A segment's name is its timeline, then its number: 8 hex digits each of timeline, of the number's
upper part and of its lower part, where one upper part spans 4 GiB of log
(PostgreSQL, src/include/access/xlog_internal.h).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

SEGMENT_BYTES = 16 * 2**20  # unless initdb was told otherwise
FIRST_SEGMENT = 1  # number 0 is never written

# A segment; the half one that a promotion leaves; what a base backup writes of itself; the way of
# a timeline.
WAL_FILE = re.compile(
    r"(?P<timeline>[0-9A-F]{8})"
    r"(?:(?P<upper>[0-9A-F]{8})(?P<lower>[0-9A-F]{8})(?P<kind>\.partial|\.[0-9A-F]{8}\.backup)?"
    r"|\.history)"
)


def lsn(text: str) -> int:
    """'16/B374D848' -> bytes of log since its beginning. Raises ValueError."""
    upper, slash, lower = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no position in the write-ahead log; write 0/3000060")
    return (int(upper, 16) << 32) + int(lower, 16)


def lsn_text(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def is_segment(name: str) -> bool:
    match = WAL_FILE.fullmatch(name)
    return match is not None and match["upper"] is not None and match["kind"] is None


def timeline_of(name: str) -> int:
    """Of any file of the log. Raises ValueError."""
    match = WAL_FILE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no file of the write-ahead log")
    return int(match["timeline"], 16)


def number_of(name: str, segment_bytes: int = SEGMENT_BYTES) -> int:
    """Of a segment, a half one, or a base backup's file: which segment since the log's beginning.
    Raises ValueError."""
    match = WAL_FILE.fullmatch(name)
    if match is None or match["upper"] is None:
        raise ValueError(f"{name!r} is no segment of the write-ahead log")
    return int(match["upper"], 16) * (2**32 // segment_bytes) + int(match["lower"], 16)


def segment(timeline: int, number: int, segment_bytes: int = SEGMENT_BYTES) -> str:
    upper, lower = divmod(number, 2**32 // segment_bytes)
    return f"{timeline:08X}{upper:08X}{lower:08X}"


def segments(timeline: int, start: str, stop: str, segment_bytes: int = SEGMENT_BYTES) -> list[str]:
    """Names of those that hold the log from one LSN up to another; one at least."""
    first = lsn(start) // segment_bytes
    last = max(first, (lsn(stop) - 1) // segment_bytes)
    return [segment(timeline, number, segment_bytes) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Range:
    """Segments of one timeline without a hole, the last one included."""

    first: str
    last: str
    count: int

    def __str__(self) -> str:
        return self.first if self.count == 1 else f"{self.first} to {self.last} ({self.count})"


def ranges(names: Iterable[str], segment_bytes: int = SEGMENT_BYTES) -> list[Range]:
    """What there is, by timeline and number; other names than those of whole segments are passed
    over."""
    found: list[Range] = []
    start = before = (-1, -1)
    for at in [*_places(names, segment_bytes), None]:
        if at is not None and at == (before[0], before[1] + 1):
            before = at
            continue
        if start[0] >= 0:
            found.append(_range(*start, before[1], segment_bytes))
        if at is not None:
            start = before = at
    return found


def gaps(names: Iterable[str], segment_bytes: int = SEGMENT_BYTES) -> list[Range]:
    """What is missing: between the first and the last segment of a timeline; and before the first
    of a timeline, which is the segment where it left an older one, what no older one reaches.

    Before the very first nothing is missing: older backups were dropped with their log."""
    known = ranges(names, segment_bytes)
    found: list[Range] = []
    for before, after in pairwise(known):
        timeline, first = timeline_of(after.first), number_of(after.first, segment_bytes)
        if timeline == timeline_of(before.last):
            last = number_of(before.last, segment_bytes)
            found.append(_range(timeline, last + 1, first - 1, segment_bytes))
            continue
        reached, of = max(
            (number_of(one.last, segment_bytes), timeline_of(one.last))
            for one in known
            if timeline_of(one.last) < timeline
        )
        if reached < first - 1:
            found.append(_range(of, reached + 1, first - 1, segment_bytes))
    return found


def _places(names: Iterable[str], segment_bytes: int) -> list[tuple[int, int]]:
    return sorted(
        {(timeline_of(name), number_of(name, segment_bytes)) for name in names if is_segment(name)}
    )


def _range(timeline: int, first: int, last: int, segment_bytes: int) -> Range:
    return Range(
        segment(timeline, first, segment_bytes),
        segment(timeline, last, segment_bytes),
        last - first + 1,
    )
