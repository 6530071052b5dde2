"""Deployments become ReplicaSets, ReplicaSets become pods."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

from kube_requests import ALPHABET, stamp
from kube_schema import Object
from kube_store import Answer, copied
from kube_writing import Look, Writing, counts, is_ready, owner_of, share_of

DEPLOYMENTS, REPLICA_SETS, PODS = ("apps", "deployments"), ("apps", "replicasets"), ("", "pods")
HASH, REVISION = "pod-template-hash", "deployment.kubernetes.io/revision"
COST = "controller.kubernetes.io/pod-deletion-cost"
AGAIN_SECONDS = 0.1


class Workloads:
    def __init__(
        self,
        writing: Writing,
        loop: asyncio.AbstractEventLoop,
        pace: Callable[[], float],
        look: Look,
    ) -> None:
        self._w, self._store = writing, writing.store
        self._loop, self._pace, self._look = loop, pace, look
        self._began: dict[tuple[str, int], float] = {}  # uid and generation -> when

    # -- Deployments ---------------------------------------------------------------------------

    def deployment(self, namespace: str, name: str) -> None:
        found = self._store.get(DEPLOYMENTS, (namespace, name))
        if found is None:
            return
        if "deletionTimestamp" not in found["metadata"]:
            self._roll(found)
            found = self._store.get(DEPLOYMENTS, (namespace, name)) or found
        self._w.status(DEPLOYMENTS, found, self._of_deployment(found))

    def _roll(self, found: Object) -> None:
        """The new ReplicaSet at once as large as it will be; the old ones end when it is well, or
        before (Recreate)."""
        meta, spec = found["metadata"], found["spec"]
        own, recreate = self._w.owned(found, REPLICA_SETS), spec["strategy"]["type"] == "Recreate"
        number = _hash(spec["template"])
        new = next((one for one in own if one["metadata"]["labels"].get(HASH) == number), None)
        old = [one for one in own if one is not new]
        busy = [one for one in old if one["spec"]["replicas"] or _status(one).get("replicas")]
        if new is None and not (recreate and busy):
            revision = 1 + max(map(_revision, own), default=0)
            body = _new_replica_set(found, number, revision)
            new = self._w.create(REPLICA_SETS, meta["namespace"], body)
            notes = (meta.get("annotations") or {}) | {REVISION: str(revision)}
            self._w.update(DEPLOYMENTS, found, annotations=notes)
            said = f"Scaled up replica set {new['metadata']['name']} from 0 to {spec['replicas']}"
            self._w.event(found, "Normal", "ScalingReplicaSet", said)
        if new is not None and new["spec"]["replicas"] != spec["replicas"]:
            self._w.update(REPLICA_SETS, new, replicas=spec["replicas"])
        fit = new is not None and _status(new).get("availableReplicas", 0) >= spec["replicas"]
        for one in old:
            if one["spec"]["replicas"] and (fit or recreate):
                self._w.update(REPLICA_SETS, one, replicas=0)
        idle = sorted((one for one in old if one not in busy), key=_revision)
        for one in idle[: max(0, len(idle) - spec.get("revisionHistoryLimit", 10))]:
            self._w.delete(REPLICA_SETS, one)

    def _of_deployment(self, found: Object) -> Object:
        own, spec = self._w.owned(found, REPLICA_SETS), found["spec"]
        number, wanted = _hash(spec["template"]), spec["replicas"]
        new = next((one for one in own if one["metadata"]["labels"].get(HASH) == number), None)
        names = ("replicas", "readyReplicas", "availableReplicas")
        have = {name: sum(_status(one).get(name, 0) for one in own) for name in names}
        have["updatedReplicas"] = updated = _status(new or {}).get("replicas", 0)
        available = have["availableReplicas"]
        have["unavailableReplicas"] = max(0, wanted - available)
        status: Object = {name: count for name, count in have.items() if count}
        status["observedGeneration"] = found["metadata"]["generation"]
        if available >= wanted - _unavailable(spec):
            words = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
        else:
            words = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        told = [_condition("Available", words[0] == "MinimumReplicasAvailable", *words)]
        if new is not None:
            complete = updated == have["replicas"] == available == wanted
            told.append(self._progress(found, new, complete))
            failed = [c for one in own for c in _status(one).get("conditions", [])]
            told += [
                _condition("ReplicaFailure", True, c["reason"], c["message"]) for c in failed[:1]
            ]
        before = _status(found).get("conditions") or []
        status["conditions"] = [_kept(one, before) for one in told]
        return status

    def _progress(self, found: Object, new: Object, complete: bool) -> Object:
        meta, which = found["metadata"], f'ReplicaSet "{new["metadata"]["name"]}"'
        if complete:
            said = f"{which} has successfully progressed."
            return _condition("Progressing", True, "NewReplicaSetAvailable", said)
        began = self._began.setdefault((meta["uid"], meta["generation"]), self._loop.time())
        seconds = found["spec"]["progressDeadlineSeconds"] * self._pace()
        left = began + seconds - self._loop.time()
        if left <= 0:
            said = f"{which} has timed out progressing."
            return _condition("Progressing", False, "ProgressDeadlineExceeded", said)
        self._look(DEPLOYMENTS, meta["namespace"], meta["name"], left + 0.01)
        return _condition("Progressing", True, "ReplicaSetUpdated", f"{which} is progressing.")

    # -- ReplicaSets ---------------------------------------------------------------------------

    def replica_set(self, namespace: str, name: str) -> None:
        found = self._store.get(REPLICA_SETS, (namespace, name))
        if found is None:
            return
        pods = [one for one in self._w.owned(found, PODS) if counts(one)]
        failure = ""
        if "deletionTimestamp" not in found["metadata"]:
            over = max(0, len(pods) - found["spec"]["replicas"])
            pods.sort(key=_dispensable)
            for pod in pods[:over]:
                self._w.delete(PODS, pod)
                said = f"Deleted pod: {pod['metadata']['name']}"
                self._w.event(found, "Normal", "SuccessfulDelete", said)
            pods = pods[over:]
            try:
                while len(pods) < found["spec"]["replicas"]:
                    pods.append(self._pod_of(found))
            except Answer as answer:
                failure = str(answer)
                self._w.event(found, "Warning", "FailedCreate", f"Error creating: {failure}")
                self._look(REPLICA_SETS, namespace, name, AGAIN_SECONDS)
        ready = sum(map(is_ready, pods))
        status: Object = {
            "replicas": len(pods),
            "observedGeneration": found["metadata"]["generation"],
        }
        status |= {"fullyLabeledReplicas": len(pods)} if pods else {}
        status |= {"readyReplicas": ready, "availableReplicas": ready} if ready else {}
        if failure:
            told = _condition("ReplicaFailure", True, "FailedCreate", failure)
            before = [one | {"lastUpdateTime": ""} for one in _status(found).get("conditions", [])]
            status["conditions"] = [_kept(told, before)]
            status["conditions"][0].pop("lastUpdateTime")
        self._w.status(REPLICA_SETS, found, status)

    def _pod_of(self, found: Object) -> Object:
        meta, body = found["metadata"], copied(found["spec"]["template"])
        body["metadata"] |= {
            "generateName": f"{meta['name']}-",
            "namespace": meta["namespace"],
            "ownerReferences": [owner_of(found)],
        }
        made = self._w.create(PODS, meta["namespace"], body)
        said = f"Created pod: {made['metadata']['name']}"
        self._w.event(found, "Normal", "SuccessfulCreate", said)
        return made


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _revision(found: Object) -> int:
    return int((found["metadata"].get("annotations") or {}).get(REVISION, 0))


def _dispensable(pod: Object) -> tuple[bool, bool, int, float]:
    """What goes first when there are too many."""
    meta = pod["metadata"]
    cost = int((meta.get("annotations") or {}).get(COST, 0))
    placed = bool(pod["spec"].get("nodeName"))
    return placed, is_ready(pod), cost, -float(meta["resourceVersion"])


def _hash(template: Object) -> str:
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:9])


def _new_replica_set(found: Object, number: str, revision: int) -> Object:
    meta, spec = found["metadata"], found["spec"]
    template, selector = copied(spec["template"]), copied(spec["selector"])
    labels = template["metadata"]["labels"] | {HASH: number}
    template["metadata"]["labels"] = labels
    selector["matchLabels"] = (selector.get("matchLabels") or {}) | {HASH: number}
    return {
        "metadata": {
            "name": f"{meta['name']}-{number}",
            "labels": labels,
            "annotations": {REVISION: str(revision)},
            "ownerReferences": [owner_of(found)],
        },
        "spec": {"replicas": spec["replicas"], "selector": selector, "template": template},
    }


def _unavailable(spec: Object) -> int:
    """So many may be."""
    if spec["strategy"]["type"] == "Recreate":
        return 0
    return share_of(spec["strategy"]["rollingUpdate"]["maxUnavailable"], spec["replicas"], up=False)


def _condition(what: str, status: bool, reason: str, message: str) -> Object:
    now = stamp()
    return {"type": what, "status": str(status), "lastTransitionTime": now, "lastUpdateTime": now,
            "reason": reason, "message": message}  # fmt: skip


def _kept(condition: Object, before: list[Object]) -> Object:
    """With its times as they were, when nothing of it changed."""
    held: Any = next((one for one in before if one["type"] == condition["type"]), None)
    if held is None:
        return condition
    if all(held.get(one) == condition[one] for one in ("status", "reason", "message")):
        return dict(held)
    if held["status"] == condition["status"]:
        condition["lastTransitionTime"] = held["lastTransitionTime"]
    return condition
