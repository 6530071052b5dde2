"""Leads a change of several services: looks, decides by `policy.waves`, does it, looks again.

All that must be remembered is in the ledger, so whoever holds the change's lease leads on: the
flow that began it, the guard after that one died, or whoever releases the stack next. No Prefect.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from blocks.ledger import Ledger
from policy.change import ChangeRecord, MemberRecord, place_of
from policy.errors import Refused, Unreachable
from policy.release import Lease
from policy.waves import (
    Abort,
    Begin,
    ChangeAction,
    ChangePlan,
    Close,
    Keep,
    TakeBack,
    Wait,
    next_change_action,
)
from tasks.change_cancel import Cancelling
from tasks.change_look import Look, key_of
from tasks.change_runs import Runs
from tasks.lease import Held
from tasks.site import Site

log = logging.getLogger("dafnck")
LOOK_SECONDS = 0.5
AGAIN_SECONDS = 1.0

Sites = Callable[[str, str], Site]


class Change:
    def __init__(
        self,
        ledger: Ledger,
        record: ChangeRecord,
        runs: Runs,
        site_of: Sites,
        told: Callable[[ChangeAction], None] = lambda action: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`told`: hears of each action before it is done."""
        self.id, self.record = record.id, record
        self._ledger, self._runs, self._site_of = ledger, runs, site_of
        self._told, self._sleep = told, sleep
        self._members = {m.service: m for m in ledger.members(record.id)}
        after = {name: member.after for name, member in self._members.items()}
        self._plan = ChangePlan(after, record.at_once)
        self._silent = ""
        self._cancelling = Cancelling(ledger, record, runs)

    def look(self) -> Look:
        return Look(self._ledger, self.record, self._runs, self._site_of)

    def lead(self, held: Held) -> ChangeRecord:
        """To its end, under its lease. -> how it ended. Raises LeaseLost when another process
        leads it, Unreachable when the ledger was away for so long that one might."""
        while True:
            held.check()
            try:
                action = self._next()
                if not isinstance(action, Wait):
                    held.fence()
                    self._tell(action)
                if isinstance(action, Close):
                    self._ledger.close_change(self.id, action.verdict, action.reason)
                    return self._ledger.change(self.id)
                self.perform(action)
                if isinstance(action, Wait):
                    self._cancelling.insist(self._ledger.members(self.id), self.look())
                self._silent = ""
            except Unreachable as error:
                if str(error) != self._silent:
                    log.warning("%s", error)
                self._silent = str(error)
                action = Wait()
            if isinstance(action, Wait):
                self._sleep(AGAIN_SECONDS if self._silent else LOOK_SECONDS)

    def _next(self) -> ChangeAction:
        trouble = self._ledger.change(self.id).trouble or ""
        return next_change_action(self._plan, self.look().all(), trouble)

    def _tell(self, action: ChangeAction) -> None:
        log.info("%s %s: %s", self.record.stack, self.record.version, _words(action))
        self._told(action)

    def perform(self, action: ChangeAction) -> None:
        """Each act is written down before it is done, and done twice it is done once."""
        if isinstance(action, Abort | TakeBack | Keep):
            self._ledger.trouble_change(self.id, action.reason)
        match action:
            case Begin(service):
                self._begin(self._member(service))
            case Abort(services, reason):
                self._abort(services, reason)
            case TakeBack(service):
                self._take_back(self._member(service))
            case Keep(service, why):
                self._ledger.keep_member(self.id, service, why)

    def abandon(self, why: str) -> None:
        """Its leader ends before it does: what rolls out goes back at once, by its own processes.
        The rest is the guard's, who finds the change unfinished and nobody who leads it."""
        log.warning("%s", why)
        self._ledger.trouble_change(self.id, why)
        seen = self.look().all()
        names = tuple(s for s, one in seen.items() if one.abortable and not one.aborted)
        if names:
            self.perform(Abort(names, why))

    def _member(self, service: str) -> MemberRecord:
        return next(m for m in self._ledger.members(self.id) if m.service == service)

    def _begin(self, member: MemberRecord) -> None:
        self._ledger.ask_member(self.id, member.service)
        name = f"{member.service} {self.record.version} → {self.record.environment}"
        parameters = {**member.parameters, "change": self.id}
        run_id = self._runs.begin("release", parameters, name, key_of(self.record, member.service))
        self._ledger.run_of_member(self.id, member.service, run_id)

    def _abort(self, services: tuple[str, ...], reason: str) -> None:
        words = f"the change {self.record.stack} {self.record.version} is taken back: {reason}"
        look = self.look()
        for service in services:
            if rollout := look.release(service):
                self._ledger.abort(rollout.id, words, f"change {self.id}")
        self._cancelling.cancel([self._member(service) for service in services], look)

    def _take_back(self, member: MemberRecord) -> None:
        rollout = self.look().release(member.service)
        assert rollout
        assert rollout.stable_id
        attempt = member.back_attempts
        if not attempt or member.back_run_id or self._runs.find(self._back(member, attempt)):
            attempt += 1
            self._ledger.ask_back(self.id, member.service)
        parameters = {
            "service": member.service,
            "environment": self.record.environment,
            "to": rollout.stable_id,
            "by": f"change {self.id} of {self.record.stack}",
            "change": self.id,
            "instead_of": rollout.release_id,
        }
        name = f"{member.service} ← {self.record.environment}"
        run_id = self._runs.begin("rollback", parameters, name, self._back(member, attempt))
        self._ledger.run_of_back(self.id, member.service, run_id)

    def _back(self, member: MemberRecord, attempt: int) -> str:
        return key_of(self.record, member.service, attempt)


def _words(action: ChangeAction) -> str:
    match action:
        case Begin(service):
            return f"{service} begins"
        case Abort(services, reason):
            return f"{', '.join(services)} is ended: {reason}"
        case TakeBack(service, reason):
            return f"{service} is taken back: {reason}"
        case Keep(service, why):
            return f"{service} is left as it is: {why}"
        case Close(verdict, reason):
            return f"{verdict}: {reason}"
    return "waits"


@contextmanager
def held_change(
    ledger: Ledger, stack: str, environment: str, who: str, *, over: Lease | None = None
) -> Iterator[Held]:
    """The lease of a stack in an environment. `over`: see `Ledger.take_lease`."""
    place = place_of(stack)
    if over is None and (lease := ledger.lease(place, environment)):
        since = time.strftime("%H:%M:%S", time.localtime(lease.taken_at))
        raise Refused(
            f"{stack} in {environment} is being changed by {lease.holder} since {since}; nothing "
            "was touched. Wait for it, or end it: dafnck abort SERVICE, of one that rolls out"
        )
    held = Held(ledger, ledger.take_lease(place, environment, who, over=over))
    try:
        yield held
    finally:
        held.free()


def left_unfinished(ledger: Ledger, stack: str, environment: str) -> list[ChangeRecord]:
    """Oldest first."""
    found = ledger.unfinished_changes()
    return [c for c in reversed(found) if (c.stack, c.environment) == (stack, environment)]


def end_change(
    ledger: Ledger,
    runs: Runs,
    site_of: Sites,
    place: tuple[str, str],
    why: str,
    who: str,
    over: Lease | None,
) -> list[ChangeRecord]:
    """End what nobody leads of a stack in an environment: taken back, unless all of it serves. ->
    how it ended; nothing when somebody else leads it by now."""
    stack, environment = place
    with ExitStack() as leaving:
        try:
            held = leaving.enter_context(held_change(ledger, stack, environment, who, over=over))
        except Refused as taken:
            log.info("%s in %s: %s", stack, environment, taken)
            return []
        return [
            end_under(held, ledger, Change(ledger, record, runs, site_of), why)
            for record in left_unfinished(ledger, stack, environment)
        ]


def end_under(held: Held, ledger: Ledger, change: Change, why: str) -> ChangeRecord:
    leader = f" ({change.record.leader})" if change.record.leader else ""
    log.warning("the change %d of %s was left: %s", change.id, change.record.stack, why)
    ledger.trouble_change(change.id, f"{why}{leader}")
    return change.lead(held)


def end_changes(ledger: Ledger, runs: Runs, site_of: Sites, who: str) -> list[ChangeRecord]:
    """End those whose leader is known to be dead, for those who do not stay to watch."""
    places = {(c.stack, c.environment) for c in ledger.unfinished_changes()}
    why = "its process died before it could end the change"
    return [
        ended
        for place in sorted(places)
        for ended in end_change(ledger, runs, site_of, place, why, who, None)
    ]


def goes_on(ledger: Ledger, change_id: int | None, *, back: bool = False) -> None:
    """Raises Refused when the change that wanted a release, or a way back, is over meanwhile."""
    if change_id is None:
        return
    change = ledger.change(change_id)
    if change.verdict is not None:
        raise Refused(f"its change is over: {change.verdict}; nothing was changed")
    if change.trouble is not None and not back:
        raise Refused(f"its change is taken back: {change.trouble}; nothing was changed")
