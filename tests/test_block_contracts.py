"""What every implementation of a port keeps, the fakes included."""

import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import PROBE, wait_for
from docker_fixtures import own_name, remove_containers
from fakes import FakeMetrics, FakeRouter, FakeWorkloads, a_release
from kube_fixtures import Gateway, Kube
from kube_releases import Releases

from blocks.builder import Builder
from blocks.docker_host import DockerHost
from blocks.gateway_api import GatewayRouter
from blocks.kube_cluster import KubeCluster
from blocks.local_processes import LocalProcesses
from blocks.ports import TrafficMetrics, TrafficRouter, Workloads
from blocks.service_selector import SelectorRouter
from blocks.stack import Ports, Stack
from blocks.traefik import TraefikMetrics, TraefikRouter
from policy.errors import NotApplied, Refused
from policy.kubernetes import Kubernetes
from policy.release import Endpoints, MatchRules, Release
from policy.service_file import Build, Run

LIVE_MARK = pytest.mark.live
LIVE = [pytest.param(name, marks=LIVE_MARK) for name in ("local", "docker")]
CLUSTER = [pytest.param("gateway", marks=LIVE_MARK), "selector"]


@pytest.fixture(params=["fake", "kubernetes", *LIVE])
def workloads(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Workloads, Release]]:
    if request.param == "fake":
        yield FakeWorkloads(), a_release(1)
        return
    if request.param == "kubernetes":
        yield pods(request.getfixturevalue("kube"))
        return
    if request.param == "docker":
        yield from containers(request, tmp_path)
        return
    stack = request.getfixturevalue("stack")
    (tmp_path / "probe.py").write_bytes(PROBE.read_bytes())
    build = Build.model_validate({"command": "cp probe.py {out}"})
    digest, _ = Builder(stack.artifacts).build(build, tmp_path)
    run = Run.model_validate(
        {
            "command": f"{sys.executable} -m uvicorn --port {{port}} probe:app",
            "health": "/healthz",
            "replicas": 2,
            "limits": {"open_files": 500},
        }
    )
    release = a_release(1, id="contract-test-1", artifact=digest, run=run)
    processes = LocalProcesses(stack)
    yield processes, release
    processes.stop(release.id, 1)
    processes.remove(release.id)


def containers(request: pytest.FixtureRequest, home: Path) -> Iterator[tuple[Workloads, Release]]:
    docker, source = request.getfixturevalue("docker"), request.getfixturevalue("source")
    stack = Stack(home=home, ports=Ports(), ledger_url="")
    builder = Builder(stack.artifacts)
    build = Build.model_validate({"image": {"target": "app"}})
    digest, _ = builder.build(build, source)
    run = Run.model_validate({"port": 8000, "health": "/healthz", "replicas": 2, "grace": "1s"})
    name = own_name("contract")
    release = a_release(
        1, id=f"{name}-test-1", service=name, artifact=digest, run=run, platform="docker"
    )
    yield DockerHost(stack), release
    remove_containers(docker, name)
    assert builder.remove_unused(set(), idle_seconds=0) == [digest]


def pods(kube: Kube) -> tuple[Workloads, Release]:
    kube.namespace("shop")
    run = Run.model_validate({"port": 8000, "health": "/healthz", "replicas": 2, "grace": "1s"})
    there = Kubernetes(namespace="shop")
    image = f"registry.test/shop@sha256:{'1' * 64}"
    release = a_release(
        1, id="shop-prod-1", run=run, platform="kubernetes", kubernetes=there, image=image
    )
    return KubeCluster(kube.api(), "shop", "shop", "prod"), release


def ready(workloads: Workloads, release: Release, count: int) -> Endpoints:
    def look() -> Endpoints | None:
        seen = workloads.endpoints(release.id)
        return seen if len(seen.ready) == count else None

    found: Endpoints = wait_for(look, f"{count} replicas ready")
    return found


class TestWorkloads:
    def test_it_is_one(self, workloads: tuple[Workloads, Release]) -> None:
        assert isinstance(workloads[0], Workloads)

    def test_start_scale_stop(self, workloads: tuple[Workloads, Release]) -> None:
        platform, release = workloads
        assert platform.endpoints(release.id).wanted == 0
        platform.start(release, 2)
        seen = ready(platform, release, 2)
        assert seen.wanted == 2
        assert len(set(seen.urls)) == 2
        platform.start(release, 2)
        assert ready(platform, release, 2).urls == seen.urls, "a second start changes nothing"
        platform.start(release, 3)
        grown = ready(platform, release, 3)
        assert grown.urls[:2] == seen.urls, "the first replicas stay where they are"
        platform.start(release, 1)
        assert ready(platform, release, 1).urls == seen.urls[:1]
        assert release.id in platform.running()
        with pytest.raises(Refused):
            platform.remove(release.id)
        platform.stop(release.id, 2)
        assert release.id not in platform.running()
        assert platform.endpoints(release.id).wanted == 0
        platform.stop(release.id, 2)

    def test_it_starts_again_as_it_was(self, workloads: tuple[Workloads, Release]) -> None:
        platform, release = workloads
        platform.start(release, 1)
        ready(platform, release, 1)
        platform.stop(release.id, 2)
        platform.start(release, 1)
        assert ready(platform, release, 1).wanted == 1

    def test_quick_does_not_ask_the_application(self, workloads: tuple[Workloads, Release]) -> None:
        platform, release = workloads
        platform.start(release, 1)
        wait_for(lambda: platform.endpoints(release.id, quick=True).ready, "process runs")


@dataclass
class Routed:
    router: TrafficRouter
    endpoints: Callable[[str], Endpoints]
    ask: Callable[..., str] | None  # headers -> the release that answered, through the router
    rules: bool = True  # it can tell requests apart
    at_once: bool = True  # what it says it has taken up, it does already

    def sees(self, condition: Callable[[], object], what: str) -> None:
        """A gateway may be a moment behind its controller's word."""
        if self.at_once:
            assert condition(), what
        else:
            wait_for(condition, what, 5)


@pytest.fixture(params=["fake", pytest.param("traefik", marks=LIVE_MARK), *CLUSTER])
def routed(request: pytest.FixtureRequest) -> Iterator[Routed]:
    if request.param == "fake":
        yield Routed(
            FakeRouter(), lambda name: Endpoints(name, 1, ("http://x:1",), ("http://x:1",)), None
        )
        return
    if request.param in ("gateway", "selector"):
        yield in_cluster(request, request.param)
        return
    stack = request.getfixturevalue("stack")
    backends: list[socket.socket] = []

    def endpoints(name: str) -> Endpoints:
        server, url = a_backend(name)
        backends.append(server)
        return Endpoints(name, 1, (url,), (url,), host="contract.test")

    router = TraefikRouter(stack.dynamic, stack.router_api_url, "contract", "test")

    def ask(**headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{stack.ports.web}/", headers={"Host": "contract.test", **named}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())

    yield Routed(router, endpoints, ask)
    (stack.dynamic / "contract-test.yaml").unlink(missing_ok=True)
    for backend in backends:
        backend.close()


def in_cluster(request: pytest.FixtureRequest, kind: str) -> Routed:
    releases: Releases = request.getfixturevalue("releases")
    place = releases.api, releases.namespace, "shop", "prod"

    def endpoints(name: str) -> Endpoints:
        return releases.run(name, 1, after="" if name == "c-1" else "c-1")

    if kind == "selector":
        return Routed(SelectorRouter(*place), endpoints, None, rules=False)
    gateway: Gateway = request.getfixturevalue("kube_gateway")
    router = GatewayRouter(*place, ("infra", "web", None))

    def ask(**headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(gateway.url, headers={"Host": releases.host, **named})
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return str(answer.read().decode()).strip()
        except urllib.error.HTTPError as error:
            error.close()
            return str(error.code)

    return Routed(router, endpoints, ask, at_once=False)


def a_backend(name: str) -> tuple[Any, str]:
    """A server on loopback that answers its name."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    class Closing:
        def close(self) -> None:
            server.shutdown()
            server.server_close()

    return Closing(), f"http://127.0.0.1:{server.server_port}"


class TestTrafficRouter:
    def test_it_is_one(self, routed: Routed) -> None:
        assert isinstance(routed.router, TrafficRouter)

    def test_attached_means_no_traffic(self, routed: Routed) -> None:
        routed.router.attach(routed.endpoints("c-1"))
        assert routed.router.shares() == {"c-1": 0}

    def test_shares_are_held_and_kept(self, routed: Routed) -> None:
        router = routed.router
        router.attach(routed.endpoints("c-1"))
        router.attach(routed.endpoints("c-2"))
        router.set_shares({"c-1": 90, "c-2": 10})
        assert router.shares() == {"c-1": 90, "c-2": 10}
        if routed.ask:
            ask = routed.ask
            routed.sees(
                lambda: 5 <= [ask() for _ in range(100)].count("c-2") <= 15, "a tenth goes there"
            )
        router.set_shares({"c-2": 100})
        assert router.shares() == {"c-1": 0, "c-2": 100}
        if routed.ask:
            routed.sees(lambda: {ask() for _ in range(20)} == {"c-2"}, "all go there")
        router.set_shares({})
        assert router.shares() == {"c-1": 0, "c-2": 0}

    def test_only_attached_releases_get_traffic(self, routed: Routed) -> None:
        routed.router.attach(routed.endpoints("c-1"))
        routed.router.set_shares({"c-1": 100})
        with pytest.raises(NotApplied):
            routed.router.set_shares({"nobody": 100})
        assert routed.router.shares() == {"c-1": 100}

    def test_a_release_with_traffic_is_not_detached(self, routed: Routed) -> None:
        router = routed.router
        router.attach(routed.endpoints("c-1"))
        router.attach(routed.endpoints("c-2"))
        router.set_shares({"c-1": 100})
        with pytest.raises(NotApplied):
            router.detach("c-1")
        router.detach("c-2")
        assert router.shares() == {"c-1": 100}

    def test_preview_cohort_and_stickiness(self, routed: Routed) -> None:
        router = routed.router
        router.attach(routed.endpoints("c-1"))
        router.attach(routed.endpoints("c-2"))
        router.set_shares({"c-1": 100})
        if not routed.rules:
            with pytest.raises(NotApplied):
                router.match(MatchRules(preview={"X-Preview": "yes"}, release_id="c-2"))
            assert router.shares() == {"c-1": 100, "c-2": 0}
            return
        router.match(MatchRules(preview={"X-Preview": "yes"}, release_id="c-2"))
        if routed.ask:
            ask = routed.ask
            routed.sees(lambda: ask(X_Preview="yes") == "c-2", "the preview")
            assert routed.ask() == "c-1"
            assert routed.ask(X_Preview="no") == "c-1"
        rules = MatchRules(
            preview={"X-Preview": "yes"},
            release_id="c-2",
            cohort_cookie=("beta", "y"),
            cohort_on=True,
        )
        router.match(rules)
        if routed.ask:
            asked = routed.ask
            wait_for(lambda: asked(Cookie="a=1; beta=y") == "c-2", "the cohort gets the new one")
            assert asked(Cookie="beta=yes") == "c-1"
        router.match(None)
        if routed.ask:
            routed.sees(lambda: ask(X_Preview="yes") == "c-1", "no preview any more")
        assert router.shares() == {"c-1": 100, "c-2": 0}


@pytest.mark.live
def test_a_client_sticks_but_not_to_a_release_that_was_rolled_back(
    stack: Any, request: pytest.FixtureRequest
) -> None:
    router = TraefikRouter(stack.dynamic, stack.router_api_url, "sticky", "test")
    closing = []
    for name in ("s-1", "s-2"):
        server, url = a_backend(name)
        closing.append(server)
        router.attach(Endpoints(name, 1, (url,), (url,), host="sticky.test"))
    router.match(MatchRules(preview={}, release_id="s-2", sticky=True))
    router.set_shares({"s-1": 50, "s-2": 50})

    def ask(cookie: str = "") -> tuple[str, str]:
        headers = {"Host": "sticky.test"} | ({"Cookie": cookie} if cookie else {})
        asked = urllib.request.Request(f"http://127.0.0.1:{stack.ports.web}/", headers=headers)
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.read().decode(), answer.headers.get("Set-Cookie", "").partition(";")[0]

    def stuck() -> str | None:
        release, cookie = ask()
        return cookie if release == "s-2" and cookie else None

    cookie = wait_for(stuck, "a client of the new release")
    assert {ask(cookie)[0] for _ in range(10)} == {"s-2"}
    router.set_shares({"s-1": 100})
    assert {ask(cookie)[0] for _ in range(10)} == {"s-1"}
    (stack.dynamic / "sticky-test.yaml").unlink()
    for server in closing:
        server.close()


@pytest.mark.parametrize("kind", ["fake", pytest.param("traefik", marks=pytest.mark.live)])
def test_metrics_grow(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "fake":
        router = FakeRouter()
        router.attach(Endpoints("m-1", 1, (), ()))
        router.set_shares({"m-1": 100})
        now = [0.0]
        metrics: TrafficMetrics = FakeMetrics(router, lambda: now[0])

        def ask() -> None:
            now[0] += 0.01

    else:
        stack = request.getfixturevalue("stack")
        server, url = a_backend("m-1")
        request.addfinalizer(server.close)
        traefik = TraefikRouter(stack.dynamic, stack.router_api_url, "m", "test")
        request.addfinalizer((stack.dynamic / "m-test.yaml").unlink)
        traefik.attach(Endpoints("m-1", 1, (url,), (url,), host="m.test"))
        traefik.set_shares({"m-1": 100})
        metrics = TraefikMetrics(stack.router_api_url)

        def ask() -> None:
            asked = urllib.request.Request(
                f"http://127.0.0.1:{stack.ports.web}/", headers={"Host": "m.test"}
            )
            urllib.request.urlopen(asked, timeout=5).close()

    assert isinstance(metrics, TrafficMetrics)
    ask()
    before = metrics.read()["m-1"]
    for _ in range(5):
        ask()
    added = metrics.read()["m-1"].since(before)
    assert added.requests == pytest.approx(5)
    assert added.errors == 0
    assert added.buckets[float("inf")] == pytest.approx(5)
