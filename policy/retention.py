"""Which backups stay: grandfather, father, son.

Never drops the newest restorable backup, nor one of the `newest` good ones, whatever the window
says; and never what is locked, what a clock has not reached yet, or anything at all while no backup
is known to be good and a bad one is all there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from policy.backup import Keep

BAD_SECONDS = 7 * 86400.0  # a bad backup is kept so long, for people to look into


@dataclass(frozen=True)
class Stored:
    """A backup as retention sees it."""

    id: str
    taken_at: float  # seconds since the epoch
    good: bool | None  # proved by a drill, proved bad, or not tried yet
    locked_until: float | None = None


@dataclass(frozen=True)
class Fate:
    id: str
    keep: bool
    reason: str


Bucket = Callable[[datetime], tuple[int, ...]]
BUCKETS: tuple[tuple[str, str, Bucket], ...] = (
    ("daily", "day", lambda at: (at.year, at.month, at.day)),
    ("weekly", "week", lambda at: at.isocalendar()[:2]),
    ("monthly", "month", lambda at: (at.year, at.month)),
    ("yearly", "year", lambda at: (at.year,)),
)


def split(backups: Sequence[Stored], keep: Keep, now: float) -> list[Fate]:
    """What becomes of each, newest first, and why. Days, weeks (from Monday) and so on are UTC's.

    `keep.daily` and the like count days that have a backup, not days that have passed: a service
    whose backups stopped loses none by that alone.
    """
    ordered = sorted(backups, key=lambda one: (one.taken_at, one.id), reverse=True)
    reasons: dict[str, list[str]] = {one.id: [] for one in ordered}
    usable = [one for one in ordered if one.good is not False]
    for number, one in enumerate(usable[: keep.newest], 1):
        reasons[one.id].append("the newest" if number == 1 else f"one of the {keep.newest} newest")
    if proved := next((one for one in ordered if one.good), None):
        reasons[proved.id].append("the newest that was restored")
    for key, word, bucket in BUCKETS:
        for one in _newest_of_each(usable, bucket, getattr(keep, key)):
            reasons[one.id].append(f"the newest of its {word}")
    for one in ordered:
        why = reasons[one.id]
        if one.locked_until is not None and one.locked_until > now:
            why.append(f"locked until {_day(one.locked_until)}")
        if one.taken_at > now:
            why.append("from the future: is a clock wrong?")
        if one.good is False:
            if not any(other.good is not False for other in ordered):
                why.append("bad, and there is no other")
            elif now - one.taken_at < BAD_SECONDS:
                why.append("bad, for people to look into")
    return [_fate(one, reasons[one.id]) for one in ordered]


def _newest_of_each(newest_first: Sequence[Stored], bucket: Bucket, count: int) -> list[Stored]:
    """The newest of each of the last `count` buckets that have one."""
    found: dict[tuple[int, ...], Stored] = {}
    for one in newest_first:
        found.setdefault(bucket(datetime.fromtimestamp(one.taken_at, UTC)), one)
    return list(found.values())[:count]


def _fate(one: Stored, reasons: Sequence[str]) -> Fate:
    if reasons:
        return Fate(one.id, True, "; ".join(reasons))
    return Fate(one.id, False, "bad, and old" if one.good is False else "no rule keeps it")


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
