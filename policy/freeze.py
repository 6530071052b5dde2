"""When no release may begin: windows of freeze, as people write them and as moments.

A window is meant in wall-clock time of its time zone. It begins at the first moment at which the
clock there reads its beginning or later, and ends at the first from which on the clock no longer
reads less than its end: an hour that comes twice belongs to it whole, one that is left out does not
matter. Time is an argument: nothing here reads a clock.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DAY_MINUTES = 24 * 60
FORMS = "write 'Fri 16:00 - Mon 08:00', 'Dec 20 - Jan 2' or '22:00 - 06:00'"
MERGED_AT_MOST = 100  # windows that follow each other without a gap; then there is no end

_time = re.compile(r"(\d{1,2}):(\d{2})")


@dataclass(frozen=True)
class Side:
    """One end of a window: a weekday, a day of the year or neither (each day), and a time."""

    weekday: int | None  # 0 is Monday
    month: int | None
    day: int | None
    minutes: int | None  # since midnight, up to 24:00; None: the whole day

    @property
    def kind(self) -> str:
        return "week" if self.weekday is not None else "year" if self.month else "day"


@dataclass(frozen=True)
class Between:
    """A window that comes back every day, week or year."""

    begin: Side
    end: Side

    def around(self, today: date) -> Iterator[tuple[datetime, datetime]]:
        """(begin, end) on the wall clock of every occurrence that may hold a moment of this day."""
        if self.begin.kind == "year":
            for year in (today.year - 1, today.year, today.year + 1):
                begin = _in_year(self.begin, year, ending=False)
                same_year = _in_year(self.end, year, ending=True)
                later = same_year > begin
                yield begin, same_year if later else _in_year(self.end, year + 1, ending=True)
            return
        days = 7 if self.begin.kind == "week" else 1
        length = self._length(days * DAY_MINUTES)
        for back in range(-1, days + 2):
            day = today - timedelta(days=back)
            if self.begin.weekday in (None, day.weekday()):
                begin = _at(day, self.begin.minutes or 0)
                yield begin, begin + timedelta(minutes=length)

    def _length(self, cycle: int) -> int:
        begin = (self.begin.weekday or 0) * DAY_MINUTES + (self.begin.minutes or 0)
        until = DAY_MINUTES if self.end.minutes is None else self.end.minutes
        return ((self.end.weekday or 0) * DAY_MINUTES + until - begin) % cycle or cycle


def between(text: str) -> Between:
    """'Fri 16:00 - Mon 08:00', 'Dec 20 - Jan 2', '22:00 - 06:00'. A day without a time is all of
    it. Raises ValueError."""
    sides = re.split(r"\s*[-–]\s*", text.strip())
    if len(sides) != 2 or not all(sides):
        raise ValueError(f"{text!r} is no window; {FORMS}")
    begin, end = (_read(side, text) for side in sides)
    if begin.kind != end.kind:
        raise ValueError(f"{text!r}: both ends must be days of the week, or days of the year")
    if begin.minutes == DAY_MINUTES:
        raise ValueError(f"{text!r}: write 00:00 of the next day, not 24:00, where it begins")
    if begin == end and begin.minutes is not None:
        raise ValueError(f"{text!r}: begins when it ends")
    return Between(begin, end)


def _read(side: str, text: str) -> Side:
    words = side.split()
    weekday = month = day = minutes = None
    if match := _time.fullmatch(words[-1]):
        hour, minute = int(match[1]), int(match[2])
        minutes = hour * 60 + minute
        if minute > 59 or minutes > DAY_MINUTES:
            raise ValueError(f"{text!r}: there is no {words[-1]}")
        words.pop()
    if len(words) == 1:
        weekday = _named(words[0], DAYS, "day of the week", text)
    elif len(words) == 2 and words[1].isdecimal():
        month = _named(words[0], MONTHS, "month", text) + 1
        day = int(words[1])
        if not 1 <= day <= LONGEST_MONTH[month - 1]:
            raise ValueError(f"{text!r}: there is no {' '.join(words)}")
    elif words:
        raise ValueError(f"{text!r}: {side!r} is no moment; {FORMS}")
    return Side(weekday, month, day, minutes)


def _named(word: str, known: Sequence[str], what: str, text: str) -> int:
    for index, name in enumerate(known):
        if word.lower() in (name.lower(), name[:3].lower()):
            return index
    raise ValueError(f"{text!r}: {word} is no {what}; {', '.join(name[:3] for name in known)}")


def _in_year(side: Side, year: int, *, ending: bool) -> datetime:
    """This side of a yearly window. Feb 29 of a common year is the midnight after Feb 28."""
    assert side.month
    assert side.day
    try:
        day = date(year, side.month, side.day)
    except ValueError:
        return datetime(year, 3, 1)
    return _at(day, (DAY_MINUTES if ending else 0) if side.minutes is None else side.minutes)


def _at(day: date, minutes: int) -> datetime:
    return datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)


@dataclass(frozen=True)
class Cron:
    """A window that begins by a cron expression and lasts for so long."""

    expression: str
    seconds: float


def cron(expression: str) -> str:
    """The expression, if it is one of five fields that ever comes. Raises ValueError."""
    if len(expression.split()) != 5:
        raise ValueError(f"cron: {expression!r} does not have five fields: '0 16 * * FRI'")
    try:
        if next(CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
            raise ValueError(f"cron: {expression!r} never comes")
    except CronSimError as error:
        raise ValueError(f"cron: {expression!r}: {str(error).lower()}") from None
    return expression


@dataclass(frozen=True)
class Frozen:
    """A window is open. `until` is when nothing is frozen any more; None: no end is in sight."""

    window: str
    until: float | None
    zone: str

    def __str__(self) -> str:
        if self.until is None:
            return f"{self.window} ({self.zone}), one window after the other without an end"
        end = datetime.fromtimestamp(self.until, ZoneInfo(self.zone))
        return f"{self.window} ({self.zone}), until {end:%a %Y-%m-%d %H:%M}"


def frozen(windows: Sequence[tuple[str, Between | Cron]], zone: str, now: float) -> Frozen | None:
    """The window that is open at this time, with its name, and the end of it and of those that
    begin before it ends."""
    open_now = _open(windows, ZoneInfo(zone), now)
    if open_now is None:
        return None
    name, until = open_now
    for _ in range(MERGED_AT_MOST):
        following = _open(windows, ZoneInfo(zone), until)
        if following is None:
            return Frozen(name, until, zone)
        until = following[1]
    return Frozen(name, None, zone)


def _open(
    windows: Sequence[tuple[str, Between | Cron]], zone: ZoneInfo, now: float
) -> tuple[str, float] | None:
    """-> (name, end) of the window that is open and ends last."""
    found = [
        (until, name)
        for name, window in windows
        for begin, until in _occurrences(window, zone, now)
        if begin <= now < until
    ]
    return (max(found)[1], max(found)[0]) if found else None


def _occurrences(
    window: Between | Cron, zone: ZoneInfo, now: float
) -> Iterator[tuple[float, float]]:
    local = datetime.fromtimestamp(now, zone)
    if isinstance(window, Cron):
        # cronsim looks strictly before; what begins this second has begun.
        back = CronSim(window.expression, local + timedelta(seconds=1), reverse=True)
        if (begun := next(back, None)) is not None:
            yield begun.timestamp(), begun.timestamp() + window.seconds
        return
    for begin, end in window.around(local.date()):
        yield _reads_first(begin, zone), _reads_no_less(end, zone)


def _reads_first(wall: datetime, zone: ZoneInfo) -> float:
    """The first moment at which the clock of the zone reads this or later."""
    early, late = _folds(wall, zone)
    return _passed(wall, zone, late, early) if late < early else early


def _reads_no_less(wall: datetime, zone: ZoneInfo) -> float:
    """The first moment after which the clock of the zone never reads less than this."""
    early, late = _folds(wall, zone)
    return _passed(wall, zone, late, early) if late < early else late


def _folds(wall: datetime, zone: ZoneInfo) -> tuple[float, float]:
    """What the wall time is when it comes first and when it comes again. The second is less than
    the first for a time that the clocks leave out (PEP 495)."""
    first, again = (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    return first, again


def _passed(wall: datetime, zone: ZoneInfo, before: float, after: float) -> float:
    """The moment, to the second, at which the clocks jump over this wall time."""
    low, high = int(before), int(after)
    while low < high:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).replace(tzinfo=None) >= wall:
            high = middle
        else:
            low = middle + 1
    return float(low)


def read_time_zone(name: Any) -> str:
    """A name of the time zone database, 'Europe/Berlin'. Raises ValueError."""
    try:
        return ZoneInfo(name).key if isinstance(name, str) and name else _no_zone(name)
    except (KeyError, ValueError, OSError):
        return _no_zone(name)


def _no_zone(name: Any) -> str:
    import difflib
    from zoneinfo import available_timezones

    near = difflib.get_close_matches(str(name), available_timezones(), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "write Europe/Berlin, or UTC"
    raise ValueError(f"{name!r} is no time zone; {hint}")
