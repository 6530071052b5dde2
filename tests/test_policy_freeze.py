"""Freeze windows: what a person means by them, over weeks, years and clock changes."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from policy.freeze import DAYS, MONTHS, Cron, Frozen, between, cron, frozen, read_time_zone

BERLIN = "Europe/Berlin"
ZONES = ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
WEEK, DAY = 7 * 24 * 60, 24 * 60


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def look(window: str, now: float, zone: str = BERLIN) -> Frozen | None:
    return frozen([(window, between(window))], zone, now)


def open_at(window: str, text: str, zone: str = BERLIN, fold: int = 0) -> bool:
    return look(window, at(text, zone, fold), zone) is not None


@pytest.mark.parametrize(
    ("window", "last_free", "first_frozen", "last_frozen", "first_free"),
    [
        (
            "Fri 16:00 - Mon 08:00",
            *("2026-11-27 15:59:59", "2026-11-27 16:00"),
            *("2026-11-30 07:59:59", "2026-11-30 08:00"),
        ),
        (  # a day without a time is all of it
            "Dec 20 - Jan 2",
            *("2026-12-19 23:59:59", "2026-12-20 00:00"),
            *("2027-01-02 23:59:59", "2027-01-03 00:00"),
        ),
        (
            "Saturday - Sunday",
            *("2026-11-27 23:59:59", "2026-11-28 00:00"),
            *("2026-11-29 23:59:59", "2026-11-30 00:00"),
        ),
        (
            "Fri 18:00 - Fri 24:00",
            *("2026-11-27 17:59:59", "2026-11-27 18:00"),
            *("2026-11-27 23:59:59", "2026-11-28 00:00"),
        ),
        (
            "00:00 - 06:00",
            *("2026-11-26 23:59:59", "2026-11-27 00:00"),
            *("2026-11-27 05:59:59", "2026-11-27 06:00"),
        ),
        (
            "22:00 - 06:00",
            *("2026-11-26 21:59:59", "2026-11-26 22:00"),
            *("2026-11-27 05:59:59", "2026-11-27 06:00"),
        ),
        (
            "Dec 24 12:00 - Dec 27 06:00",
            *("2026-12-24 11:59:59", "2026-12-24 12:00"),
            *("2026-12-27 05:59:59", "2026-12-27 06:00"),
        ),
        (  # a common year has no Feb 29
            "Feb 29 - Mar 1",
            *("2027-02-28 23:59:59", "2027-03-01 00:00"),
            *("2027-03-01 23:59:59", "2027-03-02 00:00"),
        ),
        (
            "Feb 27 - Feb 29",
            *("2028-02-26 23:59:59", "2028-02-27 00:00"),
            *("2028-02-29 23:59:59", "2028-03-01 00:00"),
        ),
    ],
)
def test_a_window_holds_what_lies_between_its_ends(
    window: str, last_free: str, first_frozen: str, last_frozen: str, first_free: str
) -> None:
    assert not open_at(window, last_free)
    assert open_at(window, first_frozen)
    assert open_at(window, last_frozen)
    assert not open_at(window, first_free)
    found = look(window, at(first_frozen))
    assert found
    assert found.until == at(first_free)


def test_the_words_name_window_zone_and_end() -> None:
    found = look("Fri 16:00 - Mon 08:00", at("2026-11-28 12:00"))
    assert str(found) == "Fri 16:00 - Mon 08:00 (Europe/Berlin), until Mon 2026-11-30 08:00"


def test_windows_that_touch_end_together() -> None:
    windows = ["Dec 20 - Jan 2", "Fri 16:00 - Mon 08:00"]
    found = frozen([(w, between(w)) for w in windows], BERLIN, at("2026-12-31 12:00"))
    assert found
    assert (found.window, found.until) == ("Dec 20 - Jan 2", at("2027-01-04 08:00"))


@pytest.mark.parametrize(
    "window", ["Mon - Sun", "Wed - Tue", "Jan 1 - Dec 31", "Fri 5:00 - Fri 4:59"]
)
def test_a_window_without_an_end_says_so_or_has_one(window: str) -> None:
    found = look(window, at("2026-11-25 12:00"))
    assert found
    assert (found.until is None) == (window != "Fri 5:00 - Fri 4:59")


# In Berlin the clocks leave out 2:00 to 3:00 on 2026-03-29 and repeat it on 2026-10-25.


def test_an_hour_that_comes_twice_belongs_to_the_window_whole() -> None:
    for text, fold, wanted in [
        ("2026-10-25 02:29", 0, True),
        ("2026-10-25 02:45", 0, True),  # the clock will read 2:15 once more
        ("2026-10-25 02:15", 1, True),
        ("2026-10-25 02:30", 1, False),
    ]:
        assert open_at("Sat 20:00 - Sun 02:30", text, fold=fold) is wanted, (text, fold)
        begins = open_at("Sun 02:30 - Sun 05:00", text, fold=fold)
        assert begins is ((text, fold) != ("2026-10-25 02:29", 0)), (text, fold)


def test_a_time_that_is_left_out_is_the_moment_of_the_jump() -> None:
    jump = at("2026-03-29 03:00")
    for window, before, after in [
        ("Sat 20:00 - Sun 02:30", True, False),
        ("Sun 02:30 - Sun 05:00", False, True),
        ("Sun 02:10 - Sun 02:50", False, False),
    ]:
        assert (look(window, jump - 1) is not None) is before, window
        assert (look(window, jump) is not None) is after, window


def in_words(minute: int) -> str:
    return f"{DAYS[minute // DAY][:3]} {minute % DAY // 60:02}:{minute % 60:02}"


def near_a_clock_change(zone: str, now: float) -> bool:
    offsets = {
        datetime.fromtimestamp(now + hours * 3600, ZoneInfo(zone)).utcoffset()
        for hours in range(-4, 5)
    }
    return len(offsets) > 1


unhurried = settings(deadline=None)
# Whole milliseconds: datetime rounds what is nearer to the next minute than a microsecond.
moments = st.floats(at("2024-01-01 00:00"), at("2032-01-01 00:00")).map(lambda t: round(t, 3))


@unhurried
@given(st.integers(0, WEEK - 1), st.integers(0, WEEK - 1), st.sampled_from(ZONES), moments)
@example(0, WEEK - 1, "UTC", at("2026-11-29 23:59", "UTC"))
def test_a_week_wraps(begin: int, end: int, zone: str, now: float) -> None:
    """What the clock on the wall reads decides, wherever in the week the window lies."""
    assume(begin != end)
    assume(not near_a_clock_change(zone, now))
    wall = datetime.fromtimestamp(now, ZoneInfo(zone))
    minute = wall.weekday() * DAY + wall.hour * 60 + wall.minute
    inside = (minute - begin) % WEEK < (end - begin) % WEEK
    found = look(f"{in_words(begin)} - {in_words(end)}", now, zone)
    assert (found is not None) == inside
    if found:
        assert found.until is not None
        assert now < found.until <= now + WEEK * 60 + 3600


@unhurried
@given(
    st.dates(datetime(2024, 1, 1).date(), datetime(2024, 12, 31).date()),
    st.dates(datetime(2024, 1, 1).date(), datetime(2024, 12, 31).date()),
    st.sampled_from(ZONES),
    moments,
)
def test_a_year_wraps(begin: datetime, end: datetime, zone: str, now: float) -> None:
    assume((begin.month, begin.day) != (2, 29) != (end.month, end.day))
    wall = datetime.fromtimestamp(now, ZoneInfo(zone))
    here, first, last = ((d.month, d.day) for d in (wall, begin, end))
    inside = first <= here <= last if first <= last else here >= first or here <= last
    begins, ends = (f"{MONTHS[d.month - 1]} {d.day}" for d in (begin, end))
    assert (look(f"{begins} - {ends}", now, zone) is not None) == inside


@unhurried
@given(st.integers(0, DAY - 1), st.integers(0, DAY - 1), st.sampled_from(ZONES), moments)
def test_a_day_wraps(begin: int, end: int, zone: str, now: float) -> None:
    assume(begin != end)
    assume(not near_a_clock_change(zone, now))
    wall = datetime.fromtimestamp(now, ZoneInfo(zone))
    inside = (wall.hour * 60 + wall.minute - begin) % DAY < (end - begin) % DAY
    text = " - ".join(f"{minute // 60}:{minute % 60:02}" for minute in (begin, end))
    assert (look(text, now, zone) is not None) == inside


@unhurried
@given(st.floats(0, 0.99), st.integers(1, WEEK - 1), st.sampled_from(ZONES), moments)
def test_the_end_that_is_told_is_the_first_free_moment(
    passed: float, length: int, zone: str, now: float
) -> None:
    """Also across a change of the clocks: frozen until just before, free then."""
    wall = datetime.fromtimestamp(now, ZoneInfo(zone))
    minute = wall.weekday() * DAY + wall.hour * 60 + wall.minute
    begin = (minute - int(length * passed)) % WEEK
    window = f"{in_words(begin)} - {in_words((begin + length) % WEEK)}"
    found = look(window, now, zone)
    assert found is not None or near_a_clock_change(zone, now - length * passed * 60)
    if found and found.until is not None:
        assert look(window, found.until, zone) is None
        assert look(window, found.until - 1, zone) is not None
        assert look(window, (now + found.until) / 2, zone) is not None


def test_cron_begins_and_a_duration_ends() -> None:
    windows = [("release week", Cron(cron("0 16 * * FRI"), 64 * 3600))]
    for text, wanted in [
        ("2026-11-27 15:59:59", False),
        ("2026-11-27 16:00", True),
        ("2026-11-30 07:59:59", True),
        ("2026-11-30 08:00", False),
    ]:
        assert (frozen(windows, BERLIN, at(text)) is not None) is wanted, text


@unhurried
@given(st.integers(0, 23), st.integers(1, 23 * 60), st.sampled_from(["UTC", BERLIN]), moments)
def test_cron_and_text_mean_the_same(hour: int, minutes: int, zone: str, now: float) -> None:
    assume(not near_a_clock_change(zone, now) and not near_a_clock_change(zone, now - 86400))
    begin = timedelta(hours=hour)
    texts = [str(begin), str(timedelta(minutes=(hour * 60 + minutes) % DAY))]
    text = between(" - ".join(part[:-3] for part in texts))
    by_cron = Cron(f"0 {hour} * * *", minutes * 60)
    answers = [frozen([("w", window)], zone, now) is None for window in (text, by_cron)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no window"),
        ("Fri", "is no window"),
        ("Fri 16:00 - Sat - Sun", "is no window"),
        ("Fri 16:00 - 08:00", "both ends must be days"),
        ("Dec 20 - Mon", "both ends must be days"),
        ("Frday - Mon", "Frday is no day of the week"),
        ("Fry 13 - Mon 3", "Fry is no month"),
        ("Dec 32 - Jan 2", "there is no Dec 32"),
        ("Feb 30 - Mar 2", "there is no Feb 30"),
        ("Fri 24:01 - Mon", "there is no 24:01"),
        ("Fri 12:60 - Mon", "there is no 12:60"),
        ("Fri 24:00 - Mon", "not 24:00, where it begins"),
        ("Fri 16:00 - Fri 16:00", "begins when it ends"),
        ("next Friday evening - Mon", "is no moment"),
    ],
)
def test_what_cannot_be_meant_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        between(text)


@pytest.mark.parametrize(
    "expression", ["", "0 16 * *", "0 16 * * FRX", "0 0 30 2 *", "@daily", "* * * * * *"]
)
def test_what_is_no_cron_expression_is_told(expression: str) -> None:
    with pytest.raises(ValueError, match="cron: "):
        cron(expression)


@pytest.mark.parametrize(
    "zone", ["", "Berlin", "Europe", "../etc/passwd", "/etc/localtime", None, 7]
)
def test_what_is_no_time_zone_is_told(zone: object) -> None:
    with pytest.raises(ValueError, match="is no time zone"):
        read_time_zone(zone)
