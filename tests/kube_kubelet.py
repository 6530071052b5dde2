"""The life of one pod on its node: pulled, started, probed, started again, led out, ended."""

import asyncio
from typing import Any, Protocol

import aiohttp
from kube_behaviours import Behaviour, Behaviours, Pod, Served, environment, port_of
from kube_requests import How, Requests, stamp
from kube_schema import Object
from kube_store import Answer, copied

PODS = ("", "pods")
LOOK_SECONDS = 0.02
IDLE_LOOKS = 250.0  # a second, of all pods together
BACK_OFF_SECONDS, MOST_BACK_OFF_SECONDS = 10.0, 300.0
WAITS = {"waiting": {"reason": "ContainerCreating"}}


class Node(Protocol):
    """What a pod needs of where it lives."""

    requests: Requests
    behaviours: Behaviours
    pace: float
    lost: set[str]
    how: How

    def session(self) -> aiohttp.ClientSession: ...
    def spawn(self, work: Any) -> "asyncio.Task[None]": ...
    def event(self, about: Object, how: str, reason: str, message: str) -> None: ...
    def crowd(self) -> int: ...


class Deleted(Exception):
    pass


class Gone(Exception):
    """The pod is no more, or its node."""


class Life:
    def __init__(self, node: Node, pod: Object, ip: str) -> None:
        self._node, self._store = node, node.requests.store
        self._where, self._uid = where_of(pod), pod["metadata"]["uid"]
        self.ip, self.logs = ip, list[list[str]]()  # of each time that it ran
        self.state, self._last = copied(WAITS), dict[str, Any]()
        self._restarts, self._ready, self._started = 0, False, False
        self._served: Served | None = None
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = self._node.spawn(self._live())

    def wake(self) -> None:
        """Something of it was written."""
        self._woken.set()

    def end(self) -> None:
        """At once: it, or its node, is gone."""
        if self._task is not None:
            self._task.cancel()
        if self._served is not None:
            self._served.kill()
        self._served, self._ready = None, False

    # -- from its first container to its last ----------------------------------------------------

    async def _live(self) -> None:
        try:
            self.report()
            back_off = BACK_OFF_SECONDS
            while True:
                if not await self._pulled():
                    continue
                ended = await self._run()
                self._last, self._restarts = {"terminated": ended}, self._restarts + 1
                name, space = self._where[1], self._where[0]
                which = (
                    f"failed container={self._container()['name']} pod={name}_{space}({self._uid})"
                )
                self._wait("CrashLoopBackOff", f"back-off {back_off:g}s restarting {which}")
                words = which.replace("container=", "container ").replace("pod=", "in pod ")
                self._tell("BackOff", f"Back-off restarting {words}")
                await self._sleep(back_off * self._node.pace)
                back_off = min(MOST_BACK_OFF_SECONDS, back_off * 2)
        except Deleted:
            await self._leave()
        except Gone:
            return

    async def _pulled(self) -> bool:
        """Image and configuration are there."""
        image, error = self._container()["image"], self._behaviour().pull_error
        if error:
            said = f'Failed to pull image "{image}": {error}'
            self._tell("Failed", said)
            self._wait("ErrImagePull", said)
            await self._sleep(LOOK_SECONDS)
            said = f'Back-off pulling image "{image}"'
            self._wait("ImagePullBackOff", f"{said}: ErrImagePull: {error}")
            self._tell("BackOff", said, "Normal")
            while self._behaviour().pull_error:
                await self._sleep(LOOK_SECONDS)
            return False
        _, missing = environment(self._store, self._pod())
        if not missing:
            return True
        if missing.startswith("mount:"):
            self._tell("FailedMount", f'MountVolume.SetUp failed for volume "{missing[6:]}"')
        else:
            self._wait("CreateContainerConfigError", missing)
            self._tell("Failed", f"Error: {missing}")
        await self._sleep(LOOK_SECONDS)
        return False

    async def _run(self) -> Object:
        """One run of its container. -> how it ended"""
        await self._sleep(self._behaviour().start_seconds)
        seen = Pod(self._pod(), environment(self._store, self._pod())[0])
        self._served = Served(seen, self.ip, self._behaviour)
        await self._served.start()
        self._started = "startupProbe" not in self._container()
        began, since = stamp(), self._now()
        self.state = {"running": {"startedAt": began}}
        self.logs.append(self._behaviour().lines(seen))
        self.report()
        failing: float | None = since  # since when its probe fails
        while True:
            if (code := self._code(since)) is not None:
                return await self._ended(code, began)
            name = "readinessProbe" if self._started else "startupProbe"
            probe = self._container().get(name) or {}
            good, words = await self._probed(probe, since)
            period = probe.get("periodSeconds", 0) * self._node.pace
            failing = None if good else failing or self._now()
            too_long = failing is not None and self._now() - failing >= period * probe.get(
                "failureThreshold", 0
            )
            if not good and words:
                self._tell(
                    "Unhealthy", f"{name.removesuffix('Probe').capitalize()} probe failed: {words}"
                )
            if good and not self._started:
                self._started, failing = True, self._now()
                self.report()
                continue
            if too_long and not self._started:
                said = (
                    f"Container {self._container()['name']} failed startup probe, will be restarted"
                )
                self._tell("Killing", said, "Normal")
                return await self._ended(137, began)
            if good != self._ready and (good or too_long):
                self._ready = good
                self.report()
            idle = max(LOOK_SECONDS, self._node.crowd() / IDLE_LOOKS)
            await self._sleep(max(period, idle) if self._ready and good else idle)

    def _code(self, since: float) -> int | None:
        """With which it ended by itself."""
        behaviour = self._behaviour()
        if self._served is not None and self._served.exit_code is not None:
            return self._served.exit_code
        if behaviour.exit_code is None or self._now() - since < behaviour.exit_seconds:
            return None
        return behaviour.exit_code

    async def _ended(self, code: int, began: str) -> Object:
        reason = self._behaviour().exit_reason or ("Completed" if code == 0 else "Error")
        ended = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": stamp(),
                 "containerID": f"containerd://{self._uid}{self._restarts}"}  # fmt: skip
        self._ready, self._started, self.state = False, False, {"terminated": ended}
        self.report()
        if self._served is not None:
            await self._served.stop(0)
        self._served = None
        return ended

    async def _probed(self, probe: Object, since: float) -> tuple[bool, str]:
        """-> is it well, what is wrong"""
        behaviour = self._behaviour()
        if not behaviour.ready:
            return False, "command failed" if probe else ""
        if self._now() - since < behaviour.ready_seconds:
            return False, ""
        if "httpGet" not in probe or not (behaviour.serves or behaviour.command):
            return True, ""
        get = probe["httpGet"]
        url = f"http://{self.ip}:{port_of(self._pod(), get['port'])}{get.get('path', '/')}"
        try:
            limit = aiohttp.ClientTimeout(total=probe.get("timeoutSeconds", 1))
            async with self._node.session().get(url, timeout=limit) as answer:
                good = 200 <= answer.status < 400
                return good, f"HTTP probe failed with statuscode: {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return False, f'Get "{url}": {error or "context deadline exceeded"}'

    async def _leave(self) -> None:
        """preStop, SIGTERM, the end. Until it ends it answers, and is ready for who asks."""
        pod = self._store.get(PODS, self._where)
        if pod is None or pod["metadata"]["uid"] != self._uid:
            return
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
        hook = (_first(pod).get("lifecycle") or {}).get("preStop") or {}
        pause = min(grace, float((hook.get("sleep") or {}).get("seconds", 0)))
        if self._served is not None:
            await asyncio.sleep(pause * self._node.pace)
            left = (grace - pause) * self._node.pace
            seconds = min(left, self._behaviour().stop_seconds)
            ending = self._node.spawn(self._served.stop(max(left, 0.05)))
            await asyncio.sleep(seconds)
            await ending
        self._served = None
        kind = self._node.requests.named("v1", "Pod")
        self._node.requests.delete(kind, self._where, {"gracePeriodSeconds": 0})

    # -- what is seen of it ----------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _pod(self) -> Object:
        pod = self._store.get(PODS, self._where)
        if pod is None or pod["metadata"]["uid"] != self._uid:
            raise Gone
        if pod["spec"].get("nodeName") in self._node.lost:
            raise Gone
        if "deletionTimestamp" in pod["metadata"]:
            raise Deleted
        return pod

    def _container(self) -> Object:
        return _first(self._pod())

    def _behaviour(self) -> Behaviour:
        pod = self._store.get(PODS, self._where)
        if pod is None or pod["metadata"]["uid"] != self._uid:
            raise Gone
        return self._node.behaviours.of(Pod(pod, environment(self._store, pod)[0]))

    async def _sleep(self, seconds: float) -> None:
        """Wait; not on when it is deleted meanwhile."""
        end = self._now() + seconds
        while (left := end - self._now()) > 0:
            self._woken.clear()
            self._pod()
            try:
                await asyncio.wait_for(self._woken.wait(), left)
            except TimeoutError:
                break
        self._pod()

    def _wait(self, reason: str, message: str) -> None:
        self.state = {"waiting": {"reason": reason, "message": message}}
        self.report()

    def _tell(self, reason: str, message: str, how: str = "Warning") -> None:
        self._node.event(self._pod(), how, reason, message)

    def report(self) -> None:
        """Write its status."""
        pod = self._store.get(PODS, self._where)
        if pod is None or pod["metadata"]["uid"] != self._uid:
            return
        names, ready = [one["name"] for one in pod["spec"]["containers"]], self._ready
        why = (
            ()
            if ready
            else ("ContainersNotReady", f"containers with unready status: [{' '.join(names)}]")
        )
        if pod["spec"].get("nodeName") in self._node.lost:
            why = ("NodeStatusUnknown", "Kubelet stopped posting node status.")
        told = [
            condition("PodReadyToStartContainers", "True"),
            condition("Initialized", "True"),
            condition("Ready", str(ready), *why),
            condition("ContainersReady", str(ready), *why),
            condition("PodScheduled", "True"),
        ]
        held = pod.get("status") or {}
        status = {
            "phase": "Running" if self.logs or self._restarts else "Pending",
            "conditions": [_same(one, held.get("conditions") or []) for one in told],
            "podIP": self.ip,
            "podIPs": [{"ip": self.ip}],
            "hostIP": "127.0.0.1",
            "startTime": held.get("startTime") or stamp(),
            "qosClass": "Burstable",
            "containerStatuses": [
                {
                    "name": one["name"],
                    "image": one["image"],
                    "imageID": one["image"] if self.logs else "",
                    "ready": ready,
                    "started": self._started,
                    "restartCount": self._restarts,
                    "state": copied(self.state),
                    "lastState": copied(self._last),
                }
                for one in pod["spec"]["containers"]
            ],
        }
        write_status(self._node.requests, pod, status, self._node.how)

    def log(self, pod: Object, previous: bool) -> list[str]:
        """Raises Answer 400 when there is none."""
        name, container = self._where[1], _first(pod)["name"]
        logs = self.logs
        if previous:
            logs = logs if "waiting" in self.state else logs[:-1]
            if not logs:
                said = f'previous terminated container "{container}" in pod "{name}" not found'
                raise Answer(400, "BadRequest", said)
        if not logs:
            reason = (self.state.get("waiting") or {}).get("reason", "")
            said = f'container "{container}" in pod "{name}" is waiting to start: {reason}'
            raise Answer(400, "BadRequest", said)
        return logs[-1]


def write_status(requests: Requests, pod: Object, status: Object, how: How) -> None:
    with requests.store.lock:
        live = requests.store.get(PODS, where_of(pod))
        if live is not None and live["metadata"]["uid"] == pod["metadata"]["uid"]:
            kind = requests.named("v1", "Pod")
            requests.update(kind, where_of(pod), {**live, "status": status}, how)


def where_of(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def condition(what: str, status: str, reason: str = "", message: str = "") -> Object:
    made = {"type": what, "status": status, "lastTransitionTime": stamp()}
    return made | ({"reason": reason, "message": message} if reason else {})


def _first(pod: Object) -> Object:
    return dict(pod["spec"]["containers"][0])


def _same(told: Object, before: list[Object]) -> Object:
    held = next((one for one in before if one["type"] == told["type"]), None)
    if held is None or held["status"] != told["status"]:
        return told
    return told | {"lastTransitionTime": held["lastTransitionTime"]}
