"""Traffic by Gateway API: one HTTPRoute a service and environment, any controller behind it.

Invariants: what the router was told travels in the same write as the route that comes of it, upon
the version that it was read from; a write counts when a controller says that it took up this
generation of the route; requests are sent to a release only while it has ready endpoints.

A service without any share has a main rule without backends: a gateway answers it with a 5xx.
"""

import json
import logging
import time
from collections.abc import Callable

from blocks.gateways import Gateway
from blocks.kube_api import HTTP_ROUTES, SERVICES, Conflict, HeldByOther, KubeApi, Object
from blocks.kube_services import (
    READY_SECONDS,
    SharedService,
    state_of,
    wait_ready,
)
from policy.errors import DafnckError, NotApplied
from policy.http_route import (
    MOST_BACKENDS,
    VERSION,
    conditions_of,
    hostnames,
    in_words,
    is_served,
    kept,
    refusal,
    rules_of,
    weights_of,
)
from policy.kube_names import STATE, own_labels, shared_name
from policy.release import Endpoints, MatchRules

log = logging.getLogger("dafnck")

CONFLICT_SECONDS = 5.0  # in which a write that others overtook is tried again
POLL_SECONDS = 0.05
# A controller that lost the API server asks it again after up to 30 s (client-go's reflectors).
TAKEN_UP_SECONDS = 40.0


class GatewayRouter:
    """TrafficRouter of one service in one environment."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        service: str,
        environment: str,
        gateway: tuple[str, str, str | None],
        url: str | None = None,
        *,
        ready_seconds: float = READY_SECONDS,
        read_back_seconds: float = TAKEN_UP_SECONDS,
    ) -> None:
        """`gateway`: namespace, name, listener. `url`: where it is reached, if not by the address
        in its status."""
        self.name = shared_name(service, environment)
        self.gateway = Gateway(api, gateway, url)
        self._api, self._namespace = api, namespace
        self._ready_seconds, self._read_back_seconds = ready_seconds, read_back_seconds
        self._labels = own_labels(service, environment)
        self._inside = SharedService(api, namespace, service, environment)

    # -- TrafficRouter -----------------------------------------------------------------------

    def attach(self, endpoints: Endpoints) -> None:
        release, host = endpoints.release_id, endpoints.host
        if endpoints.port is not None or not host:
            raise NotApplied(
                f"{release} has no host name; a Gateway tells services apart by these: write "
                "route.host instead of a port. Traffic is unchanged"
            )
        route = self._route()
        known = (state_of(route) or {}).get("backends", {})
        if route and known.get(release) == host:
            if route["spec"].get("parentRefs") == [self.gateway.reference()]:
                return

        def with_it(state: Object) -> None:
            state["backends"][release] = host
            if (count := len(state["backends"])) > MOST_BACKENDS:
                raise NotApplied(
                    f"{self.name} would have {count} releases at once and a route takes "
                    f"{MOST_BACKENDS}; traffic is unchanged. Stop old ones"
                )

        self._change(with_it)

    def detach(self, release_id: str) -> None:
        def without_it(state: Object) -> None:
            if share := state["shares"].get(release_id):
                raise NotApplied(f"{release_id} has {share}% of the traffic")
            state["backends"].pop(release_id, None)
            if (state["rules"] or {}).get("release_id") == release_id:
                state["rules"] = None

        self._change(without_it)

    def shares(self) -> dict[str, int]:
        route = self._route()
        if route is None:
            return {}
        return dict.fromkeys(self._state(route)["backends"], 0) | weights_of(route)

    def set_shares(self, shares: dict[str, int]) -> None:
        wanted = {release: share for release, share in shares.items() if share}

        def moved(state: Object) -> None:
            if unknown := set(wanted) - set(state["backends"]):
                raise NotApplied(f"{', '.join(unknown)} not attached; traffic is unchanged")
            state["shares"] = wanted
            if state["rules"] and state["rules"]["release_id"] not in wanted:
                state["rules"]["cohort_on"] = False  # the cohort goes back with the others

        moved(self._state(self._route()))  # refused at once, not after waiting for its endpoints
        wait_ready(self._api, self._namespace, wanted, self._ready_seconds)
        self._change(moved)

    def match(self, rules: MatchRules | None) -> None:
        if rules and (why := refusal(rules)):
            raise NotApplied(f"{why}. Traffic is unchanged")

        def ruled(state: Object) -> None:
            state["rules"] = kept(rules) if rules else None

        self._change(ruled)

    # -- for those who look ------------------------------------------------------------------

    def url(self) -> str:
        """Where the Gateway is reached. Raises NotApplied when nothing tells that."""
        return self.gateway.url()

    def door(self) -> str:
        """Where requests come in, in words."""
        hosts = (self._route() or {}).get("spec", {}).get("hostnames") or ["no host yet"]
        try:
            where = self.url()
        except DafnckError as error:
            where = str(error)
        return f"{', '.join(hosts)} at the Gateway {self.gateway} ({where}), HTTPRoute {self.name}"

    # -- the route ---------------------------------------------------------------------------

    def _route(self) -> Object | None:
        """As it is; one that is being deleted is waited for."""
        give_up = time.monotonic() + self._read_back_seconds
        while True:
            route = self._api.get(HTTP_ROUTES, self._namespace, self.name)
            if route is None or "deletionTimestamp" not in route["metadata"]:
                return route
            if time.monotonic() > give_up:
                held = ", ".join(route["metadata"].get("finalizers") or [])
                raise NotApplied(f"the HTTPRoute {self.name} is on its way out, held by {held}")
            time.sleep(POLL_SECONDS)

    def _state(self, route: Object | None) -> Object:
        if route is None:
            return {"backends": {}, "shares": {}, "rules": None}
        if (state := state_of(route)) is None:
            raise NotApplied(
                f"there is an HTTPRoute {self._namespace}/{self.name} that dafnck did not write; "
                "it was left alone. Remove it, or give the service another name"
            )
        return state

    def _change(self, change: Callable[[Object], None]) -> None:
        """`change` works on the state in place; what it raises leaves everything as it is."""
        give_up = time.monotonic() + CONFLICT_SECONDS
        while True:
            route = self._route()
            state = self._state(route)
            change(state)
            try:
                if state["backends"]:
                    written = self._api.apply(self._document(state, route))
                    break
                if route is not None:  # without a host name it would answer for all hosts
                    self._api.delete(HTTP_ROUTES, self._namespace, self.name)
                    self._route()
                return
            except HeldByOther:
                raise
            except Conflict:  # overtaken since it was read
                if time.monotonic() > give_up:
                    raise
                time.sleep(POLL_SECONDS)
        self._read_back(written)
        self._follow(state["shares"])

    def _document(self, state: Object, route: Object | None) -> Object:
        meta: Object = {
            "name": self.name,
            "namespace": self._namespace,
            "labels": self._labels,
            "annotations": {STATE: json.dumps(state, sort_keys=True)},
        }
        if route is not None:
            meta["resourceVersion"] = route["metadata"]["resourceVersion"]
        spec = {
            "parentRefs": [self.gateway.reference()],
            "hostnames": hostnames(state),
            "rules": rules_of(state),
        }
        return {"apiVersion": VERSION, "kind": "HTTPRoute", "metadata": meta, "spec": spec}

    def _follow(self, shares: dict[str, int]) -> None:
        """Callers inside the cluster come along once one release has all. Never in the way of what
        was done before; what fails is tried again after the next change."""
        if len(shares) > 1:
            return
        try:
            self._inside.lead_to(next(iter(shares), None), self._read_back_seconds)
        except DafnckError as error:
            log.warning("callers inside the cluster are not led there yet: %s", error)

    # -- read back ---------------------------------------------------------------------------

    def _read_back(self, route: Object) -> None:
        generation = route["metadata"]["generation"]
        give_up = time.monotonic() + self._read_back_seconds
        while True:
            told = conditions_of(route, self.gateway.reference(), generation, self._namespace)
            if is_served(told) or (told and self._lacks_idle_ones_only(route, told)):
                return
            if time.monotonic() > give_up:
                break
            time.sleep(POLL_SECONDS)
            if (now := self._route()) is None:
                raise NotApplied(f"the HTTPRoute {self.name} was deleted just now, not by dafnck")
            route = now
        trouble = self.gateway.trouble(self._namespace)
        if told:
            why = in_words(told) + (f" ({trouble})" if trouble else "")
            raise NotApplied(
                f"the Gateway {self.gateway} does not serve the HTTPRoute {self.name}: {why}. "
                "The wish stays in the route"
            )
        trouble = trouble or "its Gateway is there and programmed; see whether its controller runs"
        raise NotApplied(
            f"no controller took up the HTTPRoute {self.name} in {self._read_back_seconds:g}s: "
            f"{trouble}. The wish stays in the route; until it is taken up, the gateway goes on "
            "with what it had"
        )

    def _lacks_idle_ones_only(self, route: Object, told: dict[str, Object]) -> bool:
        """Is all that is wrong that releases without a share are gone from the cluster? Traffic
        goes back from such a one all the same."""
        if told["Accepted"]["status"] != "True":
            return False
        if told["ResolvedRefs"].get("reason") != "BackendNotFound":
            return False
        weights = weights_of(route)
        named = self._state(route)["backends"]
        gone = [r for r in named if self._api.get(SERVICES, self._namespace, r) is None]
        if not gone or any(weights.get(release) for release in gone):
            return False
        log.warning("%s: gone from the cluster, without a share", ", ".join(gone))
        return True
