"""Which backups stay: over years of dates, with gaps, bad ones and locks."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.backup import Keep
from policy.retention import BAD_SECONDS, Fate, Stored, split

NOW = datetime(2026, 11, 25, 2, 15, tzinfo=UTC).timestamp()
DAY = 86400.0


def nightly(days: int, good: bool | None = None) -> list[Stored]:
    """One every night, newest first."""
    return [Stored(f"b{n:04}", NOW - n * DAY, good) for n in range(days)]


def kept(fates: list[Fate]) -> list[str]:
    return [fate.id for fate in fates if fate.keep]


def test_years_of_nights_are_thinned_out() -> None:
    fates = split(nightly(800), Keep(newest=3, daily=7, weekly=4, monthly=12, yearly=2), NOW)
    days = [datetime.fromtimestamp(NOW, UTC) - timedelta(int(one[1:])) for one in kept(fates)]
    assert days[:7] == [datetime.fromtimestamp(NOW, UTC) - timedelta(n) for n in range(7)]
    assert len([day for day in days if day.weekday() == 6]) >= 3, "Sundays: the newest of a week"
    months = {(day.year, day.month) for day in days}
    assert len(months) == 12
    # The newest of December 2025 is both a month's and a year's.
    assert len(days) == 7 + 2 + 11


def test_backups_that_stopped_are_not_lost_by_time_alone() -> None:
    fates = split(nightly(10), Keep(daily=7, weekly=0, monthly=0), NOW + 400 * DAY)
    assert len(kept(fates)) == 7


def test_reasons_are_told() -> None:
    fates = split(nightly(40, good=True), Keep(newest=2, daily=2, weekly=1, monthly=1), NOW)
    assert fates[0].reason == (
        "the newest; the newest that was restored; the newest of its day; the newest of its week; "
        "the newest of its month"
    )
    assert fates[1].reason == "one of the 2 newest; the newest of its day"
    assert fates[5].reason == "no rule keeps it"


def test_an_old_one_stays_when_it_is_the_newest_that_was_restored() -> None:
    backups = [*nightly(30), Stored("old", NOW - 300 * DAY, True)]
    fates = split(backups, Keep(newest=1, daily=1, weekly=0, monthly=0), NOW)
    assert kept(fates) == ["b0000", "old"]


def test_bad_ones_take_no_place_of_good_ones() -> None:
    bad = [Stored(f"bad{n}", NOW - n - 1, False) for n in range(5)]
    fates = split([*bad, *nightly(3)], Keep(newest=3, daily=0, weekly=0, monthly=0), NOW)
    assert {"b0000", "b0001", "b0002"} <= set(kept(fates))
    assert fates[1].reason == "bad, for people to look into"
    later = split([*bad, *nightly(3)], Keep(newest=1, daily=0, weekly=0), NOW + BAD_SECONDS)
    assert {fate.reason for fate in later if fate.id.startswith("bad")} == {"bad, and old"}


def test_bad_ones_stay_when_there_is_nothing_else() -> None:
    bad = [Stored(f"bad{n}", NOW - n * 30 * DAY, False) for n in range(5)]
    assert len(kept(split(bad, Keep(newest=1, daily=0, weekly=0, monthly=0), NOW))) == 5


some = st.lists(
    st.builds(
        lambda number, at, good, lock: Stored(
            f"{number:08}", at, good, None if lock is None else at + lock
        ),
        st.integers(0, 10**7),
        st.floats(NOW - 2000 * DAY, NOW + DAY),
        st.sampled_from([True, False, None]),
        st.none() | st.floats(0, 400 * DAY),
    ),
    max_size=120,
    unique_by=lambda one: one.id,
)
rules = st.builds(
    Keep,
    newest=st.integers(1, 9),
    daily=st.integers(0, 40),
    weekly=st.integers(0, 20),
    monthly=st.integers(0, 20),
    yearly=st.integers(0, 5),
)


@given(some, rules)
@settings(max_examples=300, deadline=None)
def test_what_must_stay_stays(backups: list[Stored], keep: Keep) -> None:
    fates = split(backups, keep, NOW)
    assert sorted(fate.id for fate in fates) == sorted(one.id for one in backups)
    assert all(fate.reason for fate in fates)
    stay = set(kept(fates))
    newest_first = sorted(backups, key=lambda one: (one.taken_at, one.id), reverse=True)
    usable = [one for one in newest_first if one.good is not False]
    proved = [one for one in newest_first if one.good]
    assert {one.id for one in usable[: keep.newest]} <= stay
    assert {one.id for one in proved[:1]} <= stay
    assert {one.id for one in backups if one.locked_until and one.locked_until > NOW} <= stay
    assert {one.id for one in backups if one.taken_at > NOW} <= stay
    if backups and not usable:
        assert stay == {one.id for one in backups}
    most = keep.newest + keep.daily + keep.weekly + keep.monthly + keep.yearly + 1
    free = [
        one
        for one in usable
        if not (one.locked_until and one.locked_until > NOW) and one.taken_at <= NOW
    ]
    assert len(stay & {one.id for one in free}) <= most


@given(some, rules)
@settings(max_examples=100, deadline=None)
def test_pruned_twice_is_pruned_once(backups: list[Stored], keep: Keep) -> None:
    stay = set(kept(split(backups, keep, NOW)))
    again = split([one for one in backups if one.id in stay], keep, NOW)
    assert set(kept(again)) == stay
    # Each night a new one comes, and what was dropped is never missed.
    new = Stored("new", NOW + DAY, None)
    both = set(kept(split([*backups, new], keep, NOW + DAY)))
    thinned = [one for one in backups if one.id in stay]
    assert set(kept(split([*thinned, new], keep, NOW + DAY))) >= both & stay
