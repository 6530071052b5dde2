from hypothesis import given
from hypothesis import strategies as st

from policy.kept_releases import split

names = st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=20)


@given(names, st.data(), st.integers(1, 5))
def test_what_is_needed_stays(releases: list[str], data: st.DataObject, keep: int) -> None:
    some = st.lists(st.sampled_from(releases), unique=True) if releases else st.just([])
    good, in_use = data.draw(some), data.draw(some)
    kept, dropped = split(releases, good=good, in_use=in_use, keep=keep)
    assert sorted(kept + dropped) == sorted(releases)
    assert set(in_use) <= set(kept)
    old_good = [release for release in releases if release in good and release not in in_use]
    assert [release for release in kept if release in old_good] == old_good[:keep]


def test_renewals_take_no_others_place() -> None:
    """c is what serves, renewed twice; b was renewed once."""
    releases = ["c2", "c1", "c", "b1", "b", "a", "z"]
    origins = {"c2": "c", "c1": "c", "b1": "b"}
    kept, dropped = split(releases, good=releases, in_use=["c2"], keep=2, origins=origins)
    assert kept == ["c2", "c1", "b1", "a"], "c1: the secrets before; two other releases"
    assert dropped == ["c", "b", "z"]


def test_failed_ones_stay_as_long_for_their_logs() -> None:
    kept, dropped = split(["d", "c", "b", "a"], good=["c"], in_use=[], keep=1)
    assert (kept, dropped) == (["d", "c"], ["b", "a"])
