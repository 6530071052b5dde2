"""A service on Kubernetes for tests: on the fake of `kube_fixtures`, or on the cluster that
`make test-kubernetes` is told of."""

import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from docker_fixtures import own_name
from kube_fixtures import Gateway, Kube
from ruamel.yaml import YAML

from blocks.kube_api import DEPLOYMENTS, ENDPOINT_SLICES, Kind, KubeApi, connect
from blocks.ledger import Ledger
from blocks.ledger_tables import rollouts, stables
from blocks.stack import Stack
from policy.kube_names import RELEASE, SERVICE, shared_name
from policy.kubernetes import Kubernetes
from policy.release import Phase

NAMESPACES = Kind("v1", "namespaces", namespaced=False)
QUICK = {"drain": "3s", "grace": "1s", "start": "30s", "replicas": 2}


@dataclass
class KubeStage:
    api: KubeApi
    namespace: str
    folder: Path
    build: dict[str, Any]  # of its image
    name: str = field(default_factory=lambda: own_name("k"))
    gateway: str | None = None
    url: str | None = None  # of the gateway, where its status does not tell
    door: str | None = None  # where requests can be sent to, with the Host header
    metrics: str | None = None  # of the Traefik behind the gateway
    inside: Callable[[], str] | None = None  # who answers callers inside the cluster

    @property
    def host(self) -> str:
        return f"{self.name}.local.localhost"

    @property
    def judged(self) -> bool:
        return self.metrics is not None

    def target(self) -> Kubernetes:
        return Kubernetes.model_validate(self._there())

    def _there(self) -> dict[str, Any]:
        there: dict[str, Any] = {"namespace": self.namespace}
        there |= {"gateway": self.gateway} if self.gateway else {}
        there |= {"url": self.url} if self.url else {}
        return there | ({"metrics": {"traefik": self.metrics}} if self.metrics else {})

    def file(self, file: str = "dafnck.yaml", **parts: Any) -> Path:
        """Write a service file of it with these parts laid over. -> its path"""
        document = {
            "version": 1,
            "service": self.name,
            "platform": "kubernetes",
            "build": {"image": self.build},
            "rollout": {"strategy": "blue-green"},
            **parts,
            "run": {"port": 8000, "health": "/healthz"} | QUICK | parts.get("run", {}),
            "kubernetes": self._there() | parts.get("kubernetes", {}),
        }
        path = self.folder / file
        with path.open("w") as text:
            YAML().dump(document, text)
        return path

    def answers(self) -> str:
        if self.door is None:
            assert self.inside is not None
            return self.inside()
        request = urllib.request.Request(self.door, headers={"Host": self.host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return f"status {error.code}"

    def left(self) -> set[str]:
        found = self.api.list(DEPLOYMENTS, self.namespace, {SERVICE: self.name})
        return {one["metadata"]["labels"][RELEASE] for one in found}


def on_fake(kube: Kube, folder: Path, name: str = "", **more: Any) -> KubeStage:
    """A service in a namespace of its own, of an image that nobody has to build."""
    name = name or own_name("k")
    kube.namespace(name, **{"pod-security.kubernetes.io__enforce": "restricted"})
    build = {"reference": f"registry.example.org/{name}@sha256:{'5' * 64}"}
    return KubeStage(kube.api(), name, folder, build, name, **more)


def on_gateway(kube: Kube, traefik: Gateway, folder: Path, name: str = "") -> KubeStage:
    return on_fake(
        kube,
        folder,
        name,
        gateway=f"{traefik.namespace}/{traefik.name}",
        url=traefik.url,
        door=f"{traefik.url}/",
        metrics=f"{traefik.api}/metrics",
    )


@pytest.fixture
def kube_gateway_stage(
    kube: Kube,
    kube_gateway: Gateway,
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[KubeStage]:
    """On the fake cluster, with a real Traefik in front."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    stage = on_gateway(kube, kube_gateway, tmp_path)
    yield stage
    forget(stack, stage.name)


@pytest.fixture
def kube_service_stage(
    kube: Kube, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubeStage]:
    """On the fake cluster, with a Service alone: who it sends requests to is asked there."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    stage = on_fake(kube, tmp_path)
    stage.inside = lambda: _by_the_service(stage)
    yield stage
    forget(stack, stage.name)


def forget(stack: Stack, service: str) -> None:
    """The cluster goes with its test; the ledger serves the next one, whose `dafnck up` would look
    for what it says is stable there."""
    ledger = Ledger(stack.ledger_url)
    engine = sa.create_engine(ledger.url)
    ended = {"phase": Phase.FAILED.value, "reason": "its cluster is gone"}
    with engine.begin() as db:
        db.execute(stables.delete().where(stables.c.service == service))
        left = (rollouts.c.service == service) & rollouts.c.finished_at.is_(None)
        db.execute(rollouts.update().where(left).values(**ended, finished_at=time.time()))
    engine.dispose()
    ledger.close()


def _by_the_service(stage: KubeStage) -> str:
    labels = {"kubernetes.io/service-name": shared_name(stage.name, "local")}
    ready = [
        (endpoint["addresses"][0], part["ports"][0]["port"])
        for part in stage.api.list(ENDPOINT_SLICES, stage.namespace, labels)
        for endpoint in part["endpoints"]
        if endpoint["conditions"]["ready"]
    ]
    if not ready:
        return "nobody"
    address, port = secrets.choice(ready)
    with urllib.request.urlopen(f"http://{address}:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def real_cluster_stage(
    docker: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubeStage]:
    """In a namespace of its own, under the restricted Pod Security Standard; removed at the end."""
    monkeypatch.setenv("KUBECONFIG", os.environ["DAFNCK_TEST_KUBECONFIG"])
    api, name = connect(), own_name("k")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    namespace["metadata"] |= {"labels": labels}  # type: ignore[operator]
    api.create(NAMESPACES, "", namespace)
    with (source / "Dockerfile").open("a") as file:
        file.write("FROM app AS numbered\nUSER 10001\n")
    registry = os.environ.get("DAFNCK_TEST_REGISTRY", "127.0.0.1:5000")
    url = os.environ.get("DAFNCK_TEST_GATEWAY_URL", "http://127.0.0.1:8880")
    stage = KubeStage(
        api,
        name,
        source,
        {"target": "numbered", "push": f"{registry}/{name}"},
        name,
        os.environ.get("DAFNCK_TEST_GATEWAY", "infra/web"),
        url,
        f"{url}/",
        os.environ.get("DAFNCK_TEST_TRAEFIK_METRICS", "http://127.0.0.1:8881/metrics"),
    )
    yield stage
    api.delete(NAMESPACES, "", name)
