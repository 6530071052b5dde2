"""Statuses of Gateways and routes, where no real controller writes them."""

from typing import Any

from kube_requests import stamp
from kube_schema import GATEWAY_API, Object
from kube_store import Store

KINDS = ("HTTPRoute", "GRPCRoute")
CONTROLLER = "traefik.io/gateway-controller"


def names_backend(route: Object, service: Object) -> bool:
    meta, rules = service["metadata"], route["spec"].get("rules") or []
    backends = [one for rule in rules for one in rule.get("backendRefs") or []]
    return any(one["name"] == meta["name"] for one in backends)


def gateway_status(store: Store, gateway: Object) -> Object | None:
    if not _ours(store, gateway):
        return None
    generation, before = gateway["metadata"]["generation"], gateway.get("status") or {}
    told = {one["name"]: one for one in before.get("listeners") or []}
    routes = [one for one in store.all((GATEWAY_API, "httproutes")) if _points(one, gateway)]
    listeners = []
    for one in gateway["spec"]["listeners"]:
        held = told.get(one["name"], {}).get("conditions") or []
        listeners.append({
            "name": one["name"],
            "attachedRoutes": len(routes),
            "supportedKinds": [{"group": GATEWAY_API, "kind": it} for it in KINDS],
            "conditions": [_told(held, what, "True", what, "No error found", generation)
                           for what in ("Accepted", "ResolvedRefs", "Programmed")],
        })  # fmt: skip
    held = before.get("conditions") or []
    return {
        "addresses": [{"type": "IPAddress", "value": "127.0.0.1"}],
        "conditions": [
            _told(held, what, "True", what, f"Gateway successfully {done}", generation)
            for what, done in (("Accepted", "scheduled"), ("Programmed", "programmed"))
        ],
        "listeners": listeners,
    }  # fmt: skip


def route_status(store: Store, route: Object) -> Object | None:
    meta, parents = route["metadata"], []
    before = {
        str(one["parentRef"]): one for one in (route.get("status") or {}).get("parents") or []
    }
    for reference in route["spec"].get("parentRefs") or []:
        where = (reference.get("namespace", meta["namespace"]), reference["name"])
        gateway = store.get((GATEWAY_API, "gateways"), where)
        if gateway is None or not _ours(store, gateway):
            continue
        held = before.get(str(reference), {}).get("conditions") or []
        names = {one["name"] for one in gateway["spec"]["listeners"]}
        fits = reference.get("sectionName") in (None, *names)
        said = (
            ("True", "Accepted", "No error found")
            if fits
            else ("False", "NoMatchingParent", "No matching listener")
        )
        accepted = _told(held, "Accepted", *said, meta["generation"])
        resolved = _told(held, "ResolvedRefs", *_backends(store, route), meta["generation"])
        parents.append(
            {
                "parentRef": reference,
                "controllerName": CONTROLLER,
                "conditions": [accepted, resolved],
            }
        )
    return {"parents": parents} if parents or before else None


def _backends(store: Store, route: Object) -> tuple[str, str, str]:
    namespace = route["metadata"]["namespace"]
    for rule in route["spec"].get("rules") or []:
        for backend in rule.get("backendRefs") or []:
            where = (backend.get("namespace", namespace), backend["name"])
            if where[0] != namespace and not _granted(store, namespace, where[0]):
                return (
                    "False",
                    "RefNotPermitted",
                    f"backend {where[0]}/{where[1]} is not permitted by a ReferenceGrant",
                )
            if store.get(("", "services"), where) is None:
                return (
                    "False",
                    "BackendNotFound",
                    f"Cannot load HTTPBackendRef {where[0]}/{where[1]}: service not found",
                )
    return "True", "ResolvedRefs", ""


def _granted(store: Store, from_: str, to: str) -> bool:
    grants = store.all((GATEWAY_API, "referencegrants"), to)
    return any(one["namespace"] == from_ for grant in grants for one in grant["spec"]["from"])


def _ours(store: Store, gateway: Object) -> bool:
    found = store.get((GATEWAY_API, "gatewayclasses"), ("", gateway["spec"]["gatewayClassName"]))
    return found is not None and found["spec"]["controllerName"] == CONTROLLER


def _points(route: Object, gateway: Object) -> bool:
    meta = gateway["metadata"]
    return any(
        (one.get("namespace", route["metadata"]["namespace"]), one["name"])
        == (meta["namespace"], meta["name"])
        for one in route["spec"].get("parentRefs") or []
    )


def _told(
    before: list[Object], what: str, status: str, reason: str, message: str, generation: int
) -> Object:
    new: dict[str, Any] = {
        "type": what,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": stamp(),
    }
    held = next((one for one in before if one["type"] == what), None)
    if held and all(held.get(k) == v for k, v in new.items() if k != "lastTransitionTime"):
        return held
    return new
