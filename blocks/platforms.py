"""A platform is a bundle of the three ports; here they are put together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from blocks.by_release import ByRelease
from blocks.ports import TrafficMetrics, TrafficRouter, Workloads
from blocks.running import inspect
from blocks.stack import Stack
from blocks.traefik import TraefikMetrics, TraefikRouter
from policy.provenance import Link
from policy.release import Release


@dataclass(frozen=True)
class Platform:
    workloads: Workloads
    router: TrafficRouter
    metrics: TrafficMetrics
    web_port: int  # of the router on loopback, for releases without a port of their own
    inspect: Callable[[Release], Iterator[Link]] = lambda release: iter(())  # what it runs

    def url_of(self, release: Release) -> str:
        """Where requests for this release come in, with its Host header."""
        return f"http://127.0.0.1:{release.route.port or self.web_port}"


def local_platform(stack: Stack, service: str, environment: str) -> Platform:
    """Processes under supervisord and containers of the Docker engine, Traefik in front of both."""
    return Platform(
        ByRelease(stack),
        TraefikRouter(stack.dynamic, stack.router_api_url, service, environment),
        TraefikMetrics(stack.router_api_url),
        stack.ports.web,
        partial(inspect, stack),
    )
