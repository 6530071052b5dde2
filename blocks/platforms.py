"""A platform is a bundle of the three ports; here they are put together."""

from dataclasses import dataclass

from blocks.local_processes import LocalProcesses
from blocks.ports import TrafficMetrics, TrafficRouter, Workloads
from blocks.stack import Stack
from blocks.traefik import TraefikMetrics, TraefikRouter
from policy.release import Release
from policy.service_file import Route


@dataclass(frozen=True)
class Platform:
    workloads: Workloads
    router: TrafficRouter
    metrics: TrafficMetrics
    url: str  # where requests come in
    host: str  # their Host header


def local_platform(stack: Stack, service: str, environment: str, route: Route) -> Platform:
    """Processes under supervisord with Traefik in front."""
    host = route.host or f"{service}.{environment}.localhost"
    router = TraefikRouter(
        stack.dynamic,
        stack.router_api_url,
        service,
        environment,
        host=host,
        entry_point=f"port-{route.port}" if route.port else "web",
    )
    metrics = TraefikMetrics(stack.router_api_url)
    url = f"http://127.0.0.1:{route.port or stack.ports.web}"
    return Platform(LocalProcesses(stack), router, metrics, url, host)


def platform_of(stack: Stack, release: Release) -> Platform:
    return local_platform(stack, release.service, release.environment, release.route)
