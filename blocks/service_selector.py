"""Traffic without a gateway: the selector of the one Service that all releases share.

One release with all requests is selected by its own label. Two are selected together by the label
of their pair, and the cluster splits the requests evenly among their ready replicas: what was asked
for is kept beside the selector, what is given is the ratio of replicas (policy/replica_ratio.py).
A release without a share is reached by its own Service, which bears its id: that is the preview.

Invariants: the selector and what was asked travel in one write, upon the version that was read;
requests are sent to a release only while it has ready endpoints.
"""

import logging
import time
from collections.abc import Callable

from blocks.kube_api import PODS, SERVICES, Conflict, HeldByOther, KubeApi, Object
from blocks.kube_services import (
    NOBODY,
    POLL_SECONDS,
    READ_BACK_SECONDS,
    READY_SECONDS,
    SharedService,
    ready_pods,
    state_of,
    wait_ready,
)
from policy.errors import NotApplied
from policy.kube_names import RELEASE, own_labels, shared_name
from policy.matching import PREVIEW_HEADER
from policy.release import Endpoints, MatchRules
from policy.replica_ratio import far_off

log = logging.getLogger("dafnck")

CONFLICT_SECONDS = 5.0
PAIR = "pair.dafnck/"  # how labels of pairs begin


class SelectorRouter:
    """TrafficRouter of one service in one environment."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        service: str,
        environment: str,
        *,
        ready_seconds: float = READY_SECONDS,
        read_back_seconds: float = READ_BACK_SECONDS,
    ) -> None:
        self.name = shared_name(service, environment)
        self._api, self._namespace = api, namespace
        self._ready_seconds, self._read_back_seconds = ready_seconds, read_back_seconds
        self._labels = own_labels(service, environment)
        self._service = SharedService(api, namespace, service, environment)

    # -- TrafficRouter -----------------------------------------------------------------------

    def attach(self, endpoints: Endpoints) -> None:
        known = (state_of(self._service.read()) or {}).get("attached", [])
        if endpoints.release_id in known:
            return

        def with_it(state: Object) -> None:
            state["attached"] = sorted({*state["attached"], endpoints.release_id})

        self._change(with_it)

    def detach(self, release_id: str) -> None:
        def without_it(state: Object) -> None:
            if share := state["shares"].get(release_id):
                raise NotApplied(f"{release_id} has {share}% of the traffic")
            state["attached"] = [one for one in state["attached"] if one != release_id]

        self._change(without_it)

    def shares(self) -> dict[str, int]:
        found = self._service.read()
        if found is None:
            return {}
        state = _state(found)
        selector = found["spec"].get("selector") or {}
        attached = dict.fromkeys(state["attached"], 0)
        if selector == state["selector"]:
            return attached | dict(state["shares"])
        return attached | self._selected(selector, state["attached"])

    def set_shares(self, shares: dict[str, int]) -> None:
        wanted = {release: share for release, share in shares.items() if share}
        if len(wanted) > 2:
            raise NotApplied(
                f"a Service alone serves two releases at once at most, not {', '.join(wanted)}; "
                "traffic is unchanged"
            )

        def checked(state: Object) -> None:
            if unknown := set(wanted) - set(state["attached"]):
                raise NotApplied(f"{', '.join(unknown)} not attached; traffic is unchanged")

        checked(_state(self._service.read()))
        ready = wait_ready(self._api, self._namespace, wanted, self._ready_seconds)
        selector = self._selector(wanted)

        def moved(state: Object) -> None:
            checked(state)
            state["shares"], state["selector"] = wanted, selector

        self._change(moved)
        self._service.wait_for(wanted, self._read_back_seconds)
        if doubt := far_off(wanted, {release: len(pods) for release, pods in ready.items()}):
            log.warning("%s: %s", self.name, doubt)

    def match(self, rules: MatchRules | None) -> None:
        """The preview needs no rule: a release is reached by its own Service. Clients stick by
        their address, to a replica. Raises NotApplied for a cohort and a header of one's own."""
        if rules and (why := _refusal(rules)):
            raise NotApplied(
                f"{why}: a Service alone does not look into requests. Leave it out, or name a "
                "gateway as kubernetes.gateway; traffic is unchanged"
            )

        sticky = bool(rules and rules.sticky)

        def ruled(state: Object) -> None:
            state["sticky"] = sticky

        if _state(self._service.read())["sticky"] != sticky:
            self._change(ruled)

    # -- for those who look ------------------------------------------------------------------

    def url(self, release_id: str | None = None) -> str:
        """Where it, or one release of it, is reached in the cluster and on its nodes: by address,
        names are not known everywhere. Raises NotApplied when there is no such Service."""
        name = release_id or self.name
        found = self._api.get(SERVICES, self._namespace, name)
        if found is None:
            raise NotApplied(f"there is no Service {name} in {self._namespace}")
        address = found["spec"]["clusterIP"]
        return f"http://[{address}]" if ":" in address else f"http://{address}"

    def door(self) -> str:
        """Where requests come in, in words."""
        return f"Service {self.name} of the namespace {self._namespace}"

    # -- the Service -------------------------------------------------------------------------

    def _change(self, change: Callable[[Object], None]) -> None:
        """`change` works on the state in place; what it raises leaves everything as it is."""
        give_up = time.monotonic() + CONFLICT_SECONDS
        while True:
            found = self._service.read()
            state = _state(found)
            change(state)
            version = found["metadata"]["resourceVersion"] if found else None
            try:
                self._service.apply(
                    state["selector"], state=state, sticky=state["sticky"], version=version
                )
                return
            except HeldByOther:
                raise
            except Conflict:  # overtaken since it was read
                if time.monotonic() > give_up:
                    raise
                time.sleep(POLL_SECONDS)

    def _selector(self, wanted: dict[str, int]) -> dict[str, str]:
        if not wanted:
            return NOBODY
        if len(wanted) == 1:
            return {RELEASE: next(iter(wanted))}
        return self._pair(*wanted)

    def _pair(self, one: str, other: str) -> dict[str, str]:
        """The label that the pods of both bear and no others. Raises NotApplied."""
        bearers: dict[str, set[str]] = {}  # label of a pair -> releases
        in_common: dict[str, set[str]] = {}  # release -> labels that all of its pods bear
        for pod in self._api.list(PODS, self._namespace, self._labels):
            if "deletionTimestamp" in pod["metadata"]:
                continue
            labels = pod["metadata"]["labels"]
            release = labels.get(RELEASE, "")
            pairs = {name for name in labels if name.startswith(PAIR)}
            in_common[release] = in_common.get(release, pairs) & pairs
            for name in pairs:
                bearers.setdefault(name, set()).add(release)
        both = in_common.get(one, set()) & in_common.get(other, set())
        fitting = sorted(name for name in both if bearers[name] == {one, other})
        if fitting:
            return {fitting[0]: "true"}
        others = {release for name in both for release in bearers[name] - {one, other}}
        why = (
            f"the pods of {', '.join(sorted(others))} would be served with them: stop these first"
            if others
            else "their pods bear no label of a pair, since neither was started to follow the other"
        )
        raise NotApplied(
            f"a Service alone cannot serve {one} and {other} together: {why}; or shift all at once "
            "(blue-green). Traffic is unchanged"
        )

    def _selected(self, selector: dict[str, str], attached: list[str]) -> dict[str, int]:
        """Who is served by a selector that we did not write, in percent of its ready replicas."""
        if selector == NOBODY:
            return {}
        if set(selector) == {RELEASE}:
            return {selector[RELEASE]: 100}
        pods = ready_pods(self._api, self._namespace, self.name)
        of = {name: len(pods & ready_pods(self._api, self._namespace, name)) for name in attached}
        return {name: round(100 * count / len(pods)) for name, count in of.items() if count}


def _state(found: Object | None) -> Object:
    """{"attached": ids, "shares": id -> percent, "selector": that of these shares, "sticky"}"""
    state = state_of(found) or {}
    return {"attached": [], "shares": {}, "selector": NOBODY, "sticky": False} | state


def _refusal(rules: MatchRules) -> str | None:
    if rules.cohort_header or rules.cohort_cookie:
        return "a cohort cannot be told apart"
    if rules.preview and rules.preview != {PREVIEW_HEADER: rules.release_id}:
        return f"no preview by {', '.join(rules.preview)}"
    return None
