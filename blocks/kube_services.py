"""Services of a cluster, and which pods they send requests to, as their EndpointSlices say.

Invariant: the Service that all releases share always has a selector. Without one the cluster
leaves its EndpointSlices as they were, and what served last would go on serving.
"""

import json
import time
from collections.abc import Collection, Iterable
from typing import Any

from blocks.kube_api import ENDPOINT_SLICES, SERVICES, KubeApi, Object
from policy.errors import NotApplied
from policy.kube_names import PORT_NAME, RELEASE, SERVICE_PORT, STATE, own_labels, shared_name

POLL_SECONDS = 0.05
READY_SECONDS = 5.0  # in which EndpointSlices follow the pods; it takes some tenths of a second
READ_BACK_SECONDS = 10.0
SERVICE_OF_SLICE = "kubernetes.io/service-name"
NOBODY = {RELEASE: "none"}  # a selector that fits no pod


def ready_pods(api: KubeApi, namespace: str, service: str) -> frozenset[str]:
    """The pods that a Service sends new requests to: ready, and not on their way out."""
    pods = set()
    for part in api.list(ENDPOINT_SLICES, namespace, {SERVICE_OF_SLICE: service}):
        for endpoint in part.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            # "Ready" that is not told means yes, by the API's own words.
            if conditions.get("ready") is not False and not conditions.get("terminating"):
                pod = (endpoint.get("targetRef") or {}).get("name")
                pods.add(pod or endpoint["addresses"][0])
    return frozenset(pods)


def wait_ready(
    api: KubeApi, namespace: str, releases: Iterable[str], seconds: float = READY_SECONDS
) -> dict[str, frozenset[str]]:
    """-> the ready pods of each release, by its own Service. Raises NotApplied when one has none:
    traffic must not go there."""
    give_up = time.monotonic() + seconds
    wanted = list(releases)
    while True:
        ready = {release: ready_pods(api, namespace, release) for release in wanted}
        if all(ready.values()):
            return ready
        if time.monotonic() > give_up:
            lacking = ", ".join(release for release, pods in ready.items() if not pods)
            raise NotApplied(
                f"{lacking} has no ready endpoint in the cluster's EndpointSlices, for "
                f"{seconds:g}s; traffic is unchanged. Why, tells kubectl -n {namespace} get "
                f"pods,endpointslices -l {RELEASE}={lacking.partition(',')[0]}"
            )
        time.sleep(POLL_SECONDS)


class SharedService:
    """The Service that callers inside the cluster know, whatever release answers."""

    def __init__(self, api: KubeApi, namespace: str, service: str, environment: str) -> None:
        self.name = shared_name(service, environment)
        self._api, self._namespace = api, namespace
        self._labels = own_labels(service, environment)

    def read(self) -> Object | None:
        return self._api.get(SERVICES, self._namespace, self.name)

    def apply(
        self,
        selector: dict[str, str],
        *,
        state: dict[str, Any] | None = None,
        sticky: bool = False,
        version: str | None = None,
    ) -> Object:
        """Have it select so. `state`: kept with it, in the same write. `version`: raises Conflict
        when it was changed since. Raises Conflict also for what another manager holds."""
        meta: Object = {"name": self.name, "namespace": self._namespace, "labels": self._labels}
        if state is not None:
            meta["annotations"] = {STATE: json.dumps(state, sort_keys=True)}
        if version is not None:
            meta["resourceVersion"] = version
        # By its name, since releases may listen on different ports.
        port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
        spec: Object = {"selector": selector, "ports": [port]}
        if sticky:
            spec["sessionAffinity"] = "ClientIP"
        body = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        return self._api.apply(body)

    def lead_to(self, release_id: str | None, seconds: float = READ_BACK_SECONDS) -> None:
        """Callers inside the cluster reach this release, or nobody; read back. A no-op, by one
        question, when they do. Raises NotApplied."""
        found = self.read()
        selector = {RELEASE: release_id} if release_id else NOBODY
        if found is not None and found["spec"].get("selector") == selector:
            return
        self.apply(selector)
        self.wait_for([release_id] if release_id else [], seconds)

    def wait_for(self, releases: Collection[str], seconds: float = READ_BACK_SECONDS) -> None:
        """Until it sends requests to pods of these releases alone, and to at least one of each.

        Raises NotApplied when its EndpointSlices do not say so in time."""
        give_up = time.monotonic() + seconds
        while True:
            theirs = {name: ready_pods(self._api, self._namespace, name) for name in releases}
            pods = ready_pods(self._api, self._namespace, self.name)
            strange = pods - frozenset().union(*theirs.values())
            absent = [name for name, own in theirs.items() if not own & pods]
            if not strange and not absent:
                return
            if time.monotonic() > give_up:
                said = [f"{name} is not among its endpoints" for name in absent]
                said += [f"{', '.join(sorted(strange))} still is"] if strange else []
                raise NotApplied(
                    f"the Service {self.name} did not take up its new selector in {seconds:g}s: "
                    f"{'; '.join(said)}"
                )
            time.sleep(POLL_SECONDS)


def state_of(found: Object | None) -> dict[str, Any] | None:
    """What a router wrote down on an object; None when it did not. Raises NotApplied."""
    meta = (found or {}).get("metadata", {})
    text = (meta.get("annotations") or {}).get(STATE)
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except ValueError:
        raise NotApplied(
            f"the annotation {STATE} of {meta.get('name')} was changed by hand and cannot be read; "
            "traffic is unchanged. Remove the object and release again"
        ) from None
