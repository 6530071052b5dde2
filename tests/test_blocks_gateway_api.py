"""A router over Gateway API, against an API server with a controller behind it."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import wait_for
from kube_fixtures import Kube
from kube_releases import Releases

from blocks.gateway_api import GatewayRouter
from blocks.kube_api import GATEWAYS, HTTP_ROUTES, SERVICES, Conflict, Object
from policy.errors import NotApplied, Unreachable
from policy.kube_names import own_labels
from policy.release import MatchRules

Place = tuple[str, str, str | None]


@pytest.fixture
def routers(releases: Releases, gateway_place: Place) -> Callable[..., GatewayRouter]:
    def make(place: Place = gateway_place, service: str = "shop", **more: Any) -> GatewayRouter:
        quick = {"ready_seconds": 1.0, "read_back_seconds": 3.0} | more
        return GatewayRouter(releases.api, releases.namespace, service, "prod", place, **quick)

    return make


@pytest.fixture
def router(routers: Callable[..., GatewayRouter]) -> GatewayRouter:
    return routers()


@pytest.fixture
def two(router: GatewayRouter, releases: Releases) -> GatewayRouter:
    """r-1 has all requests, r-2 none."""
    for name in ("r-1", "r-2"):
        router.attach(releases.run(name))
    router.set_shares({"r-1": 100})
    return router


def route(releases: Releases) -> Object:
    found = releases.api.get(HTTP_ROUTES, releases.namespace, "shop-prod")
    assert found is not None
    return found


def inside(releases: Releases) -> dict[str, str]:
    """Whom callers in the cluster reach."""
    found = releases.api.get(SERVICES, releases.namespace, "shop-prod")
    assert found is not None
    return dict(found["spec"]["selector"])


def test_what_was_asked_travels_with_the_route(two: GatewayRouter, releases: Releases) -> None:
    two.set_shares({"r-1": 90, "r-2": 10})
    two.match(MatchRules(preview={"X-Preview": "1"}, release_id="r-2"))
    found = route(releases)
    assert found["spec"]["hostnames"] == [releases.host]
    preview, main = found["spec"]["rules"]
    assert preview["backendRefs"][0]["name"] == "r-2"
    weights = {one["name"]: one["weight"] for one in main["backendRefs"]}
    assert weights == two.shares() == {"r-1": 90, "r-2": 10}
    state = json.loads(found["metadata"]["annotations"]["dafnck/state"])
    assert state["shares"] == {"r-1": 90, "r-2": 10}
    assert state["rules"]["release_id"] == "r-2"
    assert own_labels("shop", "prod").items() <= found["metadata"]["labels"].items()


def test_what_is_known_costs_one_question(two: GatewayRouter, releases: Releases) -> None:
    before = releases.api.calls
    two.attach(releases.endpoints("r-1"))
    assert releases.api.calls == before + 1


def test_the_cohort_goes_back_with_the_others(two: GatewayRouter, releases: Releases) -> None:
    rules = MatchRules(
        preview={"X": "1"}, release_id="r-2", cohort_header=("X-Staff", "1"), cohort_on=True
    )
    two.match(rules)
    two.set_shares({"r-1": 90, "r-2": 10})
    assert len(route(releases)["spec"]["rules"]) == 3
    two.set_shares({"r-1": 100})
    assert len(route(releases)["spec"]["rules"]) == 2


def test_writes_at_once_are_all_there(
    two: GatewayRouter, routers: Callable[..., GatewayRouter], releases: Releases
) -> None:
    names = [f"r-{number}" for number in range(3, 7)]
    failed: list[Exception] = []
    for name in names:
        releases.run(name)

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


def test_a_write_that_was_overtaken_is_tried_again(two: GatewayRouter, kube: Kube) -> None:
    fault = kube.faults.add(verb="apply", plural="httproutes", code=409, times=3)
    two.set_shares({"r-1": 90, "r-2": 10})
    assert fault.times == 0
    assert two.shares() == {"r-1": 90, "r-2": 10}


def test_a_write_whose_answer_is_lost_counts(two: GatewayRouter, kube: Kube) -> None:
    kube.faults.add(verb="apply", plural="httproutes", lost=True)
    two.set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 0, "r-2": 100}


def test_an_api_that_is_away_is_no_share_of_nobody(two: GatewayRouter, kube: Kube) -> None:
    kube.faults.add(plural="httproutes", code=503, times=None)
    with pytest.raises(Unreachable):
        two.shares()


def test_a_controller_that_stands_still_is_told(
    two: GatewayRouter, routers: Callable[..., GatewayRouter], kube: Kube
) -> None:
    kube.controllers.gateways = False
    with pytest.raises(NotApplied, match=r"no controller took up .* see whether its controller"):
        routers(read_back_seconds=0.5).set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 0, "r-2": 100}  # the wish, to be taken up


def test_what_another_manager_holds_is_left_to_it(two: GatewayRouter, releases: Releases) -> None:
    two.set_shares({"r-1": 90, "r-2": 10})
    by_hand = route(releases)
    for backend in by_hand["spec"]["rules"][-1]["backendRefs"]:
        backend["weight"] = 50
    somebody(releases, by_hand)
    with pytest.raises(Conflict, match=r"conflict with .* left to them"):
        two.set_shares({"r-1": 100})
    assert two.shares() == {"r-1": 50, "r-2": 50}


def somebody(releases: Releases, body: Object) -> None:
    """Write it without saying that it is the whole of what we want: another manager's, to the
    API server."""
    kind = releases.api.kind_of(body)
    releases.api.replace(kind, releases.namespace, body)


def test_nothing_goes_where_nothing_is_ready(two: GatewayRouter, releases: Releases) -> None:
    releases.run("r-2", 0)
    with pytest.raises(NotApplied, match=r"r-2 has no ready endpoint .* unchanged"):
        two.set_shares({"r-1": 90, "r-2": 10})
    assert two.shares() == {"r-1": 100, "r-2": 0}


def test_endpoints_that_come_a_moment_later_are_waited_for(
    two: GatewayRouter, routers: Callable[..., GatewayRouter], releases: Releases
) -> None:
    releases.run("r-2", 0)
    coming = threading.Timer(0.3, lambda: releases.run("r-2", 1))
    coming.start()
    routers(ready_seconds=20.0).set_shares({"r-2": 100})
    coming.join()
    assert two.shares() == {"r-1": 0, "r-2": 100}


def test_traffic_goes_back_from_a_release_that_is_gone(
    two: GatewayRouter, releases: Releases
) -> None:
    two.set_shares({"r-1": 90, "r-2": 10})
    two.match(MatchRules(preview={"X-Preview": "1"}, release_id="r-2"))
    releases.remove("r-2")
    two.set_shares({"r-1": 100})
    two.match(None)
    two.detach("r-2")
    assert two.shares() == {"r-1": 100}


def test_a_release_that_is_not_there_is_not_taken_for_served(
    two: GatewayRouter, releases: Releases
) -> None:
    """Its Service alone is gone: the pods are ready by nobody's word."""
    releases.api.delete(SERVICES, releases.namespace, "r-2")
    with pytest.raises(NotApplied):
        two.set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 100, "r-2": 0}


def test_callers_in_the_cluster_follow_once_one_has_all(
    two: GatewayRouter, releases: Releases
) -> None:
    assert inside(releases) == {"dafnck/release": "r-1"}
    two.set_shares({"r-1": 50, "r-2": 50})
    assert inside(releases) == {"dafnck/release": "r-1"}
    two.set_shares({"r-2": 100})
    assert inside(releases) == {"dafnck/release": "r-2"}
    assert releases.ready("shop-prod") == releases.ready("r-2")
    two.set_shares({})
    assert inside(releases) == {"dafnck/release": "none"}
    wait_for(lambda: not releases.ready("shop-prod"), "nobody is reached")


def test_a_service_that_does_not_follow_undoes_nothing_and_is_led_there_later(
    two: GatewayRouter, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    held = releases.api.get(SERVICES, releases.namespace, "shop-prod")
    assert held is not None
    somebody(releases, held | {"spec": held["spec"] | {"selector": {"app": "theirs"}}})
    two.set_shares({"r-2": 100})
    assert two.shares() == {"r-1": 0, "r-2": 100}
    assert "callers inside the cluster are not led there yet" in caplog.text
    assert "conflict with" in caplog.text
    releases.api.delete(SERVICES, releases.namespace, "shop-prod")
    wait_for(lambda: not releases.api.get(SERVICES, releases.namespace, "shop-prod"), "it is gone")
    two.match(None)
    assert inside(releases) == {"dafnck/release": "r-2"}


def test_the_route_goes_with_its_last_release(router: GatewayRouter, releases: Releases) -> None:
    router.attach(releases.run("r-1"))
    router.detach("r-1")
    assert releases.api.get(HTTP_ROUTES, releases.namespace, "shop-prod") is None
    assert router.shares() == {}
    router.attach(releases.endpoints("r-1"))
    assert router.shares() == {"r-1": 0}


def test_a_route_of_somebody_else_is_left_alone(
    router: GatewayRouter, releases: Releases, gateway_place: Place
) -> None:
    meta = {"name": "shop-prod", "namespace": releases.namespace}
    theirs = {"hostnames": ["theirs.test"]}
    body = {"apiVersion": HTTP_ROUTES.version, "kind": "HTTPRoute", "metadata": meta}
    releases.api.apply(body | {"spec": theirs})
    with pytest.raises(NotApplied, match="dafnck did not write"):
        router.attach(releases.endpoints("r-1"))
    assert route(releases)["spec"]["hostnames"] == ["theirs.test"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "nowhere"}, "no Gateway .*/nowhere"),
        ({"listener": "nowhere"}, "no such listener; it has "),
    ],
)
def test_it_is_said_what_is_wrong_with_the_gateway(
    routers: Callable[..., GatewayRouter],
    releases: Releases,
    gateway_place: Place,
    change: dict[str, str],
    why: str,
) -> None:
    namespace, name, _ = gateway_place
    place = (namespace, change.get("name", name), change.get("listener"))
    router = routers(place, read_back_seconds=1.0)
    with pytest.raises(NotApplied, match=why):
        router.attach(releases.run("r-1"))
    assert "shop" in router.door()


def test_a_gateway_without_a_controller(
    routers: Callable[..., GatewayRouter], releases: Releases
) -> None:
    place = a_gateway(releases, "lonely", "nobody", {"namespaces": {"from": "All"}})
    with pytest.raises(NotApplied, match=r"no controller took up .*class nobody runs"):
        routers(place, read_back_seconds=1.0).attach(releases.run("r-1"))


def test_a_gateway_that_lets_no_routes_in(releases: Releases) -> None:
    place = a_gateway(releases, "closed", "nobody", {"namespaces": {"from": "Same"}})
    router = GatewayRouter(releases.api, "default", "gw", "x", place, read_back_seconds=0.5)
    with pytest.raises(NotApplied, match="lets in routes of the namespace default"):
        router.attach(releases.endpoints("r-1"))
    router.detach("r-1")


def a_gateway(releases: Releases, name: str, of_class: str, allowed: Object) -> Place:
    listener = {"name": "web", "protocol": "HTTP", "port": 8000, "allowedRoutes": allowed}
    meta = {"name": name, "namespace": releases.namespace}
    spec = {"gatewayClassName": of_class, "listeners": [listener]}
    body = {"apiVersion": GATEWAYS.version, "kind": "Gateway", "metadata": meta, "spec": spec}
    releases.api.apply(body)
    return releases.namespace, name, None


def test_where_it_is_reached(routers: Callable[..., GatewayRouter], releases: Releases) -> None:
    place = a_gateway(releases, "quiet", "nobody", {})
    with pytest.raises(NotApplied, match=r"no address .* kubernetes\.url"):
        routers(place).url()
    status = {"addresses": [{"type": "IPAddress", "value": "fd00::1"}], "conditions": []}
    releases.api.patch(GATEWAYS, releases.namespace, "quiet", {"status": status}, "status")
    assert routers(place).url() == "http://[fd00::1]:8000"
    assert routers(place, url="https://shop.test").url() == "https://shop.test"


def test_what_a_route_cannot_do_is_refused_before_traffic_moves(
    two: GatewayRouter, releases: Releases
) -> None:
    with pytest.raises(NotApplied, match=r"rollout\.sticky"):
        two.match(MatchRules(preview={}, release_id="r-2", sticky=True))
    with pytest.raises(NotApplied, match=r"route\.host"):
        two.attach(replace(releases.endpoints("r-3"), port=8001))
    assert two.shares() == {"r-1": 100, "r-2": 0}
