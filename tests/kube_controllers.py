"""What a cluster does by itself, event by event.

Everything that one change concerns is looked at again, one thing after the other, in the thread of
the cluster; each look compares what is with what should be, and writes the difference.
"""

import asyncio
import logging
from collections.abc import Callable

from kube_access import quota_status
from kube_garbage import Garbage
from kube_gateways import gateway_status, names_backend, route_status
from kube_requests import Requests, family
from kube_schema import GATEWAY_API, Object
from kube_slices import ByLabel, slices
from kube_store import Answer, Change, Family, selects
from kube_workloads import AGAIN_SECONDS, DEPLOYMENTS, PODS, REPLICA_SETS, Workloads
from kube_writing import HOW, Writing, counts, is_ready, share_of

log = logging.getLogger("kube")

Key = tuple[Family, str, str]  # of what to look at
SERVICES, NAMESPACES, ACCOUNTS = ("", "services"), ("", "namespaces"), ("", "serviceaccounts")
SLICES = ("discovery.k8s.io", "endpointslices")
BUDGETS, QUOTAS = ("policy", "poddisruptionbudgets"), ("", "resourcequotas")
GATEWAYS, ROUTES = (GATEWAY_API, "gateways"), (GATEWAY_API, "httproutes")
GRANTS, CLASSES = (GATEWAY_API, "referencegrants"), (GATEWAY_API, "gatewayclasses")


class Controllers:
    def __init__(
        self, requests: Requests, loop: asyncio.AbstractEventLoop, pace: Callable[[], float]
    ) -> None:
        self._w, self._store, self._loop = Writing(requests), requests.store, loop
        self.event = self._w.event
        self.gateways = True  # write statuses of Gateways and routes: there is no real controller
        self.slice_seconds = 0.0  # by which EndpointSlices lag behind the pods
        self.off: set[str] = set()  # plurals that nobody looks after
        self._pods, self._services = ByLabel(), ByLabel()
        self._todo: dict[Key, None] = {}
        self._looking = False
        self._garbage = Garbage(self._w, self.look)
        workloads = Workloads(self._w, loop, pace, self.look)
        self._acts: dict[Family, Callable[[str, str], None]] = {
            DEPLOYMENTS: workloads.deployment,
            REPLICA_SETS: workloads.replica_set,
            SERVICES: self._service,
            NAMESPACES: self._namespace,
            QUOTAS: self._quota,
            BUDGETS: self._budget,
            GATEWAYS: self._gateway,
            ROUTES: self._route,
        }
        self._store.everything.append(self._seen)

    # -- what concerns what --------------------------------------------------------------------

    def _seen(self, which: Family, change: Change) -> None:
        self._loop.call_soon_threadsafe(self._concerns, which, change)

    def _concerns(self, which: Family, change: Change) -> None:
        meta = change.obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if which in self._acts:
            self.look(which, namespace, name)
        for owner in meta.get("ownerReferences") or []:
            for of in (DEPLOYMENTS, REPLICA_SETS):
                if owner["kind"].lower() + "s" == of[1]:
                    self.look(of, namespace, owner["name"])
        if which in (PODS, SERVICES):
            self._selected(which, change, namespace)
        if which in (GATEWAYS, ROUTES, SERVICES, GRANTS, CLASSES):
            self._routed(which, change)
        if change.type != "MODIFIED" or which == PODS:
            for quota in self._store.all(QUOTAS, namespace) if namespace else []:
                self.look(QUOTAS, namespace, quota["metadata"]["name"])
        self._garbage.seen(which, change)

    def _selected(self, which: Family, change: Change, namespace: str) -> None:
        """A pod concerns the Services and budgets that select it."""
        name, gone = change.obj["metadata"]["name"], change.type == "DELETED"
        if which == SERVICES:
            selector = change.obj["spec"].get("selector") or {}
            self._services.note(namespace, name, {} if gone else dict(list(selector.items())[:1]))
            return
        both = [one["metadata"].get("labels") or {} for one in (change.obj, change.before) if one]
        self._pods.note(namespace, name, {} if gone else both[0])
        for labels in both:
            for service in self._services.having_any(namespace, labels):
                self.look(SERVICES, namespace, service, self.slice_seconds)
        for budget in self._store.all(BUDGETS, namespace):
            if any(selects(budget["spec"].get("selector"), labels) for labels in both):
                self.look(BUDGETS, namespace, budget["metadata"]["name"])

    def _routed(self, which: Family, change: Change) -> None:
        if not self.gateways or (which == SERVICES and change.type == "MODIFIED"):
            return
        if which in (ROUTES, CLASSES):
            for one in self._store.all(GATEWAYS):
                self.look(GATEWAYS, one["metadata"]["namespace"], one["metadata"]["name"])
        for one in self._store.all(ROUTES) if which != ROUTES else []:
            if which != SERVICES or names_backend(one, change.obj):
                self.look(ROUTES, one["metadata"]["namespace"], one["metadata"]["name"])

    def look(self, which: Family, namespace: str, name: str, later: float = 0) -> None:
        if later:
            self._loop.call_later(later, self.look, which, namespace, name)
            return
        self._todo[which, namespace, name] = None
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """One thing, then others have their turn."""
        self._looking = bool(self._todo)
        if not self._todo:
            return
        which, namespace, name = next(iter(self._todo))
        del self._todo[which, namespace, name]
        self._loop.call_soon(self._work)
        if which[1] in self.off:
            return
        try:
            with self._store.lock:
                if which[0] == "gc":
                    self._garbage.collect(which[1], namespace, name)
                else:
                    self._acts[which](namespace, name)
        except Answer as answer:
            log.debug("%s %s/%s again: %s", which[1], namespace, name, answer)
            self.look(which, namespace, name, AGAIN_SECONDS)

    # -- Services ------------------------------------------------------------------------------

    def _service(self, namespace: str, name: str) -> None:
        service = self._store.get(SERVICES, (namespace, name))
        if service is None or not (selector := service["spec"].get("selector")):
            return  # without a selector its EndpointSlices stay as they were
        names = self._pods.having_all(namespace, selector)
        pods = [self._store.get(PODS, (namespace, one)) for one in sorted(names)]
        wanted = slices(service, [one for one in pods if one is not None])
        every = self._w.owned(service, SLICES)
        there = [one for one in every if "deletionTimestamp" not in one["metadata"]]
        for before, body in zip(there, wanted, strict=False):
            self._sliced(before, body)
        for body in wanted[len(there) :]:
            self._w.create(SLICES, namespace, body)
        for before in there[len(wanted) :]:
            self._w.delete(SLICES, before)

    def _sliced(self, before: Object, body: Object) -> None:
        fields = {name: body[name] for name in ("endpoints", "ports")}
        labels = body["metadata"]["labels"]
        if fields.items() <= before.items() and before["metadata"]["labels"] == labels:
            return
        meta = before["metadata"] | {"labels": labels}
        kind, where = self._w.kind(SLICES), (meta["namespace"], meta["name"])
        self._w.requests.update(kind, where, {**before, **fields, "metadata": meta}, HOW)

    # -- quotas, budgets, namespaces -----------------------------------------------------------

    def _quota(self, namespace: str, name: str) -> None:
        if (found := self._store.get(QUOTAS, (namespace, name))) is not None:
            self._w.status(QUOTAS, found, quota_status(self._store, found))

    def _budget(self, namespace: str, name: str) -> None:
        found = self._store.get(BUDGETS, (namespace, name))
        if found is None:
            return
        spec, every = found["spec"], self._store.all(PODS, namespace)
        pods = [
            p
            for p in every
            if selects(spec.get("selector"), p["metadata"].get("labels")) and counts(p)
        ]
        healthy = sum(map(is_ready, pods))
        if (most := spec.get("maxUnavailable")) is not None:
            least = max(0, len(pods) - share_of(most, len(pods), up=True))
        else:
            least = share_of(spec.get("minAvailable", 0), len(pods), up=True)
        status = {
            "currentHealthy": healthy,
            "desiredHealthy": least,
            "expectedPods": len(pods),
            "disruptionsAllowed": max(0, healthy - least),
            "observedGeneration": found["metadata"]["generation"],
        }
        self._w.status(BUDGETS, found, status)

    def _namespace(self, namespace: str, name: str) -> None:
        found = self._store.get(NAMESPACES, ("", name))
        if found is None:
            return
        if "deletionTimestamp" not in found["metadata"]:
            if self._store.get(ACCOUNTS, (name, "default")) is None:
                self._w.create(ACCOUNTS, name, {"metadata": {"name": "default"}})
            return
        left = False
        for kind in self._w.requests.kinds():
            for one in self._store.all(family(kind), name) if kind.namespaced else []:
                left = True
                if "deletionTimestamp" not in one["metadata"]:
                    self._w.delete(family(kind), one)
        if left:
            self.look(NAMESPACES, "", name, AGAIN_SECONDS / 5)
        else:
            self._store.remove(NAMESPACES, ("", name))

    # -- Gateways ------------------------------------------------------------------------------

    def _gateway(self, namespace: str, name: str) -> None:
        found = self._store.get(GATEWAYS, (namespace, name))
        if self.gateways and found and (status := gateway_status(self._store, found)):
            self._w.status(GATEWAYS, found, status)

    def _route(self, namespace: str, name: str) -> None:
        found = self._store.get(ROUTES, (namespace, name))
        if self.gateways and found and (status := route_status(self._store, found)):
            self._w.status(ROUTES, found, status)
