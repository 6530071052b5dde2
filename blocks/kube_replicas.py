"""The pods of a release: in the order in which they came, so many of them, and none at last."""

import logging
import time
from contextlib import suppress

from blocks.kube_api import DEPLOYMENTS, PODS, Conflict, KubeApi, Object, Rejected
from blocks.kube_troubles import is_over, of_pod
from policy.errors import NotApplied
from policy.kube_names import RELEASE, own_labels

log = logging.getLogger("dafnck")

# The cluster removes the pods with the lowest of these first; one that has none counts as 0.
COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST = 1_000_000
CONFLICT_SECONDS = 10.0
POLL_SECONDS = 0.2
MARGIN_SECONDS = 30.0  # from the last signal until the cluster says that the pod is gone


class KubeReplicas:
    def __init__(self, api: KubeApi, namespace: str, service: str, environment: str) -> None:
        self._api, self._namespace = api, namespace
        self._labels = own_labels(service, environment)

    def all(self, release_id: str) -> list[Object]:
        """First those that came first; those on their way out too."""
        found = self._api.list(PODS, self._namespace, self._labels | {RELEASE: release_id})
        return sorted(found, key=_place)

    def scale(self, release_id: str, replicas: int) -> None:
        """The first ones stay where they are. Nothing is written when it is so already."""
        give_up = time.monotonic() + CONFLICT_SECONDS
        while True:
            found = self._api.get(DEPLOYMENTS, self._namespace, release_id)
            if found is None:
                raise NotApplied(f"the Deployment {release_id} is gone; nothing was started")
            now = found["spec"].get("replicas", 1)
            if now == replicas:
                return
            if now and replicas:
                self._number(release_id)
            body: Object = {"spec": {"replicas": replicas}}
            if replicas:
                body["metadata"] = {"resourceVersion": found["metadata"]["resourceVersion"]}
            # None is right whatever it was; and of one that gets no pods the status never rests.
            try:
                self._api.patch(DEPLOYMENTS, self._namespace, release_id, body)
                return
            except Conflict:  # the cluster writes its status on it at every change
                if time.monotonic() > give_up:
                    raise

    def _number(self, release_id: str) -> None:
        """Have each pod bear its place: times of creation are whole seconds."""
        pods = [pod for pod in self.all(release_id) if is_one(pod)]
        place = min([_cost(pod) for pod in pods if _cost(pod)], default=FIRST + 1)
        for pod in pods:
            if not _cost(pod):
                place -= 1
                body = {"metadata": {"annotations": {COST: str(place)}}}
                with suppress(Rejected):  # it is gone
                    self._api.patch(PODS, self._namespace, pod["metadata"]["name"], body)

    def wait_gone(self, release_id: str, seconds: float) -> None:
        """Raises NotApplied, naming them, when there are still pods after that time."""
        begin = time.monotonic()
        while left := [pod for pod in self.all(release_id) if not is_over(pod)]:
            waited = time.monotonic() - begin
            if waited > seconds:
                said = "; ".join(
                    f"{pod['metadata']['name']} on {pod['spec'].get('nodeName', 'no node')}"
                    f" ({trouble.words if (trouble := of_pod(pod)) else 'ready'})"
                    for pod in left
                )
                raise NotApplied(
                    f"pods of {release_id} do not end in {seconds:g}s: {said}. They get no "
                    "requests from the cluster; does their node answer? kubectl get nodes"
                )
            time.sleep(min(1.0, POLL_SECONDS + waited / 10))


def is_one(pod: Object) -> bool:
    """Counts as a replica: neither over nor on its way out."""
    return not is_over(pod) and "deletionTimestamp" not in pod["metadata"]


def _cost(pod: Object) -> int:
    try:
        return int((pod["metadata"].get("annotations") or {}).get(COST, 0))
    except ValueError:
        return 0


def _place(pod: Object) -> tuple[int, str, str]:
    meta = pod["metadata"]
    return -_cost(pod), meta.get("creationTimestamp") or "", meta["name"]
