"""The team's own manifests: applied with a release, and waited for before its replicas start.

So a Job among them has run before the first replica does. What comes with a release that runs
already is applied and not waited for, and keeps it from nothing: traffic must be able to go back.
"""

import logging
import time
from collections.abc import Iterable

from blocks.kube_api import Conflict, Kind, KubeApi, Object, Rejected
from blocks.kube_autoscalers import KubeAutoscalers
from policy.errors import DafnckError, NotApplied
from policy.manifests import extras
from policy.release import Release

log = logging.getLogger("dafnck")

POLL_SECONDS = 0.2
# In which the controller of a kind that is not Kubernetes' own says something of a new object.
SILENT_SECONDS = 2.0


class KubeExtras:
    def __init__(self, api: KubeApi, namespace: str, autoscalers: KubeAutoscalers) -> None:
        self._api, self._namespace, self._autoscalers = api, namespace, autoscalers

    def placed(self, release: Release, owner_uid: str) -> list[Object]:
        """As they are to be. Raises NotApplied for a kind that the cluster does not know."""
        return [self._placed(one) for one in extras(release, owner_uid)]

    def kinds(self, release: Release) -> list[str]:
        """`apps/v1/Deployment`, to find them again without the release."""
        named = {f"{one['apiVersion']}/{one['kind']}" for one in release.manifests}
        return sorted(named)

    def apply(self, release: Release, owner_uid: str, *, runs: bool) -> None:
        """Raises NotApplied when they are not taken, fail, or are not there within the release's
        start time; of a release that runs that is only told."""
        try:
            applied = [self._apply(one) for one in self.placed(release, owner_uid)]
            if not runs:
                self._wait(applied, release.run.start)
        except DafnckError as error:
            if not runs:
                raise
            log.warning("manifests of %s: %s; it runs on", release.id, error)

    def _placed(self, body: Object) -> Object:
        if self._api.kind_of(body).namespaced:
            return self._autoscalers.as_it_is(body)
        hidden = ("namespace", "ownerReferences")
        meta = {key: value for key, value in body["metadata"].items() if key not in hidden}
        return body | {"metadata": meta}

    def _apply(self, body: Object) -> Object:
        try:
            return self._api.apply(body)
        except Conflict:
            raise
        except Rejected as error:
            if "immutable" not in error.why:
                raise
            name = body["metadata"]["name"]
            raise Rejected(
                f"{error}. Have {{release}} in its name: {name}-{{release}}", error.why
            ) from None

    def _wait(self, applied: Iterable[Object], seconds: float) -> None:
        begin = time.monotonic()
        for body in applied:
            kind, name = self._api.kind_of(body), body["metadata"]["name"]
            while (lacks := self._lacks(kind, body, begin)) is not None:
                if time.monotonic() > begin + seconds:
                    raise NotApplied(
                        f"{body['kind']} {name} is not ready after {seconds:g}s (run: start): "
                        f"{lacks}; no replica was started, what serves still serves"
                    )
                time.sleep(POLL_SECONDS)
                body = self._api.get(kind, self._namespace, name) or body

    def _lacks(self, kind: Kind, body: Object, begin: float) -> str | None:
        """None when it is ready. Raises NotApplied for a Job that failed."""
        told = {one["type"]: one for one in (body.get("status") or {}).get("conditions") or []}
        if body["kind"] == "Job" and kind.version == "batch/v1":
            if (failed := told.get("Failed")) and failed["status"] == "True":
                raise NotApplied(
                    f"Job {body['metadata']['name']} failed: {failed.get('reason')}: "
                    f"{failed.get('message', '')}; no replica was started, what serves still serves"
                )
            done = told.get("Complete", {}).get("status") == "True"
            return None if done else "it has not ended"
        if kind.version == "apps/v1":
            return _rollout_lacks(body)
        group = kind.version.rpartition("/")[0]
        if "." not in group or group.endswith(".k8s.io"):
            return None
        if (ready := told.get("Ready")) is not None:
            words = f"{ready.get('reason')}: {ready.get('message', '')}"
            return None if ready["status"] == "True" else words
        return None if told or time.monotonic() > begin + SILENT_SECONDS else "no word of it yet"


def _rollout_lacks(body: Object) -> str | None:
    """Of a Deployment, StatefulSet or DaemonSet."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    if status.get("observedGeneration", 0) < body["metadata"].get("generation", 0):
        return "the cluster has not looked at it yet"
    if body["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        new, good = status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0)
    elif body["kind"] in ("Deployment", "StatefulSet"):
        wanted = spec.get("replicas", 1)
        good = status.get("availableReplicas", status.get("readyReplicas", 0))
        new = status.get("updatedReplicas", 0)
        if (
            body["kind"] == "StatefulSet"
            and spec.get("updateStrategy", {}).get("type") == "OnDelete"
        ):
            new = wanted
    else:
        return None
    if new < wanted or good < wanted:
        return f"{min(new, good)} of {wanted} of its pods are"
    return None
