"""A router that has the selector of a Service alone, against an API server."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_for
from kube_fixtures import Kube
from kube_releases import Releases

from blocks.kube_api import SERVICES, Conflict, Object
from blocks.service_selector import SelectorRouter
from policy.errors import NotApplied
from policy.matching import PREVIEW_HEADER
from policy.release import MatchRules

NAME = "shop-prod"


@pytest.fixture
def routers(releases: Releases) -> Callable[..., SelectorRouter]:
    def make(**more: Any) -> SelectorRouter:
        quick = {"ready_seconds": 1.0, "read_back_seconds": 10.0} | more
        return SelectorRouter(releases.api, releases.namespace, "shop", "prod", **quick)

    return make


@pytest.fixture
def two(routers: Callable[..., SelectorRouter], releases: Releases) -> SelectorRouter:
    """r-1 has all requests and three pods; r-2, which follows it, none and one."""
    router = routers()
    router.attach(releases.run("r-1", 3))
    router.attach(releases.run("r-2", 1, after="r-1"))
    router.set_shares({"r-1": 100})
    return router


def service(releases: Releases) -> Object:
    found = releases.api.get(SERVICES, releases.namespace, NAME)
    assert found is not None
    return found


def selector(releases: Releases) -> dict[str, str]:
    return dict(service(releases)["spec"]["selector"])


def test_one_release_is_selected_by_its_own_label(two: SelectorRouter, releases: Releases) -> None:
    assert selector(releases) == {"dafnck/release": "r-1"}
    assert releases.ready(NAME) == releases.ready("r-1")
    two.set_shares({"r-2": 100})
    assert selector(releases) == {"dafnck/release": "r-2"}
    assert releases.ready(NAME) == releases.ready("r-2")
    assert two.shares() == {"r-1": 0, "r-2": 100}


def test_two_are_selected_by_the_label_of_their_pair(
    two: SelectorRouter, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        two.set_shares({"r-1": 75, "r-2": 25})
    assert selector(releases) == {"pair.dafnck/r-1": "true"}
    assert releases.ready(NAME) == releases.ready("r-1") | releases.ready("r-2")
    assert two.shares() == {"r-1": 75, "r-2": 25}
    assert not caplog.records


def test_another_share_than_the_replicas_give_is_told(
    two: SelectorRouter, caplog: pytest.LogCaptureFixture
) -> None:
    two.set_shares({"r-1": 95, "r-2": 5})
    assert two.shares() == {"r-1": 95, "r-2": 5}
    assert "r-2 5% was asked, 25% is given" in caplog.text


def test_nobody_serves_only_by_a_selector_that_fits_nobody(
    two: SelectorRouter, releases: Releases
) -> None:
    two.set_shares({})
    assert selector(releases) == {"dafnck/release": "none"}
    assert not releases.ready(NAME)
    assert two.shares() == {"r-1": 0, "r-2": 0}


def test_two_that_do_not_follow_each_other_are_not_served_together(
    two: SelectorRouter, releases: Releases
) -> None:
    two.attach(releases.run("r-9"))
    with pytest.raises(NotApplied, match=r"r-1 and r-9 together: .* no label of a pair"):
        two.set_shares({"r-1": 50, "r-9": 50})
    assert two.shares() == {"r-1": 100, "r-2": 0, "r-9": 0}


def test_a_third_release_is_not_served_by_the_way(two: SelectorRouter, releases: Releases) -> None:
    """It followed the same stable release and failed, and its pods are still there."""
    two.attach(releases.run("r-3", 1, after="r-1"))
    with pytest.raises(NotApplied, match=r"r-2 would be served with them: stop these first"):
        two.set_shares({"r-1": 75, "r-3": 25})
    releases.run("r-2", 0)
    wait_for(lambda: not releases.ready("r-2"), "r-2 is gone")

    def served() -> bool:
        try:
            two.set_shares({"r-1": 75, "r-3": 25})
        except NotApplied:  # a pod that is on its way out
            return False
        return True

    wait_for(served, "the pair is served once the other is gone")
    assert releases.ready(NAME) == releases.ready("r-1") | releases.ready("r-3")


def test_more_than_two_at_once_are_refused(two: SelectorRouter, releases: Releases) -> None:
    with pytest.raises(NotApplied, match="two releases at once at most"):
        two.set_shares({"r-1": 50, "r-2": 25, "r-3": 25})


def test_nothing_goes_where_nothing_is_ready(two: SelectorRouter, releases: Releases) -> None:
    releases.run("r-2", 0)
    with pytest.raises(NotApplied, match=r"r-2 has no ready endpoint .* unchanged"):
        two.set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 100, "r-2": 0}
    assert selector(releases) == {"dafnck/release": "r-1"}


def test_a_write_that_was_overtaken_or_whose_answer_is_lost_is_tried_again(
    two: SelectorRouter, kube: Kube
) -> None:
    kube.faults.add(verb="apply", plural="services", code=409, times=3)
    kube.faults.add(verb="apply", plural="services", lost=True)
    two.set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 0, "r-2": 100}


def test_slices_that_do_not_follow_are_told(
    two: SelectorRouter, routers: Callable[..., SelectorRouter], kube: Kube, releases: Releases
) -> None:
    kube.controllers.off.add("services")
    with pytest.raises(NotApplied, match=r"did not take up its new selector .* r-2 is not among"):
        routers(read_back_seconds=0.5).set_shares({"r-2": 100})


def test_what_another_manager_holds_is_left_to_it_and_read_as_it_is(
    two: SelectorRouter, releases: Releases
) -> None:
    two.set_shares({"r-2": 100})
    by_hand = service(releases)
    by_hand["spec"]["selector"] = {"pair.dafnck/r-1": "true"}
    releases.api.replace(SERVICES, releases.namespace, by_hand)
    wait_for(lambda: len(releases.ready(NAME)) == 4, "all pods are served")
    assert two.shares() == {"r-1": 75, "r-2": 25}
    with pytest.raises(Conflict, match=r"selector: conflict with .* left to them"):
        two.set_shares({"r-1": 100})
    assert selector(releases) == {"pair.dafnck/r-1": "true"}


def test_a_preview_needs_no_rule_and_what_does_is_refused(
    two: SelectorRouter, releases: Releases
) -> None:
    two.match(MatchRules(preview={PREVIEW_HEADER: "r-2"}, release_id="r-2"))
    two.match(None)
    for rules in (
        MatchRules(preview={"X-Preview": "yes"}, release_id="r-2"),
        MatchRules(preview={}, release_id="r-2", cohort_header=("X-Staff", "1")),
        MatchRules(preview={}, release_id="r-2", cohort_cookie=("beta", "y"), cohort_on=True),
    ):
        with pytest.raises(NotApplied, match=r"kubernetes\.gateway"):
            two.match(rules)


def test_clients_stick_by_their_address(two: SelectorRouter, releases: Releases) -> None:
    two.match(MatchRules(preview={}, release_id="r-1", sticky=True))
    assert service(releases)["spec"]["sessionAffinity"] == "ClientIP"
    two.set_shares({"r-2": 100})
    assert service(releases)["spec"]["sessionAffinity"] == "ClientIP"
    two.match(None)
    assert service(releases)["spec"].get("sessionAffinity", "None") == "None"
    assert two.shares() == {"r-1": 0, "r-2": 100}


def test_writes_at_once_are_all_there(
    two: SelectorRouter, routers: Callable[..., SelectorRouter], releases: Releases
) -> None:
    names = [f"r-{number}" for number in range(3, 9)]
    failed: list[Exception] = []

    def attach(name: str) -> None:
        try:
            routers().attach(releases.endpoints(name))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=attach, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert two.shares() == {"r-1": 100, "r-2": 0} | dict.fromkeys(names, 0)


def test_where_it_is_reached(
    two: SelectorRouter, routers: Callable[..., SelectorRouter], releases: Releases
) -> None:
    assert two.url() == f"http://{service(releases)['spec']['clusterIP']}"
    assert two.url("r-2") != two.url()
    with pytest.raises(NotApplied, match="no Service r-7"):
        two.url("r-7")
    assert NAME in two.door()
