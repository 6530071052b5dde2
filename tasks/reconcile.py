"""Ends every rollout that nobody leads any more: traffic to stable first, then the rest.

`Watch` says whether anybody leads; `end` puts right; `close` tells. Used by the guard, by
`dafnck up` and by the flow `reconcile`, in any number of processes at once: who acts holds the
lease. All that must be remembered is in the ledger, so each may be killed anywhere.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from blocks.ledger import Ledger
from blocks.ledger_leases import LEASE_SECONDS, holder_died
from policy.change import ChangeRecord, is_place
from policy.errors import DafnckError, NotAllowed, Refused, Unreachable
from policy.release import TERMINAL, UNLED, Lease, Phase, RolloutRecord
from tasks.lease import held_lease
from tasks.put_back import unfinished_first
from tasks.report import write_report
from tasks.site import Site

log = logging.getLogger("dafnck")

LOOK_SECONDS = 1.0


class FlowRuns(Protocol):
    """What is needed of Prefect's API."""

    def state(self, flow_run_id: str) -> dict[str, object]: ...
    def set_state(
        self, flow_run_id: str, kind: str, message: str = "", *, force: bool = False
    ) -> None: ...


@dataclass(frozen=True)
class Unled:
    """A place in which nobody leads what is unfinished. That of a change of several services is
    named by its stack (`policy.change.place_of`)."""

    service: str
    environment: str
    why: str
    lease: Lease | None  # to be taken over


@dataclass
class _Seen:
    lease: Lease
    seconds: float = 0.0  # for so long it was looked at and not renewed


@dataclass
class Watch:
    """Tells who leads from leases alone, by its own monotonic clock. Wall clocks do not matter.

    A look counts for two seconds at most: time in which nobody looked (the ledger was away, this
    process or the whole machine stood still) is no time in which others failed to renew."""

    monotonic: Callable[[], float] = time.monotonic
    _seen: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    _looked_at: float | None = None

    def look(self, ledger: Ledger) -> list[Unled]:
        """Raises Unreachable when the ledger cannot be read."""
        unfinished: list[RolloutRecord | ChangeRecord]
        unfinished = [*ledger.unfinished(), *ledger.unfinished_changes()]
        left = {(one.service, one.environment): one for one in unfinished}
        leases = {(lease.service, lease.environment): lease for lease in ledger.leases()}
        now = self.monotonic()
        passed = min(now - self._looked_at, 2 * LOOK_SECONDS) if self._looked_at else 0.0
        self._looked_at = now
        self._seen = {place: seen for place, seen in self._seen.items() if place in leases}
        found = []
        for place in sorted({*left, *leases}):
            one, lease = left.get(place), leases.get(place)
            why = self._lapsed(place, lease, passed) if lease else self._left(ledger, one)
            if why:
                found.append(Unled(*place, why, lease))
        return found

    def _lapsed(self, place: tuple[str, str], lease: Lease, passed: float) -> str:
        if holder_died(lease):
            return "its process died"
        seen = self._seen.get(place)
        if seen is None or seen.lease != lease:
            self._seen[place] = _Seen(lease)
            return ""
        seen.seconds += passed
        if seen.seconds < LEASE_SECONDS:
            return ""
        return f"its lease lapsed: not renewed for {seen.seconds:.0f} s"

    def _left(self, ledger: Ledger, one: RolloutRecord | ChangeRecord | None) -> str:
        """Its lease was given back before it ended. Asked once more: it may have ended or been
        frozen between our two questions."""
        if one is None:
            return ""
        if isinstance(one, ChangeRecord):
            over = ledger.change(one.id).verdict is not None
        else:
            over = ledger.rollout(one.id).phase in UNLED
        if over:
            return ""
        return "its process ended and left it unfinished"


def end(site: Site, unled: Unled, who: str, *, stays: bool = False) -> list[Phase]:
    """End what nobody leads, under its lease, also when it is leftovers alone. -> the phases it
    ended in; none when somebody else acts already. `stays`: this process goes on, and need not wait
    for what it tells people."""
    with ExitStack() as until:
        until.callback(site.outbox.let_go if stays else site.outbox.close)  # the lease is free then
        try:
            site, _ = until.enter_context(held_lease(site, who, over=unled.lease))
        except NotAllowed:
            raise  # nobody acts: we are not let in
        except Refused as taken:
            log.info("%s: %s", site, taken)
            return []
        return unfinished_first(site, unled.why)


def close(
    site: Site,
    rollout: RolloutRecord,
    runs: FlowRuns | None,
    report: Callable[[Site, int], object] = write_report,
) -> bool:
    """Report a rollout that somebody else had to end, and have Prefect show its run as crashed.
    -> False while Prefect does not answer: to be tried again later."""
    if rollout.left_run is not None:
        if runs is None or not show_as_crashed(
            runs, rollout.left_run, "it died; another run goes on"
        ):
            return False
        site.ledger.told_of_left_run(rollout.id)
    if rollout.taken_over is None or rollout.phase not in UNLED:
        return True  # it is led again
    if rollout.flow_run_id is not None:
        if runs is None or not show_as_crashed(runs, rollout.flow_run_id, rollout.taken_over or ""):
            return False
    report(site, rollout.id)
    site.ledger.close_rollout(rollout.id)
    return True


def show_as_crashed(runs: FlowRuns, flow_run_id: str, why: str) -> bool:
    try:
        if runs.state(flow_run_id).get("type") not in TERMINAL:
            runs.set_state(flow_run_id, "CRASHED", why, force=True)
    except Unreachable:
        return False
    except NotAllowed as error:  # until somebody repairs that
        log.error("%s", error)
        return False
    except Refused as unknown:  # of another server, or removed: there is nothing to show it on
        log.warning("%s", unknown)
    return True


def everywhere(
    ledger: Ledger,
    site_of: Callable[[str, str], Site],
    runs: FlowRuns | None,
    who: str,
) -> list[str]:
    """One look, for those who do not stay: end what is known to be dead. -> what was done. What
    might still be led is left to the guard, which can wait and see. Raises the first trouble, after
    all had their turn."""
    said: list[str] = []
    troubles: list[DafnckError] = []
    for unled in Watch().look(ledger):
        if is_place(unled.service):
            continue  # of several services: tasks/change.py
        try:
            phases = end(site_of(unled.service, unled.environment), unled, who)
            said += [f"{unled.service} in {unled.environment}: {phase}" for phase in phases]
        except DafnckError as error:
            troubles.append(error)
    for rollout in ledger.unclosed():
        try:
            close(site_of(rollout.service, rollout.environment), rollout, runs)
        except DafnckError as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return said
