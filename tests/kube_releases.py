"""Releases on a cluster as bare as routers need them: pods, and the Service that bears their id."""

from dataclasses import dataclass

import pytest
from kube_fixtures import Kube

from blocks.kube_api import DEPLOYMENTS, SERVICES, KubeApi
from blocks.kube_services import ready_pods
from policy.kube_names import PORT_NAME, RELEASE, own_labels, pair_label
from policy.release import Endpoints


@dataclass(frozen=True)
class Releases:
    """Of the service shop in the environment prod."""

    api: KubeApi
    namespace: str
    image: str

    def run(self, name: str, replicas: int = 1, *, after: str = "") -> Endpoints:
        """Have so many pods ready. `after`: the release that it follows."""
        labels = own_labels("shop", "prod") | {RELEASE: name}
        pairs = dict(pair_label(release) for release in (name, after) if release)
        container = {
            "name": "app",
            "image": self.image,
            "args": [name],
            "ports": [{"name": PORT_NAME, "containerPort": 8080}],
        }
        meta = {"name": name, "namespace": self.namespace, "labels": labels}
        pod = {
            "metadata": {"labels": labels | pairs},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
        }
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": {RELEASE: name}},
            "template": pod,
        }
        port = {"name": PORT_NAME, "port": 80, "targetPort": PORT_NAME, "protocol": "TCP"}
        service = {"selector": {RELEASE: name}, "ports": [port]}
        for version, kind, wanted in (
            ("apps/v1", "Deployment", spec),
            ("v1", "Service", service),
        ):
            self.api.apply({"apiVersion": version, "kind": kind, "metadata": meta, "spec": wanted})
        from conftest import wait_for

        wait_for(lambda: len(self.ready(name)) == replicas, f"{replicas} pods of {name} are ready")
        return self.endpoints(name)

    def remove(self, name: str) -> None:
        for kind in (DEPLOYMENTS, SERVICES):
            self.api.delete(kind, self.namespace, name)
        from conftest import wait_for

        wait_for(
            lambda: not self.ready(name) and not self.api.get(SERVICES, self.namespace, name),
            f"{name} is gone",
        )

    def ready(self, service: str) -> frozenset[str]:
        return ready_pods(self.api, self.namespace, service)

    @property
    def host(self) -> str:
        """Of their own: a Gateway may serve routes of other tests."""
        return f"shop.{self.namespace}.test"

    def endpoints(self, name: str) -> Endpoints:
        return Endpoints(name, 1, (f"http://{name}",), (f"http://{name}",), host=self.host)


@pytest.fixture
def releases(kube: Kube) -> Releases:
    return Releases(kube.api(), kube.namespace("shop"), "registry.test/app:1")


@pytest.fixture
def gateway_place(kube: Kube) -> tuple[str, str, str | None]:
    """Of a Gateway, with nothing behind it but the word of a controller."""
    controller = {"controllerName": "traefik.io/gateway-controller"}
    kube.make("GatewayClass", {"metadata": {"name": "traefik"}, "spec": controller})
    everyone = {"namespaces": {"from": "All"}}
    listener = {"name": "web", "port": 8000, "protocol": "HTTP", "allowedRoutes": everyone}
    spec = {"gatewayClassName": "traefik", "listeners": [listener]}
    namespace = kube.namespace("infra")
    kube.make("Gateway", {"metadata": {"name": "web"}, "spec": spec}, namespace)
    return namespace, "web", None
