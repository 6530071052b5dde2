"""Why replicas are not ready, in the cluster's own words: of Deployments, pods and events."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policy.kube_names import CONTAINER

Object = dict[str, Any]

CRASHES = 3  # starts without success after which a replica is given up
# Waiting for these is of no use: somebody has to change something.
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
NO_IMAGE = re.compile(
    r"not found|manifest unknown|does not exist|access denied|unauthorized|forbidden"
    r"|invalid reference format",
    re.IGNORECASE,
)
AROUND = re.compile(r'failed to (?:pull and unpack image|resolve reference) "[^"]*": ')
NOT_CREATED = re.compile(r'^(?:Error creating: )?pods "[^"]*" is forbidden: ')
# Of a moment in the life of every pod; the events say more.
PASSING = ("ContainerCreating", "PodInitializing", "")
EVENTS = (
    "FailedMount",
    "FailedAttachVolume",
    "FailedCreatePodSandBox",
    "NodeNotReady",
    "Unhealthy",
    "Failed",
    "BackOff",
    "FailedScheduling",
    "FailedPreStopHook",
)


@dataclass(frozen=True)
class Trouble:
    words: str
    fatal: bool = False  # it does not heal by waiting
    ended: bool = False  # a program that ended; its last words are in the log
    vague: bool = False  # the events of the pod say more


def of_deployment(deployment: Object) -> Trouble | None:
    """Why the cluster does not make the pods that are wanted: a quota, a policy, an admission."""
    status = deployment.get("status") or {}
    for one in status.get("conditions") or []:
        if one["type"] == "ReplicaFailure" and one["status"] == "True":
            said = NOT_CREATED.sub("", one.get("message", ""))
            refused = "violates PodSecurity" in said or "denied the request" in said
            return Trouble(f"the cluster makes no pod: {said or one.get('reason')}", fatal=refused)
    seen = status.get("observedGeneration", 0)
    if seen < deployment["metadata"].get("generation", 0):
        return Trouble("the cluster has not looked at the Deployment yet")
    return None


def of_pod(pod: Object) -> Trouble | None:
    """None when it is ready."""
    if is_ready(pod):
        return None
    status = pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason"):
        return Trouble(f"{status['reason']}: {status.get('message', '')}".rstrip(": "))
    for one in _containers(pod):
        if (found := _of_container(one)) is not None:
            return found
    for one in status.get("conditions") or []:
        if one["type"] == "PodScheduled" and one["status"] == "False":
            words = re.split(" no new claims| preemption:", one.get("message", ""))[0]
            return Trouble(f"{one.get('reason')}: {words}".rstrip(": "))
    if "deletionTimestamp" in pod["metadata"]:
        return Trouble("is on its way out")
    words = "not ready yet" if status.get("phase") == "Running" else "is being started"
    return Trouble(words, vague=True)


def _containers(pod: Object) -> list[Object]:
    """The first is ours: a mesh may have added others."""
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return sorted(found, key=lambda one: one["name"] != CONTAINER)


def _of_container(one: Object) -> Trouble | None:
    state, restarts = one.get("state") or {}, one.get("restartCount", 0)
    waiting, over = state.get("waiting"), state.get("terminated")
    last = (one.get("lastState") or {}).get("terminated")
    if waiting is not None:
        return _of_waiting(waiting, restarts, last)
    if over is not None and (one["name"] == CONTAINER or over.get("exitCode")):
        return Trouble(_how_it_ended(over, restarts), restarts + 1 >= CRASHES, ended=True)
    if last is not None and restarts and not one.get("ready"):  # it runs again, for now
        return Trouble(_how_it_ended(last, restarts), ended=True)
    return None


def _of_waiting(waiting: Object, restarts: int, last: Object | None) -> Trouble | None:
    reason, said = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PASSING and not last:
        return None
    if reason in (*PASSING, "CrashLoopBackOff") and last:
        return Trouble(_how_it_ended(last, restarts), restarts + 1 >= CRASHES, ended=True)
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        words = _pulling(said)
        absent = reason == "ImagePullBackOff" and bool(NO_IMAGE.search(words))
        return Trouble(f"the image cannot be pulled: {words or reason}", fatal=absent)
    if reason == "CreateContainerConfigError" and "runAsNonRoot" in said:
        plain = said.partition(" (pod:")[0]
        return Trouble(
            f"{plain}: the image must name another user than root by its number (USER 10001)",
            fatal=True,
        )
    if reason == "RunContainerError":
        return Trouble(_not_startable(said), restarts + 1 >= CRASHES)
    return Trouble(f"{reason}: {said}".rstrip(": "), fatal=reason in HOPELESS)


def _pulling(said: str) -> str:
    """What the registry said, without what was tried around it."""
    words = said.partition("ErrImagePull: ")[2] or said
    return AROUND.sub("", words.partition(" desc = ")[2] or words)


def _how_it_ended(over: Object, restarts: int) -> str:
    times = f", started {restarts + 1} times" if restarts else ""
    if over.get("reason") == "OOMKilled":
        return f"out of memory (run.limits.memory){times}"
    if over.get("reason") in ("StartError", "ContainerCannotRun"):
        return _not_startable(over.get("message", ""))
    how = f"signal {over['signal']}" if over.get("signal") else f"exit code {over.get('exitCode')}"
    return f"ends with {how}{times}"


def _not_startable(said: str) -> str:
    words = re.split(r"container process(?: caused)?: ", said)[-1].removesuffix(": unknown")
    return f"cannot be started: {words}. Is run.command a program of the image?"


def told(events: Sequence[Object]) -> str:
    """The newest of the events that tell of trouble."""
    bad = [one for one in events if one.get("type") == "Warning" and one.get("reason") in EVENTS]
    bad.sort(key=_when)
    return f"{bad[-1]['reason']}: {bad[-1].get('message', '')}".strip() if bad else ""


def killed_for(events: Sequence[Object]) -> str:
    """What the probe said by which the node ended a program that did not come up; empty: none
    did."""
    if not any("failed startup probe" in (one.get("message") or "") for one in events):
        return ""
    return told([one for one in events if one.get("reason") == "Unhealthy"]).partition(": ")[2]


def _when(event: Object) -> str:
    series = (event.get("series") or {}).get("lastObservedTime")
    made = event["metadata"].get("creationTimestamp")
    return str(event.get("lastTimestamp") or series or event.get("eventTime") or made or "")


def is_ready(pod: Object) -> bool:
    """Gets requests: ready, and not on its way out."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def is_over(pod: Object) -> bool:
    """No container of it runs, and none will."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def restarts_of(pod: Object) -> int:
    return sum(one.get("restartCount", 0) for one in _containers(pod)[:1])
