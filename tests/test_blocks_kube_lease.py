"""A lease in the cluster, against an API server: homes keep off each other, by no clock but one."""

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from kube_fixtures import Kube
from kube_releases import Releases

from blocks.kube_api import LEASES, KubeApi, Object
from blocks.kube_lease import KubeLease
from policy.errors import LeaseLost, Refused

NAME = "dafnck-shop-prod"


class OwnTime:
    """The monotonic clock of one process: it goes on while that one sleeps, and when it is told to.
    What else happens meanwhile is `meanwhile`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0
        self.stands_still = 0.0  # seconds, in each sleep
        self.meanwhile: Callable[[], Any] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now += seconds + self.stands_still
        self.meanwhile()


@pytest.fixture
def own() -> OwnTime:
    return OwnTime()


@pytest.fixture
def kube_api(releases: Releases) -> KubeApi:
    return releases.api


@pytest.fixture
def kube_namespace(releases: Releases) -> str:
    return releases.namespace


def slow_clock() -> Callable[[], float]:
    """A wall clock that stands in the year 1970 and moves by a millisecond a look."""
    looks = count(1)
    return lambda: 1.5 + next(looks) / 1000


@pytest.fixture
def lease(kube_api: KubeApi, kube_namespace: str, own: OwnTime) -> KubeLease:
    clock = slow_clock()
    return KubeLease(
        kube_api, kube_namespace, "shop", "prod", monotonic=own, sleep=own.sleep, clock=clock
    )


@pytest.fixture
def written(kube_api: KubeApi, kube_namespace: str) -> Callable[[], Object]:
    def read() -> Object:
        found = kube_api.get(LEASES, kube_namespace, NAME)
        assert found is not None
        return found

    return read


def test_it_is_taken_kept_and_given_back(lease: KubeLease, written: Callable[[], Object]) -> None:
    token = lease.take("home-a", "release by ann")
    lease.check(token)
    lease.renew(token)
    assert lease.holder() == "release by ann (home-a)"
    spec = written()["spec"]
    assert spec["holderIdentity"] == token
    assert spec["leaseDurationSeconds"] == 15
    assert spec["renewTime"].startswith("1970-01-01T00:00:01.502")
    lease.free(token)
    assert lease.holder() is None
    lease.take("home-b", "release by bob")
    assert written()["spec"]["leaseTransitions"] == 1


def test_a_holder_that_renews_keeps_it_and_is_named(lease: KubeLease, own: OwnTime) -> None:
    token = lease.take("home-a", "release by ann")
    own.meanwhile = lambda: own.slept == 7 and lease.renew(token)
    with pytest.raises(Refused, match=r"shop in prod .* by release by ann \(home-a\)"):
        lease.take("home-b", "release by bob")
    assert own.slept == 7
    lease.check(token)


def test_one_that_does_not_renew_loses_it_after_its_time_by_our_clock(
    lease: KubeLease, own: OwnTime, written: Callable[[], Object]
) -> None:
    """What its clock says is of no account: it stands at 1970."""
    lost = lease.take("home-a", "ann")
    token = lease.take("home-b", "bob")
    assert 15 <= own.now <= 16
    assert written()["spec"]["leaseTransitions"] == 1
    with pytest.raises(LeaseLost, match="bob"):
        lease.check(lost)
    with pytest.raises(LeaseLost, match="bob"):
        lease.renew(lost)
    lease.free(lost)
    lease.check(token)


def test_time_in_which_nobody_looked_does_not_count(lease: KubeLease, own: OwnTime) -> None:
    token = lease.take("home-a", "ann")
    own.stands_still = 3600.0  # this machine sleeps, the holder is on another
    own.meanwhile = lambda: own.slept == 10 and lease.renew(token)
    with pytest.raises(Refused):
        lease.take("home-b", "bob")


def test_its_own_duration_counts(
    lease: KubeLease, own: OwnTime, kube_api: KubeApi, kube_namespace: str
) -> None:
    KubeLease(kube_api, kube_namespace, "shop", "prod", seconds=40).take("home-a", "ann")
    lease.take("home-b", "bob")
    assert 40 <= own.now <= 41


def test_within_a_home_it_changes_hands_at_once(lease: KubeLease, own: OwnTime) -> None:
    before = lease.take("home-a", "release")
    after = lease.take("home-a", "guard")
    assert own.slept == 0
    with pytest.raises(LeaseLost, match=r"guard \(home-a\)"):
        lease.check(before)
    lease.check(after)


def test_one_home_is_not_another_whose_name_begins_alike(lease: KubeLease, own: OwnTime) -> None:
    lease.take("home-a", "ann")
    lease.take("home", "bob")
    assert own.slept


def test_whoever_removes_it_ends_it(
    lease: KubeLease, kube_api: KubeApi, kube_namespace: str
) -> None:
    token = lease.take("home-a", "ann")
    kube_api.delete(LEASES, kube_namespace, NAME)
    with pytest.raises(LeaseLost, match="removed"):
        lease.renew(token)
    lease.free(token)


class Overtaken:
    """An API on which somebody else writes to the lease just before our next write."""

    def __init__(self, api: KubeApi, first: Callable[[], Any]) -> None:
        self._api, self._first = api, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def replace(self, *words: Any) -> Object:
        first, self._first = self._first, lambda: None
        first()
        return self._api.replace(*words)


def test_a_note_of_somebody_else_does_not_end_it(
    lease: KubeLease, kube_api: KubeApi, kube_namespace: str, written: Callable[[], Object]
) -> None:
    token = lease.take("home-a", "ann")

    def note() -> None:
        body = {"metadata": {"annotations": {"team": "shop"}}}
        kube_api.patch(LEASES, kube_namespace, NAME, body)

    overtaken: Any = Overtaken(kube_api, note)
    later = KubeLease(overtaken, kube_namespace, "shop", "prod", clock=lambda: 2.5)
    later.renew(token)
    found = written()
    assert found["spec"]["renewTime"].startswith("1970-01-01T00:00:02.5")
    assert found["metadata"]["annotations"]["team"] == "shop"


@pytest.mark.parametrize("verb", ["create", "update"])
def test_an_answer_that_is_lost_loses_no_lease(lease: KubeLease, kube: Kube, verb: str) -> None:
    if verb == "update":
        lease.free(lease.take("home-b", "bob"))
    kube.faults.add(verb=verb, plural="leases", lost=True)
    token = lease.take("home-a", "ann")
    kube.faults.add(verb="update", plural="leases", lost=True)
    lease.renew(token)
    lease.check(token)


def test_of_many_homes_one_takes_it(kube_api: KubeApi, kube_namespace: str) -> None:
    class Waits(Exception):
        pass

    def sleep(seconds: float) -> None:
        raise Waits

    homes = [f"home-{number}" for number in range(8)]
    taken: list[str] = []
    ready = threading.Barrier(len(homes))

    def take(home: str) -> None:
        lease = KubeLease(kube_api, kube_namespace, "shop", "prod", sleep=sleep)
        ready.wait()
        try:
            taken.append(lease.take(home, home))
        except (Waits, Refused):
            pass

    threads = [threading.Thread(target=take, args=(home,)) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    KubeLease(kube_api, kube_namespace, "shop", "prod").check(taken[0])
