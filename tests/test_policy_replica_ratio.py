from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.replica_ratio import Ratio, attainable, far_off, granularity, share_of


def test_three_stable_replicas() -> None:
    assert attainable([5, 25, 50, 100], 3, 3) == [Ratio(25, 1), Ratio(50, 3), Ratio(100, 3)]


@pytest.mark.parametrize(
    ("shares", "replicas", "stable", "steps"),
    [
        ([5, 25, 50, 100], 10, 10, [(9, 1), (23, 3), (50, 10), (100, 10)]),
        ([5, 25, 50, 100], 2, 3, [(25, 1), (40, 2), (100, 2)]),
        ([5, 25, 50, 100], 1, 1, [(50, 1), (100, 1)]),
        ([100], 3, 3, [(100, 3)]),
        ([5, 50, 100], 2, 0, [(100, 2)]),
        ([1, 2, 100], 5, 99, [(1, 1), (2, 2), (100, 5)]),
    ],
)
def test_the_nearest_steps(
    shares: list[int], replicas: int, stable: int, steps: list[tuple[int, int]]
) -> None:
    assert [(one.share, one.new) for one in attainable(shares, replicas, stable)] == steps


rising = st.lists(st.integers(1, 99), unique=True, max_size=6).map(lambda s: [*sorted(s), 100])


@given(rising, st.integers(1, 50), st.integers(0, 50))
def test_steps_rise_to_all_and_none_goes_beyond_what_was_asked(
    shares: list[int], replicas: int, stable: int
) -> None:
    steps = attainable(shares, replicas, stable)
    assert steps[-1] == Ratio(100, replicas)
    assert len(steps) <= len(shares)
    for one, next_one in pairwise(steps):
        assert one.share < next_one.share
        assert 1 <= one.new <= next_one.new <= replicas
        assert one.share < 100
    for one in steps[:-1]:
        exact = 100 * one.new / (one.new + stable)
        assert one.new == 1 or any(exact <= share for share in shares[:-1])
        assert one.share == share_of(one.new, stable)


def test_people_are_told_what_they_can_have() -> None:
    assert granularity(3, 3).startswith(
        "a Service alone splits by replicas: beside 3 stable replicas, 25% is the least, then up "
        "to 50%, then 100%"
    )
    assert "beside 1 stable replica, 50% is the least, the next step is 100%" in granularity(1, 1)


def test_what_is_given_is_held_against_what_was_asked() -> None:
    assert far_off({"new": 25, "old": 75}, {"new": 1, "old": 3}) is None
    said = far_off({"new": 5, "old": 95}, {"new": 1, "old": 3})
    assert said is not None
    assert "new 5% was asked, 25% is given" in said
    assert far_off({"old": 100}, {"old": 2}) is None
    assert far_off({"old": 100}, {}) is not None
