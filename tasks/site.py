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
from blocks.platforms import Platform, kube_platform, local_platform
from blocks.ports import Notifier, ObjectStore
from blocks.secret_sources import SecretSources
from blocks.signing import Keys
from blocks.stack import Stack, listens
from blocks.trivy import Trivy
from policy.errors import NotAllowed
from policy.kubernetes import Kubernetes, door_of
from policy.release import Release
from policy.service_file import ServiceFile
from tasks.clusters import cluster_of
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
        secrets: SecretSources | None = None,
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
        self.secrets = secrets
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


def site_of(stack: Stack, ledger: Ledger, service: str, environment: str) -> Site:
    """On the platform of what serves there, or was released there last."""
    before = _newest(ledger, service, environment)
    there = before.kubernetes if before else None
    folder = Path(before.folder) if before else Path()
    platform = _platform(stack, service, environment, there, folder)
    if before is not None:
        _same_cluster(before, platform)
    return _site(stack, ledger, service, environment, platform)


def _same_cluster(before: Release, platform: Platform) -> None:
    """Whoever switches the context of the kubeconfig must not have us act on another cluster."""
    if before.cluster and before.cluster != platform.identity:
        raise NotAllowed(
            f"{before.id} is in another cluster ({before.cluster}) than the credentials lead to "
            f"now ({platform.identity}); nothing was changed. Switch back, or name its "
            "context in the service file: kubernetes.context"
        )


def _newest(ledger: Ledger, service: str, environment: str) -> Release | None:
    stable = ledger.stable(service, environment)
    newest = [stable] if stable else ledger.releases(service, environment)
    return ledger.release(newest[0]) if newest else None


def _platform(
    stack: Stack, service: str, environment: str, there: Kubernetes | None, folder: Path
) -> Platform:
    if there is None:
        return local_platform(stack, service, environment)
    return kube_platform(cluster_of(there), there, service, environment, folder)


def _site(stack: Stack, ledger: Ledger, service: str, environment: str, platform: Platform) -> Site:
    return Site(
        service,
        environment,
        ledger=ledger,
        platform=platform,
        builder=Builder(stack.artifacts),
        checkouts=Checkouts(stack.checkouts),
        attestations=Attestations(stack.artifacts, Keys(stack.secrets, stack.keys)),
        store=store_of(stack),
        reports=stack.reports,
        evidence=stack.evidence,
        trivy=Trivy(stack.scan_cache),
        notifier=Notifications(stack),
        secrets=SecretSources(stack),
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
    """Raises BadInput, with file and line, for a host, a port or a place that this service cannot
    have."""
    there = wanted.kubernetes if wanted.platform == "kubernetes" else None
    _stays(ledger, wanted, environment, file, there)
    port = wanted.route.port
    for service, other, release_id, _ in ledger.stables():
        if (service, other) == (wanted.service, environment):
            continue
        serves = ledger.release(release_id)
        if door_of(serves.kubernetes) != door_of(there):
            continue
        if port is not None and serves.route.port == port:
            words = f"{port} is in use by {service} in {other}; choose another"
            raise mistake_at(file, environment, ("route", "port"), words)
        host = wanted.route.host or f"{wanted.service}.{environment}.localhost"
        if port is None and not serves.route.port and host.lower() == serves.host.lower():
            words = f"{host} is in use by {service} in {other}; choose another"
            raise mistake_at(file, environment, ("route", "host"), words)
    if there is not None:
        platform = _platform(stack, wanted.service, environment, there, file.parent)
        if stable := ledger.stable(wanted.service, environment):
            _same_cluster(ledger.release(stable), platform)
        return _site(stack, ledger, wanted.service, environment, platform)
    if port is not None and port not in stack.ports.services:
        words = f"{port} is none of the router's; give it this one: dafnck up --listen {port}"
        if listens(port):
            words = f"{port} is in use by another program; choose another"
        raise mistake_at(file, environment, ("route", "port"), words)
    return site_of(stack, ledger, wanted.service, environment)


def _stays(
    ledger: Ledger,
    wanted: ServiceFile,
    environment: str,
    file: Path,
    there: Kubernetes | None,
) -> None:
    """No release can take traffic over from one that requests reach by another door."""
    stable = ledger.stable(wanted.service, environment)
    if stable is None:
        return
    now, words = ledger.release(stable).kubernetes, "changing it needs another environment, or: "
    words += f"dafnck down {wanted.service} --env {environment}"
    if (now is None) != (there is None):
        where = "on Kubernetes" if now else "on this machine"
        raise mistake_at(file, environment, ("platform",), f"{stable} serves {where}; {words}")
    if now is None or there is None:
        return
    for key in ("namespace", "context", "credentials", "gateway"):
        held = getattr(now, key)
        if held != getattr(there, key):
            told = f"{stable} serves by {held or 'none'}; {words}"
            raise mistake_at(file, environment, ("kubernetes", key), told)


def store_of(stack: Stack) -> ObjectStore:
    if stack.store_url:
        return object_store(stack.store_url)
    own = f"s3://dafnck?endpoint=http://127.0.0.1:{stack.ports.object_store}"
    return object_store(own, stack.store_credentials)
