"""How the containers of a test behave: what a pod does with its image, and what it answers.

A pod answers on an address of its own on loopback. As the images of docker_fixtures.py do, the
default one serves the id of its release and obeys FAIL, HEALTH and DIE in its environment.
"""

import asyncio
import os
import signal
from base64 import b64decode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aiohttp import web
from kube_schema import Object
from kube_store import Store


@dataclass(frozen=True)
class Pod:
    """A pod as a behaviour sees it."""

    obj: Object
    env: dict[str, str]

    @property
    def name(self) -> str:
        return str(self.obj["metadata"]["name"])

    @property
    def image(self) -> str:
        return str(self.obj["spec"]["containers"][0]["image"])

    @property
    def labels(self) -> dict[str, str]:
        return self.obj["metadata"].get("labels") or {}

    @property
    def release(self) -> str:
        return self.labels.get("dafnck/release") or self.env.get("DAFNCK_RELEASE") or self.name


Says = Callable[[Pod, web.BaseRequest], tuple[int, str] | None]


@dataclass
class Behaviour:
    """Change it while the pods run: they look at every step and every request."""

    pull_error: str = ""  # cannot be pulled, for this reason
    start_seconds: float = 0.0  # from pulled to running
    exit_code: int | None = None  # ends by itself, again and again
    exit_reason: str = ""  # OOMKilled; else by the code
    exit_seconds: float = 0.0  # after so long
    ready: bool = True
    ready_seconds: float = 0.0  # from running to ready
    status: int = 200  # of its answers, but for the health check
    health: int = 200
    slow_seconds: float = 0.0  # for each answer
    says: Says | None = None  # answers something else, or None for the usual
    command: Callable[[Pod, str], list[str]] | None = None  # pod, address -> argv of a process
    serves: bool = True  # on its address and its ports; else it is ready without
    stop_seconds: float = 0.0  # from SIGTERM to its end
    log: str = ""  # what it writes; {release} and {name} are filled in
    requests: dict[str, int] = field(default_factory=dict)  # pod -> requests that it answered

    def lines(self, pod: Pod) -> list[str]:
        text = self.log or "{name} serves {release}"
        return [line.format(release=pod.release, name=pod.name) for line in text.splitlines()]


class Behaviours:
    def __init__(self) -> None:
        self._known: list[tuple[Callable[[Pod], bool], Behaviour]] = []
        self.default = Behaviour()

    def add(self, which: str | Callable[[Pod], bool], behaviour: Behaviour) -> Behaviour:
        """`which`: pattern of an image, the id of a release, or a test. The last one wins."""
        if isinstance(which, str):
            name = which

            def test(pod: Pod) -> bool:
                return fnmatchcase(pod.image, name) or pod.release == name

            self._known.insert(0, (test, behaviour))
        else:
            self._known.insert(0, (which, behaviour))
        return behaviour

    def of(self, pod: Pod) -> Behaviour:
        found = next((it for test, it in self._known if test(pod)), self.default)
        if found is self.default and pod.env.get("DIE"):
            return Behaviour(exit_code=3, log="no database")
        return found


def environment(store: Store, pod: Object) -> tuple[dict[str, str], str]:
    """Of its first container. -> variables, and what is missing: 'configmap "x" not found'"""
    namespace, container = pod["metadata"]["namespace"], pod["spec"]["containers"][0]
    env: dict[str, str] = {}
    missing = ""
    for source in container.get("envFrom") or []:
        for name, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if (reference := source.get(name)) is None:
                continue
            found = store.get(("", plural), (namespace, reference["name"]))
            if found is None and not reference.get("optional"):
                missing = missing or f'{plural[:-1]} "{reference["name"]}" not found'
            env |= _values(found, plural)
    for one in container.get("env") or []:
        value, source = one.get("value"), one.get("valueFrom") or {}
        for name, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if (reference := source.get(name)) is not None:
                found = store.get(("", plural), (namespace, reference["name"]))
                value = _values(found, plural).get(reference["key"])
                if value is None and not reference.get("optional"):
                    what = f'{plural[:-1]} "{reference["name"]}" not found'
                    if found is not None:
                        kind = "ConfigMap" if plural == "configmaps" else "Secret"
                        place = f"{kind} {namespace}/{reference['name']}"
                        what = f"couldn't find key {reference['key']} in {place}"
                    missing = missing or what
        env[one["name"]] = value or ""
    for volume in pod["spec"].get("volumes") or []:
        for name, plural, key in (
            ("configMap", "configmaps", "name"),
            ("secret", "secrets", "secretName"),
        ):
            if (wanted := volume.get(name)) and not wanted.get("optional"):
                if store.get(("", plural), (namespace, wanted[key])) is None:
                    missing = missing or f'mount:{plural[:-1]} "{wanted[key]}" not found'
    return env, missing


def _values(found: Object | None, plural: str) -> dict[str, str]:
    data = (found or {}).get("data") or {}
    return (
        {k: b64decode(v).decode() for k, v in data.items()} if plural == "secrets" else dict(data)
    )


class Served:
    """A container that runs: its servers, or its process."""

    def __init__(self, pod: Pod, address: str, behaviour: Callable[[], Behaviour]) -> None:
        self._pod, self._address, self._behaviour = pod, address, behaviour
        self._servers: list[tuple[_Server, asyncio.Server]] = []
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        loop, behaviour = asyncio.get_running_loop(), self._behaviour()
        ports = [
            p["containerPort"]
            for c in self._pod.obj["spec"]["containers"]
            for p in c.get("ports") or []
        ]
        if behaviour.command is not None:
            argv = behaviour.command(self._pod, self._address)
            env = {**os.environ, **self._pod.env, "HOST": self._address}
            self._process = await asyncio.create_subprocess_exec(*argv, env=env)
            return
        for port in ports if behaviour.serves else []:
            server = _Server(self._answer, access_log=None)
            # Known before it serves: one that is cancelled in between is closed by `kill`.
            listener = await loop.create_server(
                server, self._address, port, reuse_address=True, start_serving=False
            )
            self._servers.append((server, listener))
            await listener.start_serving()

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None

    async def stop(self, seconds: float) -> None:
        """As a good server ends: no new connections, answer what came, then go."""
        for _, listener in self._servers:
            listener.close()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), max(seconds, 0.05))
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        give_up = asyncio.get_running_loop().time() + seconds
        for server, _ in self._servers:
            await server.shutdown(max(0.01, give_up - asyncio.get_running_loop().time()))
        self._servers.clear()

    def kill(self) -> None:
        """Gone at once, as with its node."""
        for server, listener in self._servers:
            listener.close()
            server.gone = True
            _cut(server)
        self._servers.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        behaviour, pod = self._behaviour(), self._pod
        if behaviour.slow_seconds:
            await asyncio.sleep(behaviour.slow_seconds)
        await request.read()
        if behaviour.says and (said := behaviour.says(pod, request)) is not None:
            return web.Response(status=said[0], text=said[1])
        probed = _health_path(pod) == request.path
        if probed:
            code = int(pod.env.get("HEALTH") or behaviour.health)
            return web.Response(status=code, text="good")
        behaviour.requests[pod.name] = behaviour.requests.get(pod.name, 0) + 1
        code = 500 if pod.env.get("FAIL") else behaviour.status
        return web.Response(status=code, text=pod.release if code < 500 else "broken")


class _Server(web.Server):
    gone = False

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """One that was being accepted when the pod went is a connection only now."""
        super().connection_made(handler, transport)
        if self.gone:
            transport.abort()


def _cut(server: web.Server) -> None:
    for connection in list(server.connections):
        if connection.transport is not None:
            connection.transport.abort()


def _health_path(pod: Pod) -> str:
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        for container in pod.obj["spec"]["containers"]:
            if "httpGet" in (found := container.get(probe) or {}):
                return str(found["httpGet"].get("path", "/"))
    return "/healthz"


def port_of(pod: Object, wanted: Any) -> int:
    """A number, or the name of a port of its containers."""
    if isinstance(wanted, int):
        return wanted
    ports: Iterable[Object] = (p for c in pod["spec"]["containers"] for p in c.get("ports") or [])
    return next((int(p["containerPort"]) for p in ports if p.get("name") == wanted), 0)
