"""Holds the lease of a service in an environment while a rollout acts on it.

Invariant: who holds a lease asks the ledger for it before each write to the router and the
platform: a process that stood still while another one took over moves nothing when it goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from blocks.kube_lease import KubeLease
from blocks.ledger import Ledger
from blocks.ledger_leases import LEASE_SECONDS, RENEW_SECONDS
from blocks.ports import TrafficRouter, Workloads
from policy.errors import DafnckError, LeaseLost, Unreachable
from policy.release import Endpoints, Lease, MatchRules, Release
from tasks.site import Site

log = logging.getLogger("dafnck")
AGAIN_SECONDS = 1.0  # after a renewal that failed


@dataclass(frozen=True)
class InCluster:
    """The lease that keeps other homes off, which do not share our ledger."""

    lease: KubeLease
    token: str


class Held:
    """The lease and whether it is still ours."""

    def __init__(self, ledger: Ledger, token: str) -> None:
        self.token = token
        self._ledger = ledger
        self._outer: InCluster | None = None
        self._lost = ""
        self._trouble = ""  # why the last renewal failed
        self._renewed_at = time.monotonic()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start("lease", self._renew)

    def also(self, outer: InCluster) -> None:
        """Renew and check that one too."""
        self._outer = outer
        self._start("lease there", partial(self._renew_in_cluster, outer))

    def _start(self, name: str, renew: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=renew, name=name, daemon=True))
        self._threads[-1].start()

    def check(self) -> None:
        """Raises LeaseLost when another process took over: it acts now, we must not. Raises
        Unreachable when the ledger was silent for so long that another one might."""
        if self._lost:
            raise LeaseLost(self._lost)
        if (stale := time.monotonic() - self._renewed_at) > LEASE_SECONDS:
            self.fence()
            why = f" ({self._trouble})" if self._trouble else ""
            raise Unreachable(f"the lease could not be renewed for {stale:.0f}s{why}; giving up")

    def fence(self) -> None:
        """Raises LeaseLost when the ledger says that another process took over. A ledger that does
        not answer stops nothing here: what still acts without it gives traffic back."""
        if self._lost:
            raise LeaseLost(self._lost)
        try:
            self._ledger.check_lease(self.token)
            if self._outer:
                self._outer.lease.check(self._outer.token)
        except Unreachable as error:
            log.warning("the lease could not be checked: %s", error)

    def free(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._outer:
            try:
                self._outer.lease.free(self._outer.token)
            except DafnckError as error:
                log.warning("the lease in the cluster was not given back: %s", error)
        try:
            self._ledger.free_lease(self.token)
        except Unreachable as error:
            log.warning("the lease was not given back and will lapse: %s", error)

    def _renew(self) -> None:
        pause = RENEW_SECONDS
        while not self._over.wait(pause):
            try:
                self._ledger.renew_lease(self.token)
                self._renewed_at, pause = time.monotonic(), RENEW_SECONDS
            except LeaseLost as lost:
                self._lost = str(lost)
                return
            except Unreachable as error:  # the next try may do
                self._trouble, pause = str(error), AGAIN_SECONDS
                log.warning("the lease was not renewed: %s", error)

    def _renew_in_cluster(self, outer: InCluster) -> None:
        """While the cluster is away nobody else can take it there either."""
        pause, silent = RENEW_SECONDS, ""
        while not self._over.wait(pause):
            try:
                outer.lease.renew(outer.token)
                pause, silent = RENEW_SECONDS, ""
            except LeaseLost as lost:
                self._lost = str(lost)
                return
            except DafnckError as error:
                pause = AGAIN_SECONDS
                if str(error) != silent:
                    silent = str(error)
                    log.warning("the lease in the cluster was not renewed: %s", error)


class FencedRouter:
    """A TrafficRouter whose every write is preceded by a look whether the lease is still ours."""

    def __init__(self, router: TrafficRouter, held: Held) -> None:
        self._router, self._held = router, held

    def attach(self, endpoints: Endpoints) -> None:
        self._held.fence()
        self._router.attach(endpoints)

    def detach(self, release_id: str) -> None:
        self._held.fence()
        self._router.detach(release_id)

    def shares(self) -> dict[str, int]:
        return self._router.shares()

    def set_shares(self, shares: dict[str, int]) -> None:
        self._held.fence()
        self._router.set_shares(shares)

    def match(self, rules: MatchRules | None) -> None:
        self._held.fence()
        self._router.match(rules)


class FencedWorkloads:
    """Workloads, likewise."""

    def __init__(self, workloads: Workloads, held: Held) -> None:
        self._workloads, self._held = workloads, held

    def start(self, release: Release, replicas: int) -> None:
        self._held.fence()
        self._workloads.start(release, replicas)

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        return self._workloads.endpoints(release_id, quick=quick)

    def stop(self, release_id: str, grace_seconds: float) -> None:
        self._held.fence()
        self._workloads.stop(release_id, grace_seconds)

    def running(self) -> list[str]:
        return self._workloads.running()

    def remove(self, release_id: str) -> None:
        self._held.fence()
        self._workloads.remove(release_id)


def _taken_in_cluster(site: Site, who: str) -> InCluster | None:
    """None where the ledger's lease is one that all can see."""
    lease, home = site.platform.lease, site.ledger.home
    if lease is None or home is None:
        return None
    return InCluster(lease, lease.take(home, who))


@contextmanager
def held_lease(site: Site, who: str, *, over: Lease | None = None) -> Iterator[tuple[Site, Held]]:
    """-> the site to act on, which is fenced, and the lease. `over`: see `Ledger.take_lease`."""
    ledger = site.ledger
    held = Held(ledger, ledger.take_lease(site.service, site.environment, who, over=over))
    try:
        # After ours is renewed: another home may have to be watched for as long as a lease lasts.
        if outer := _taken_in_cluster(site, who):
            held.also(outer)
        there = site.platform
        fenced = replace(
            there,
            router=FencedRouter(there.router, held),
            workloads=FencedWorkloads(there.workloads, held),
        )
        yield site.led(fenced, held.token), held
    finally:
        held.free()
