"""Everything that one rollout acts on: a service in an environment, its platform, the ledger."""

import time
from collections.abc import Callable
from pathlib import Path

from blocks.builder import Builder
from blocks.ledger import Ledger
from blocks.platforms import Platform, local_platform
from blocks.stack import Stack, listens
from policy.service_file import ServiceFile
from tasks.read import mistake_at


class Site:
    def __init__(
        self,
        service: str,
        environment: str,
        *,
        ledger: Ledger,
        platform: Platform,
        builder: Builder,
        reports: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.service = service
        self.environment = environment
        self.ledger = ledger
        self.platform = platform
        self.builder = builder
        self.reports = reports
        self.clock = clock

    def __repr__(self) -> str:
        return f"{self.service} in {self.environment}"


def local_site(stack: Stack, ledger: Ledger, service: str, environment: str) -> Site:
    return Site(
        service,
        environment,
        ledger=ledger,
        platform=local_platform(stack, service, environment),
        builder=Builder(stack.artifacts),
        reports=stack.reports,
    )


def site_of_file(
    stack: Stack, ledger: Ledger, wanted: ServiceFile, environment: str, file: Path
) -> Site:
    """Raises BadInput, with file and line, for a port that this service cannot have."""
    if (port := wanted.route.port) is not None:
        for service, other, release_id, _ in ledger.stables():
            taken = ledger.release(release_id).route.port == port
            if taken and (service, other) != (wanted.service, environment):
                raise mistake_at(
                    file,
                    environment,
                    ("route", "port"),
                    f"{port} is in use by {service} in {other}",
                )
        if port not in stack.ports.services:
            listener = "in use by another program" if listens(port) else "none of the router's"
            raise mistake_at(
                file,
                environment,
                ("route", "port"),
                f"{port} is {listener}; give the router one: dafnck up --listen PORT",
            )
    return local_site(stack, ledger, wanted.service, environment)
