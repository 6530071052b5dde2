"""Many services on one cluster: does the platform's part of a release cost the same for the last as
for the first?

    python -m bench.kube_services [--services 500] [--at-once 8] [--json FILE]

Against the API server of the tests (tests/kube_server.py), which keeps objects and runs a pod's
life, in this process. Each service is planned, released, and then released again by canary, in
waves; then the status of all is read. Prefect, ledger and builds are not part of it: what is
measured is what the cluster is asked.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kube_access import ADMIN
from kube_fixtures import Kube, running
from kube_gateways import CONTROLLER

from blocks.platforms import Platform, kube_platform
from policy.kubernetes import Kubernetes
from policy.matching import rollout_rules
from policy.release import Release
from policy.service_file import Rollout, Route, Run

IMAGE = "registry.example.org/shop@sha256:" + "5" * 64
READY_SECONDS = 120.0


class Service:
    def __init__(self, kube: Kube, number: int) -> None:
        self.name = f"s{number}"
        there = {"namespace": "many", "gateway": "infra/web", "url": "http://127.0.0.1:1"}
        self._there = Kubernetes.model_validate(there)
        # A client of its own, as each run of a flow has: its calls are counted apart.
        self.api = kube.api(kube.tokens.made(ADMIN))
        self.platform: Platform = kube_platform(self.api, self._there, self.name, "prod", Path())

    def release(self, number: int) -> Release:
        run = {"port": 8000, "health": "/healthz", "replicas": 1, "drain": "1s", "grace": "1s"}
        return Release(
            id=f"{self.name}-prod-{number}",
            service=self.name,
            environment="prod",
            version=str(number),
            artifact="",
            platform="kubernetes",
            run=Run.model_validate(run | {"env": {"NUMBER": str(number)}}),
            route=Route(),
            rollout=Rollout(),
            created_at=0,
            kubernetes=self._there,
            image=IMAGE,
        )

    def plan(self) -> None:
        assert [change.what for change in self.platform.cluster.plan(self.release(1))]  # type: ignore[union-attr]

    def first(self) -> None:
        new = self.release(1)
        self._start(new)
        self.platform.router.set_shares({new.id: 100})
        self.platform.router.match(None)

    def canary(self) -> None:
        old, new = self.release(1), self.release(2)
        self._start(new)
        for share in (10, 50, 100):
            shares = {new.id: share, old.id: 100 - share}
            self.platform.router.set_shares(shares)
            self.platform.router.shares()
            self.platform.workloads.endpoints(new.id)
        self.platform.router.match(None)
        self.platform.router.detach(old.id)
        self.platform.workloads.stop(old.id, 1)

    def status(self) -> None:
        assert self.platform.router.shares() == {self.release(2).id: 100}
        assert len(self.platform.workloads.endpoints(self.release(2).id).ready) == 1

    def _start(self, new: Release) -> None:
        self.platform.workloads.start(new, 1)
        give_up = time.monotonic() + READY_SECONDS
        while not (seen := self.platform.workloads.endpoints(new.id)).ready:
            assert time.monotonic() < give_up, seen
            time.sleep(0.2)
        self.platform.router.attach(seen)
        self.platform.router.match(rollout_rules(new, cohort_on=False))


def measured(
    services: list[Service], act: Callable[[Service], None], at_once: int
) -> dict[str, Any]:
    """-> seconds and API calls of each, the first and the last tenth apart."""

    def one(service: Service) -> tuple[float, int]:
        calls, began = service.api.calls, time.monotonic()
        act(service)
        return time.monotonic() - began, service.api.calls - calls

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        each = list(pool.map(one, services))
    tenth = max(1, len(each) // 10)

    def median(part: list[tuple[float, int]], index: int) -> float:
        return round(statistics.median(pair[index] for pair in part), 3)

    return {
        "seconds in all": round(time.monotonic() - began, 1),
        "median seconds of the first tenth": median(each[:tenth], 0),
        "median seconds of the last tenth": median(each[-tenth:], 0),
        "median calls of the first tenth": median(each[:tenth], 1),
        "median calls of the last tenth": median(each[-tenth:], 1),
        "most calls": max(calls for _, calls in each),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=8, help="services in a wave")
    parser.add_argument("--json", type=Path, default=Path(".bench/kube-services.json"))
    given = parser.parse_args()
    told: dict[str, Any] = {"services": given.services, "at once": given.at_once}
    with tempfile.TemporaryDirectory(prefix="dafnck-kube-") as name, running(Path(name)) as kube:
        kube.namespace("many")
        kube.namespace("infra")
        _gateway(kube)
        services = [Service(kube, number) for number in range(1, given.services + 1)]
        for what in ("plan", "first", "canary", "status"):
            told[what] = measured(services, getattr(Service, what), given.at_once)
            print(what, json.dumps(told[what]), flush=True)
        told["calls by verb"] = dict(Counter(verb for verb, _ in kube.requests.calls.elements()))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


def _gateway(kube: Kube) -> None:
    """One that the fake cluster itself programs."""
    controller = {"controllerName": CONTROLLER}
    kube.make("GatewayClass", {"metadata": {"name": "none"}, "spec": controller})
    routes = {"namespaces": {"from": "All"}}
    listener = {"name": "web", "port": 80, "protocol": "HTTP", "allowedRoutes": routes}
    body = {
        "metadata": {"name": "web"},
        "spec": {"gatewayClassName": "none", "listeners": [listener]},
    }
    kube.make("Gateway", body, "infra")


if __name__ == "__main__":
    sys.exit(main())
