"""Everything that one rollout acts on: a service in an environment, its platform, the ledger."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from blocks.attestations import Attestations
from blocks.builder import Builder
from blocks.checkouts import Checkouts
from blocks.ledger import Ledger
from blocks.notifications import Notifications
from blocks.object_store import object_store
from blocks.platforms import Platform, local_platform
from blocks.ports import Notifier, ObjectStore
from blocks.signing import Keys
from blocks.stack import Stack, listens
from blocks.trivy import Trivy
from policy.service_file import ServiceFile
from tasks.outbox import Outbox
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
        checkouts: Checkouts,
        attestations: Attestations,
        store: ObjectStore,
        reports: Path,
        evidence: Path,
        trivy: Trivy,
        notifier: Notifier,
        clock: Callable[[], float] = time.time,
        token: str | None = None,
        folders: tuple[Path, ...] = (),
    ) -> None:
        self.service = service
        self.environment = environment
        self.ledger = ledger
        self.platform = platform
        self.builder = builder
        self.checkouts = checkouts
        self.attestations = attestations
        self.store = store
        self.reports = reports
        self.evidence = evidence  # what tests, scans and gates leave
        self.trivy = trivy
        self.outbox = Outbox(notifier)
        self.clock = clock
        self.token = token  # of the lease under which it is acted on
        self.folders = folders  # in which files are written that a death leaves half-written

    def led(self, platform: Platform, token: str) -> "Site":
        """The same under a lease, which this platform looks at before each write."""
        site = copy(self)
        site.platform, site.token = platform, token
        return site

    @contextmanager
    def act(self, rollout_id: int | None, act: str, **detail: Any) -> Iterator[dict[str, Any]]:
        """As the ledger's `act`; of what belongs to no rollout the ledger keeps nothing."""
        if rollout_id is None:
            yield {}
            return
        with self.ledger.act(rollout_id, act, **detail) as said:
            yield said

    def __repr__(self) -> str:
        return f"{self.service} in {self.environment}"


def local_site(stack: Stack, ledger: Ledger, service: str, environment: str) -> Site:
    return Site(
        service,
        environment,
        ledger=ledger,
        platform=local_platform(stack, service, environment),
        builder=Builder(stack.artifacts),
        checkouts=Checkouts(stack.checkouts),
        attestations=Attestations(stack.artifacts, Keys(stack.secrets, stack.keys)),
        store=store_of(stack),
        reports=stack.reports,
        evidence=stack.evidence,
        trivy=Trivy(stack.scan_cache),
        notifier=Notifications(stack),
        folders=(
            stack.dynamic,
            stack.supervisor / "conf.d",
            stack.releases,
            stack.artifacts,
            stack.checkouts,
            stack.reports,
            stack.evidence,
            stack.scratch,
            stack.scan_cache,
        ),
    )


def site_of_file(
    stack: Stack, ledger: Ledger, wanted: ServiceFile, environment: str, file: Path
) -> Site:
    """Raises BadInput, with file and line, for a host or port that this service cannot have."""
    port = wanted.route.port
    for service, other, release_id, _ in ledger.stables():
        if (service, other) == (wanted.service, environment):
            continue
        there = ledger.release(release_id)
        if port is not None and there.route.port == port:
            words = f"{port} is in use by {service} in {other}; choose another"
            raise mistake_at(file, environment, ("route", "port"), words)
        host = wanted.route.host or f"{wanted.service}.{environment}.localhost"
        if port is None and not there.route.port and host.lower() == there.host.lower():
            words = f"{host} is in use by {service} in {other}; choose another"
            raise mistake_at(file, environment, ("route", "host"), words)
    if port is not None and port not in stack.ports.services:
        words = f"{port} is none of the router's; give it this one: dafnck up --listen {port}"
        if listens(port):
            words = f"{port} is in use by another program; choose another"
        raise mistake_at(file, environment, ("route", "port"), words)
    return local_site(stack, ledger, wanted.service, environment)


def store_of(stack: Stack) -> ObjectStore:
    if stack.store_url:
        return object_store(stack.store_url)
    own = f"s3://dafnck?endpoint=http://127.0.0.1:{stack.ports.object_store}"
    return object_store(own, stack.store_credentials)
