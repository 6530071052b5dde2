"""Ends the runs of a change that look for no abort: those without a rollout, and those that build.

A run is told to end before that is written down, so whoever was not heard asks again.
"""

from blocks.ledger import Ledger
from policy.change import ChangeRecord, MemberRecord
from policy.errors import Unreachable
from policy.release import Phase
from tasks.change_look import Look, key_of
from tasks.change_runs import Runs

AGAIN_SECONDS = 5.0  # while a run goes on although it was told to end
FORCE_SECONDS = 30.0  # until it counts as ended; coming late, it changes nothing (`goes_on`)


class Cancelling:
    def __init__(self, ledger: Ledger, record: ChangeRecord, runs: Runs) -> None:
        self._ledger, self._record, self._runs = ledger, record, runs
        self._since: dict[str, float] = {}  # service -> when it was told first
        self._again_at: dict[str, float] = {}

    def cancel(self, members: list[MemberRecord], look: Look) -> None:
        """Raises Unreachable when one of them could not be told; the others were."""
        silent: Unreachable | None = None
        for member in members:
            if not _looks_for_no_abort(member, look):
                continue
            try:
                self._tell(member, look)
                self._ledger.cancel_member(self._record.id, member.service)
            except Unreachable as error:
                silent = error
        if silent:
            raise silent

    def insist(self, members: list[MemberRecord], look: Look) -> None:
        """Tell those again that go on. One of which no rollout came is shown as cancelled in the
        end: nobody may be there who hears it."""
        now = self._ledger.clock()
        for member in members:
            if not member.cancelled or not _looks_for_no_abort(member, look):
                continue
            since = self._since.setdefault(member.service, now)
            if now >= self._again_at.setdefault(member.service, now + AGAIN_SECONDS):
                self._again_at[member.service] = now + AGAIN_SECONDS
                late = now - since >= FORCE_SECONDS
                self._tell(member, look, force=late and look.release(member.service) is None)

    def _tell(self, member: MemberRecord, look: Look, *, force: bool = False) -> None:
        rollout = look.release(member.service)
        known = member.run_id or (rollout and rollout.flow_run_id)
        if run_id := known or self._runs.find(key_of(self._record, member.service)):
            self._runs.cancel(run_id, force=force)


def _looks_for_no_abort(member: MemberRecord, look: Look) -> bool:
    rollout = look.release(member.service)
    return rollout is None or rollout.phase is Phase.BUILDING
