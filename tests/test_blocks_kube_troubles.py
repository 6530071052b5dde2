"""Why pods are not ready, by what real clusters said of them."""

from typing import Any

import pytest

from blocks.kube_troubles import Trouble, is_ready, killed_for, of_deployment, of_pod, told

NOT_FOUND = (
    'Back-off pulling image "r.test/app@sha256:00": ErrImagePull: failed to pull and unpack image '
    '"r.test/app@sha256:00": failed to resolve reference "r.test/app@sha256:00": '
    "r.test/app@sha256:00: not found"
)
NO_ENTRY = (
    'Back-off pulling image "r.test/app": ErrImagePull: rpc error: code = Unknown desc = failed to '
    'pull and unpack image "r.test/app": failed to resolve reference "r.test/app": failed to '
    "authorize: 401 Unauthorized"
)
REFUSED = (
    'failed to pull and unpack image "r.test/x": failed to resolve reference "r.test/x": failed to '
    "do request: dial tcp 127.0.0.1:5999: connect: connection refused"
)
AS_ROOT = 'container has runAsNonRoot and image will run as root (pod: "p_x(1)", container: app)'
NO_PROGRAM = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc "
    'create failed: unable to start container process: exec: "/nope": stat /nope: no such file or '
    "directory: unknown"
)


def pod(state: dict[str, Any] | None = None, *, restarts: int = 0, **more: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": "Pending", **more}
    if state is not None:
        last = {"lastState": {"terminated": state.pop("last")}} if "last" in state else {}
        one = {"name": "app", "restartCount": restarts, "ready": False, "state": state, **last}
        mesh = {"name": "a-mesh", "restartCount": 0, "ready": True, "state": {"running": {}}}
        status["containerStatuses"] = [mesh, one]
    return {"metadata": {"name": "p", "uid": "u"}, "status": status}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}, **more}


OOM = {"reason": "OOMKilled", "exitCode": 137}
ENDED = {"reason": "Error", "exitCode": 3}


@pytest.mark.parametrize(
    ("seen", "words", "fatal"),
    [
        (pod(waiting("ImagePullBackOff", NOT_FOUND)), "pulled: r.test/app@sha256:00: not f", True),
        (pod(waiting("ImagePullBackOff", NO_ENTRY)), "failed to authorize: 401 Unauth", True),
        (pod(waiting("ErrImagePull", NOT_FOUND)), "not found", False),
        (pod(waiting("ImagePullBackOff", REFUSED)), "pulled: failed to do request: dial", False),
        (pod(waiting("InvalidImageName", "couldn't parse it")), "couldn't parse it", True),
        (pod(waiting("CreateContainerConfigError", AS_ROOT)), "USER 10001", True),
        (pod(waiting("CreateContainerConfigError", 'secret "x" not found')), '"x" not', False),
        (pod(waiting("RunContainerError", NO_PROGRAM)), 'cannot be started: exec: "/nope"', False),
        (pod({"terminated": ENDED}), "ends with exit code 3", False),
        (pod({"terminated": {"exitCode": 0, "reason": "Completed"}}), "exit code 0", False),
        (pod({"terminated": {"exitCode": 143, "signal": 15}}), "signal 15", False),
        (pod({"running": {}, "last": ENDED}, restarts=1), "exit code 3, started 2 times", False),
        (pod(waiting("CrashLoopBackOff", last=ENDED), restarts=1), "started 2 times", False),
        (pod(waiting("CrashLoopBackOff", last=ENDED), restarts=2), "started 3 times", True),
        (pod(waiting("CrashLoopBackOff", last=OOM), restarts=1), "out of memory (run.lim", False),
        (
            pod(phase="Failed", reason="Evicted", message="low on disk"),
            "Evicted: low on disk",
            False,
        ),
        (pod(waiting("ContainerCreating")), "is being started", False),
        (pod(phase="Running"), "not ready yet", False),
    ],
)
def test_of_a_pod(seen: dict[str, Any], words: str, fatal: bool) -> None:
    found = of_pod(seen)
    assert found is not None
    assert words in found.words
    assert found.fatal is fatal
    assert "pull and unpack" not in found.words


def test_where_no_node_takes_it() -> None:
    said = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: none."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    found = of_pod(pod(conditions=[condition | {"message": said}]))
    assert found == Trouble("Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.")


def test_one_on_its_way_out_is_not_ready() -> None:
    good = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert is_ready(good)
    assert of_pod(good) is None
    good["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not is_ready(good)
    assert of_pod(good) == Trouble("is on its way out")


@pytest.mark.parametrize(
    ("said", "words", "fatal"),
    [
        (
            'pods "a-b" is forbidden: exceeded quota: q, used: 1',
            "exceeded quota: q, used: 1",
            False,
        ),
        ('pods "a-b" is forbidden: violates PodSecurity "restricted"', "violates PodSec", True),
        ('admission webhook "w" denied the request: no', 'webhook "w" denied the req', True),
        ('Internal error occurred: failed calling webhook "w": timeout', "timeout", False),
    ],
)
def test_of_a_deployment(said: str, words: str, fatal: bool) -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    status = {"conditions": [condition | {"message": said}], "observedGeneration": 1}
    found = of_deployment({"metadata": {"generation": 1}, "status": status})
    assert found is not None
    assert found.words.startswith("the cluster makes no pod: ")
    assert words in found.words
    assert "is forbidden" not in found.words
    assert found.fatal is fatal


def test_a_deployment_that_nobody_looked_at_yet() -> None:
    found = of_deployment({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}})
    assert found is not None
    assert "not looked" in found.words
    assert (
        of_deployment({"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}) is None
    )


def event(reason: str, message: str, at: str, kind: str = "Warning") -> dict[str, Any]:
    return {
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "metadata": {},
    }


def test_the_newest_event_that_tells_of_trouble_counts() -> None:
    events = [
        event("FailedMount", 'configmap "c" not found', "2026-01-01T00:00:02Z"),
        event("Unhealthy", "Readiness probe failed", "2026-01-01T00:00:01Z"),
        event("Pulled", "done", "2026-01-01T00:00:03Z", kind="Normal"),
    ]
    assert told(events) == 'FailedMount: configmap "c" not found'
    assert told([]) == ""


def test_what_a_node_ended_tells_of_its_probe() -> None:
    probe = event("Unhealthy", "Startup probe failed: statuscode: 503", "2026-01-01T00:00:01Z")
    words = "Container app failed startup probe, will be restarted"
    killed = event("Killing", words, "2026-01-01T00:00:02Z", kind="Normal")
    assert killed_for([probe, killed]) == "Startup probe failed: statuscode: 503"
    assert killed_for([probe]) == ""
