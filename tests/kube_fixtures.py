"""A Kubernetes cluster in the process of the tests, and a real Traefik as its gateway.

from kube_fixtures import Kube, kube  # noqa: F401

def test_it(kube: Kube) -> None:
    kube.namespace("shop")
    kube.behave("shop-prod-2", status=500)  # a release, or a pattern of images
    api = kube.api()                        # blocks.kube_api.KubeApi; or kube.kubeconfig
"""

import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from kube_access import ADMIN, system
from kube_asked import Asked
from kube_behaviours import Behaviour, Pod
from kube_controllers import Controllers
from kube_nodes import Nodes
from kube_proxy import Proxy
from kube_requests import How, family
from kube_schema import Kind, Object
from kube_server import KubeServer

from blocks.kube_api import KubeApi, connect

TRAEFIK = Path(sys.executable).parent / "traefik"


class Kube(KubeServer):
    """The whole cluster: one node, everything in place, nobody in it.

    What a test turns: `requests` (rbac, absent, hooks, before_write, after_write, writes, calls),
    `faults`, `watches`, `nodes` (pace, add, lose, bring_back), `controllers` (gateways, off,
    slice_seconds), `proxy` (addresses of Services answer)."""

    kubeconfig: Path

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.controllers = Controllers(self.requests, self.loop, lambda: self.nodes.pace)
        self.nodes = Nodes(self.requests, self.controllers, self.loop)
        self.proxy = Proxy(self.store, self.loop)
        self.log_of = self._log
        self.admin = self.tokens.made(ADMIN)

    def start(self) -> None:
        super().start()
        for name in ("default", "kube-system"):
            self.namespace(name)
        self.nodes.add("node1")
        every = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        self.make("ClusterRole", {"metadata": {"name": "cluster-admin"}, "rules": [every]})
        self.kubeconfig = self.kubeconfig_of(self.admin)

    def stop(self) -> None:
        self.call(self.proxy.stop())
        self.call(self.nodes.stop())
        self.requests.addresses.give_back()
        super().stop()

    # -- who asks --------------------------------------------------------------------------------

    def api(self, token: str | None = None) -> KubeApi:
        """As administrator, or with this token."""
        return connect(config=json.dumps(self._config(token or self.admin)))

    def kubeconfig_of(self, token: str, name: str = "admin") -> Path:
        file = self.folder / f"{name}.kubeconfig"
        file.write_text(json.dumps(self._config(token)))  # JSON is YAML
        return file

    def token(self, namespace: str, account: str) -> str:
        """Of a ServiceAccount; `tokens.known.pop(it)` lets it expire."""
        return self.tokens.of_account(namespace, account)

    def _config(self, token: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "kube",
            "clusters": [{"name": "kube", "cluster": {"server": self.url}}],
            "users": [{"name": "kube", "user": {"token": token}}],
            "contexts": [{"name": "kube", "context": {"cluster": "kube", "user": "kube"}}],
        }

    # -- what is in it, without HTTP -------------------------------------------------------------

    def namespace(self, name: str, **labels: str) -> str:
        """-> its name. Of labels that are no words: `pod_security.kubernetes.io__enforce`."""
        named = {k.replace("__", "/").replace("_", "-"): v for k, v in labels.items()}
        self.make("Namespace", {"metadata": {"name": name, "labels": named}})
        self.make("ServiceAccount", {"metadata": {"name": "default"}}, name)
        return name

    def make(self, kind: str, body: Object, namespace: str = "") -> Object:
        """Write an object as the administrator does. -> as it is; as it was, when it is there"""
        found = self._kind(kind)
        with self.store.lock:
            held = self.store.get(family(found), (namespace, body["metadata"].get("name", "")))
            return held or self.requests.create(found, namespace, body)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        return self.store.get(family(self._kind(kind)), (namespace, name))

    def all(self, kind: str, namespace: str = "") -> list[Object]:
        with self.store.lock:
            return self.store.all(family(self._kind(kind)), namespace)

    def _kind(self, name: str) -> Kind:
        return next(kind for kind in self.requests.kinds() if kind.kind == name)

    # -- what it does ----------------------------------------------------------------------------

    def behave(self, which: str | Callable[[Pod], bool], **fields: Any) -> Behaviour:
        """Have pods of these images, or of this release, behave so (fields of a Behaviour)."""
        return self.nodes.behaviours.add(which, Behaviour(**fields))

    def autoscale(self, namespace: str, name: str, replicas: int) -> None:
        """Have a HorizontalPodAutoscaler want so many, within its bounds."""
        spec = (self.find("HorizontalPodAutoscaler", namespace, name) or {})["spec"]
        target = spec["scaleTargetRef"]
        wanted = max(spec["minReplicas"], min(spec["maxReplicas"], replicas))
        kind, where = self._kind(target["kind"]), (namespace, target["name"])
        user = system("horizontal-pod-autoscaler")
        how = How(user=user, manager="kube-controller-manager", part="scale")
        with self.store.lock:
            live = self.requests.get(kind, where)
            new = {**live, "spec": live["spec"] | {"replicas": wanted}}
            self.requests.update(kind, where, new, how)

    def _log(self, asked: Asked) -> str:
        pod, query = self.requests.get(asked.kind, asked.where), asked.query
        lines = self.nodes.log(pod, query.get("previous") == "true")
        if (tail := query.get("tailLines")) is not None:
            lines = lines[max(0, len(lines) - int(tail)) :]
        if query.get("timestamps") == "true":
            lines = [f"2026-01-01T00:00:00.000000000Z {line}" for line in lines]
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def running(folder: Path) -> Iterator[Kube]:
    cluster = Kube(folder)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    with running(tmp_path) as cluster:
        yield cluster


# -- a real gateway ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gateway:
    """A Traefik that serves the Gateway `infra/web` of the cluster."""

    url: str  # where requests come in
    api: str  # of Traefik: /metrics, /api/rawdata, /ping
    http: httpx.Client
    namespace: str = "infra"
    name: str = "web"

    def get(self, host: str, path: str = "/", **headers: str) -> httpx.Response:
        return self.http.get(self.url + path, headers={"Host": host, **headers})


def plain_http() -> httpx.Client:
    """Without the certificates, which take long to load."""
    return httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trust_env=False)


@contextmanager
def gateway(kube: Kube) -> Iterator[Gateway]:
    from conftest import free_port, wait_for

    web, api = free_port(), free_port()
    file = kube.folder / "traefik.yaml"
    file.write_text(json.dumps(_traefik(kube, web, api)))
    kube.controllers.gateways = False
    kube.namespace("infra")
    controller = {"controllerName": "traefik.io/gateway-controller"}
    kube.make("GatewayClass", {"metadata": {"name": "traefik"}, "spec": controller})
    listener = {"name": "web", "port": web, "protocol": "HTTP"}
    listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
    spec = {"gatewayClassName": "traefik", "listeners": [listener]}
    kube.make("Gateway", {"metadata": {"name": "web"}, "spec": spec}, "infra")
    process = subprocess.Popen([TRAEFIK, f"--configFile={file}"])
    try:
        wait_for(lambda: _programmed(kube), "the Gateway is programmed")
        with plain_http() as http:
            yield Gateway(f"http://127.0.0.1:{web}", f"http://127.0.0.1:{api}", http)
    finally:
        process.terminate()
        process.wait()


def _traefik(kube: Kube, web: int, api: int) -> Object:
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "INFO", "filePath": str(kube.folder / "traefik.log")},
        "entryPoints": {
            "web": {"address": f"127.0.0.1:{web}"},
            "traefik": {"address": f"127.0.0.1:{api}"},
        },
        "api": {"insecure": True},
        "ping": {"entryPoint": "traefik"},
        "metrics": {"prometheus": {"entryPoint": "traefik", "addServicesLabels": True}},
        "providers": {
            "providersThrottleDuration": "20ms",
            "kubernetesGateway": {
                "endpoint": kube.url,
                "token": kube.tokens.made(ADMIN),
                "statusAddress": {"ip": "127.0.0.1"},
            },
        },
    }


def _programmed(kube: Kube) -> bool:
    told = ((kube.find("Gateway", "infra", "web") or {}).get("status") or {}).get("conditions", [])
    return any(one["type"] == "Programmed" and one["status"] == "True" for one in told)


@pytest.fixture
def kube_gateway(kube: Kube) -> Iterator[Gateway]:
    with gateway(kube) as traefik:
        yield traefik
