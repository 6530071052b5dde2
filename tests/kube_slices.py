"""Which pods a Service sends requests to, as EndpointSlices."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from kube_schema import Object

MOST = 100  # endpoints in a slice


class ByLabel:
    """Names of objects by their labels, so that nobody looks through all of them."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._labels: dict[tuple[str, str], dict[str, str]] = {}

    def note(self, namespace: str, name: str, labels: Mapping[str, str]) -> None:
        """That it has these labels now, and no others."""
        for key, value in self._labels.pop((namespace, name), {}).items():
            self._names[namespace, key, value].discard(name)
        self._labels[namespace, name] = dict(labels)
        for key, value in labels.items():
            self._names[namespace, key, value].add(name)

    def having_any(self, namespace: str, labels: Mapping[str, str]) -> Iterator[str]:
        for key, value in labels.items():
            yield from list(self._names.get((namespace, key, value), ()))

    def having_all(self, namespace: str, labels: Mapping[str, str]) -> set[str]:
        every = [self._names.get((namespace, *one), set()) for one in labels.items()]
        return set.intersection(*every) if every else set()


def slices(service: Object, pods: list[Object]) -> list[Object]:
    """As the controller writes them: pods whose ports are the same share one."""
    meta, spec = service["metadata"], service["spec"]
    selector = spec["selector"]
    groups: dict[str, tuple[list[Object], list[Object]]] = {}
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        status = pod.get("status") or {}
        if not selector.items() <= labels.items() or not status.get("podIP"):
            continue
        if status.get("phase") in ("Succeeded", "Failed"):
            continue
        ports = [one for one in (_port(port, pod) for port in spec.get("ports") or []) if one]
        group = groups.setdefault(str(ports), (ports, []))
        group[1].append(_endpoint(pod, bool(spec.get("publishNotReadyAddresses"))))
    found = [(p, e[at : at + MOST]) for p, e in groups.values() for at in range(0, len(e), MOST)]
    return [_slice(meta, ports, endpoints) for ports, endpoints in found or [([], [])]]


def _endpoint(pod: Object, always: bool) -> Object:
    meta, status = pod["metadata"], pod["status"]
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
    serving = conditions.get("Ready") == "True" or always
    ending = "deletionTimestamp" in meta
    return {
        "addresses": [status["podIP"]],
        "conditions": {
            "ready": always or (serving and not ending),
            "serving": serving,
            "terminating": ending,
        },
        "nodeName": pod["spec"].get("nodeName", ""),
        "targetRef": {
            "kind": "Pod",
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
    }


def _port(port: Object, pod: Object) -> Object | None:
    number: Any = port["targetPort"]
    if isinstance(number, str):
        named = [
            p
            for c in pod["spec"]["containers"]
            for p in c.get("ports") or []
            if p.get("name") == number
        ]
        if not named:
            return None
        number = named[0]["containerPort"]
    kept = {name: port[name] for name in ("appProtocol",) if name in port}
    return {"name": port.get("name", ""), "port": number, "protocol": port["protocol"], **kept}


def _slice(meta: Object, ports: list[Object], endpoints: list[Object]) -> Object:
    labels = {
        **(meta.get("labels") or {}),
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": meta["name"],
    }
    owner = {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"],
             "controller": True, "blockOwnerDeletion": True}  # fmt: skip
    return {
        "metadata": {
            "generateName": f"{meta['name']}-",
            "labels": labels,
            "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    }
