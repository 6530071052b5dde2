"""A platform is a bundle of the three ports; here they are put together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blocks.by_release import ByRelease
from blocks.gateway_api import GatewayRouter
from blocks.gateway_traefik import GatewayTraefikMetrics
from blocks.kube_api import KubeApi
from blocks.kube_cluster import KubeCluster
from blocks.kube_lease import KubeLease
from blocks.kube_running import inspect_pods
from blocks.ports import TrafficMetrics, TrafficRouter, Workloads
from blocks.prometheus import PrometheusMetrics
from blocks.running import inspect
from blocks.service_selector import SelectorRouter
from blocks.stack import Stack
from blocks.traefik import TraefikMetrics, TraefikRouter
from policy.kubernetes import Kubernetes
from policy.provenance import Link
from policy.release import Release
from policy.samples import Counters


def _no_link(release: Release) -> Iterator[Link]:
    return iter(())


@dataclass(frozen=True)
class Platform:
    workloads: Workloads
    router: TrafficRouter
    metrics: TrafficMetrics
    # Where requests for a release come in, with its Host header; where its preview is reached.
    url_of: Callable[[Release], str]
    preview_url_of: Callable[[Release], str]
    inspect: Callable[[Release], Iterator[Link]] = _no_link  # what it runs
    by_replicas: bool = False  # the router splits by the number of replicas alone
    cluster: KubeCluster | None = None
    identity: str = ""  # of the cluster, whatever it is called
    lease: KubeLease | None = None  # keeps homes off each other whose ledgers do not meet
    # How long requests to what is new may be refused after the router has confirmed it: a Gateway
    # says "accepted" before its proxies know the pods.
    settle_seconds: float = 0.0


def local_platform(stack: Stack, service: str, environment: str) -> Platform:
    """Processes under supervisord and containers of the Docker engine, Traefik in front of both."""

    def url_of(release: Release) -> str:
        return f"http://127.0.0.1:{release.route.port or stack.ports.web}"

    return Platform(
        ByRelease(stack),
        TraefikRouter(stack.dynamic, stack.router_api_url, service, environment),
        TraefikMetrics(stack.router_api_url),
        url_of,
        url_of,
        partial(inspect, stack),
    )


def kube_platform(
    api: KubeApi, there: Kubernetes, service: str, environment: str, folder: Path
) -> Platform:
    """Pods, with a Gateway or a Service alone in front of them. Asks the cluster nothing yet.
    `folder`: of the service file, where the files that it names lie."""
    place = there.namespace, service, environment
    cluster = KubeCluster(api, *place)
    metrics = _metrics(there, service, environment, folder)
    looked_at, lease = partial(inspect_pods, api, there.namespace), KubeLease(api, *place)
    if there.gateway is not None:
        gateway = GatewayRouter(api, *place, there.gateway_parts())

        def door(release: Release) -> str:
            return there.url or gateway.url()

        return Platform(
            cluster,
            gateway,
            metrics,
            door,
            door,
            looked_at,
            cluster=cluster,
            identity=api.identity,
            lease=lease,
            settle_seconds=10.0,
        )
    selector = SelectorRouter(api, *place)
    return Platform(
        cluster,
        selector,
        metrics,
        lambda release: selector.url(),
        lambda release: selector.url(release.id),
        looked_at,
        by_replicas=True,
        cluster=cluster,
        identity=api.identity,
        lease=lease,
    )


class NoMetrics:
    """Of a service that no judge looks at."""

    def read(self) -> dict[str, Counters]:
        return {}


def _metrics(there: Kubernetes, service: str, environment: str, folder: Path) -> TrafficMetrics:
    if there.metrics is None:
        return NoMetrics()
    place = there.namespace, service, environment
    if there.metrics.traefik is not None:
        return GatewayTraefikMetrics(there.metrics.traefik, *place)
    return PrometheusMetrics(there.metrics, *place, folder)
