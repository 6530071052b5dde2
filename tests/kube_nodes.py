"""The nodes of a cluster, and which of them a pod is placed on.

Times of a pod spec (probe periods, preStop, grace, back-off) pass faster by `pace`; the rest takes
as long as its behaviour says.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
from kube_access import system
from kube_addresses import PODS as IPS_OF_PODS
from kube_addresses import Addresses
from kube_behaviours import Behaviours
from kube_controllers import Controllers
from kube_kubelet import PODS, Life, condition, where_of, write_status
from kube_requests import How, Requests
from kube_schema import Object
from kube_store import Change, Family

NODES = ("", "nodes")
ROOM = {"cpu": "64", "memory": "256Gi", "pods": "5000"}


class Nodes:
    def __init__(
        self, requests: Requests, controllers: Controllers, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.requests, self._store = requests, requests.store
        self._controllers, self._loop = controllers, loop
        self.behaviours = Behaviours()
        self.pace = 0.05
        self.off = False  # pods stay as they were written
        self.lost: set[str] = set()
        self.how = How(user=system("node"), manager="kubelet", part="status", trusted=True)
        self._lives: dict[str, Life] = {}  # by uid
        self._addresses = Addresses(IPS_OF_PODS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._store.watchers[PODS].append(self._seen)
        self._store.watchers[NODES].append(self._seen)

    # -- nodes ---------------------------------------------------------------------------------

    def add(self, name: str, labels: dict[str, str] | None = None) -> None:
        told = [_node_condition("True")]
        body = {
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, **(labels or {})},
            },
            "status": {"conditions": told, "capacity": ROOM, "allocatable": ROOM},
        }
        self.requests.create(self.requests.named("v1", "Node"), "", body, self.how)

    def lose(self, name: str) -> None:
        """The node is cut off: its pods answer nobody, and stay in the books."""

        def lose() -> None:
            self.lost.add(name)
            self._tell(name, "Unknown")
            for pod in self._on(name):
                if (life := self._lives.get(pod["metadata"]["uid"])) is not None:
                    life.end()
                    life.report()

        self._loop.call_soon_threadsafe(lose)

    def bring_back(self, name: str) -> None:
        def bring_back() -> None:
            self.lost.discard(name)
            self._tell(name, "True")
            for pod in self._on(name):
                self._lives[pod["metadata"]["uid"]].begin()

        self._loop.call_soon_threadsafe(bring_back)

    def _on(self, name: str) -> list[Object]:
        return [pod for pod in self._store.all(PODS) if pod["spec"].get("nodeName") == name]

    def _tell(self, name: str, ready: str) -> None:
        kind = self.requests.named("v1", "Node")
        node = self.requests.get(kind, ("", name))
        status = node["status"] | {"conditions": [_node_condition(ready)]}
        self.requests.update(kind, ("", name), {**node, "status": status}, self.how)

    async def stop(self) -> None:
        self.off = True
        # More than once: `wait_for` of Python 3.11 loses a cancellation that comes as it ends.
        while left := [task for task in self._tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1)
        for life in self._lives.values():
            life.end()
        if self._session is not None:
            await self._session.close()
        self._addresses.give_back()

    # -- the scheduler -------------------------------------------------------------------------

    def _seen(self, family: Family, change: Change) -> None:
        if family == PODS:
            self._loop.call_soon_threadsafe(self._pod_seen, change)
        else:
            self._loop.call_soon_threadsafe(self._place_all)

    def _place_all(self) -> None:
        for pod in self._store.all(PODS):
            if not pod["spec"].get("nodeName"):
                self._place(pod)

    def _pod_seen(self, change: Change) -> None:
        if self.off:
            return
        uid = change.obj["metadata"]["uid"]
        live = self._store.get(PODS, where_of(change.obj))
        if live is None or live["metadata"]["uid"] != uid:
            if (life := self._lives.pop(uid, None)) is not None:
                life.end()
        elif not live["spec"].get("nodeName"):
            self._place(live)
        elif uid in self._lives:
            self._lives[uid].wake()
        else:
            self._lives[uid] = Life(self, live, self._addresses.take())
            if live["spec"]["nodeName"] not in self.lost:
                self._lives[uid].begin()

    def _place(self, pod: Object) -> None:
        if self.off or "deletionTimestamp" in pod["metadata"]:
            return
        wanted, nodes = pod["spec"].get("nodeSelector") or {}, self._store.all(NODES)
        fit = [n for n in nodes if wanted.items() <= (n["metadata"].get("labels") or {}).items()]
        free = [n["metadata"]["name"] for n in fit if not n["spec"].get("unschedulable")]
        free = [name for name in free if name not in self.lost]
        if not free:
            self._unplaced(pod, len(nodes), len(nodes) - len(fit))
            return
        chosen = min(free, key=lambda name: (len(self._on(name)) if len(free) > 1 else 0, name))
        status = (pod.get("status") or {}) | {"conditions": [condition("PodScheduled", "True")]}
        placed = {**pod, "spec": pod["spec"] | {"nodeName": chosen}, "status": status}
        with self._store.lock:
            if self._store.get(PODS, where_of(pod)) is pod:
                self._store.put(PODS, placed | {"metadata": dict(pod["metadata"])})

    def _unplaced(self, pod: Object, count: int, strange: int) -> None:
        why = [(strange, "node(s) didn't match Pod's node affinity/selector"),
               (count - strange, "node(s) were unschedulable")]  # fmt: skip
        words = ", ".join(f"{number} {what}" for number, what in why if number)
        none = f"0/{count} nodes are available"
        helps = f"preemption: {none}: {count} Preemption is not helpful for scheduling."
        said = f"{none}: {words}. {helps}"
        held = (pod.get("status") or {}).get("conditions") or []
        if not any(one.get("message") == said for one in held):
            told = [condition("PodScheduled", "False", "Unschedulable", said)]
            write_status(
                self.requests, pod, {**(pod.get("status") or {}), "conditions": told}, self.how
            )
            self._controllers.event(pod, "Warning", "FailedScheduling", said, "default-scheduler")

    # -- what the pods need --------------------------------------------------------------------

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(force_close=True, limit=0)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a pod came to grief", "exception": error}
            self._loop.call_exception_handler(context)

    def event(self, about: Object, how: str, reason: str, message: str) -> None:
        self._controllers.event(about, how, reason, message, "kubelet")

    def crowd(self) -> int:
        return len(self._lives)

    def log(self, pod: Object, previous: bool) -> list[str]:
        """Raises Answer 400 when there is none."""
        life = self._lives.get(pod["metadata"]["uid"])
        return life.log(pod, previous) if life is not None else []


def _node_condition(ready: str) -> Object:
    well = ready == "True"
    reason = "KubeletReady" if well else "NodeStatusUnknown"
    words = "kubelet is posting ready status" if well else "Kubelet stopped posting node status."
    return condition("Ready", ready, reason, words)
