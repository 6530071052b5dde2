"""One look at how far each service of a change got: by its rollouts in the ledger, by what serves,
and by its flow run while there is no rollout."""

from collections.abc import Callable

from blocks.ledger import Ledger
from policy.change import ChangeRecord, MemberRecord
from policy.errors import Unreachable
from policy.release import UNLED, Phase, RolloutRecord
from policy.waves import Seen, Standing
from tasks.change_runs import Runs
from tasks.put_back import no_way_back
from tasks.site import Site

NOT_BEGUN_SECONDS = 30 * 60  # a worker may be busy for long, but not for ever
TURNING = (Phase.DRAINING, Phase.ROLLING_BACK)  # decided: an abort changes nothing any more


def key_of(change: ChangeRecord, service: str, attempt: int = 0) -> str:
    """Of the flow run of its release, or of this attempt to take it back. Several ledgers may use
    one Prefect server: their changes have the same numbers, but began at other times."""
    back = f"-back-{attempt}" if attempt else ""
    return f"dafnck-change-{change.id}-{change.started_at:.6f}-{service}{back}"


class Look:
    def __init__(
        self,
        ledger: Ledger,
        change: ChangeRecord,
        runs: Runs,
        site_of: Callable[[str, str], Site],
    ) -> None:
        self._ledger, self._change, self._runs, self._site_of = ledger, change, runs, site_of
        self._read()

    def _read(self) -> None:
        self._rollouts = self._ledger.rollouts_of_change(self._change.id)
        self._serving = {
            service: (release_id, since)
            for service, environment, release_id, since in self._ledger.stables()
            if environment == self._change.environment
        }

    def release(self, service: str) -> RolloutRecord | None:
        """The rollout of its release."""
        return self._newest(service, "release")

    def _newest(self, service: str, kind: str) -> RolloutRecord | None:
        of = (r for r in self._rollouts if (r.service, r.kind) == (service, kind))
        return next(of, None)

    def all(self) -> dict[str, Seen]:
        members = self._ledger.members(self._change.id)
        return {member.service: self.of(member) for member in members}

    def of(self, member: MemberRecord) -> Seen:
        rollout = self.release(member.service)
        if rollout is None:
            return self._before_its_rollout(member)
        if rollout.phase is Phase.FROZEN and not self._ledger.leads(rollout):
            return Seen(Standing.FROZEN, rollout.reason)
        if rollout.phase not in UNLED or self._ledger.leads(rollout):
            return self._under_way(member, rollout)
        if rollout.phase is not Phase.PROMOTED:
            return Seen(Standing.UNDONE, f"{rollout.phase}: {rollout.reason}")
        return self._promoted(member, rollout)

    def _before_its_rollout(self, member: MemberRecord) -> Seen:
        if member.asked_at is None:
            return Seen(Standing.WAITING)
        try:
            run_id = member.run_id or self._runs.find(key_of(self._change, member.service))
            words = run_id and self._runs.ended(run_id)
        except Unreachable as error:
            return Seen(Standing.UNDER_WAY, str(error))
        if run_id is None:  # whoever asked died, or was not heard
            return Seen(Standing.WAITING)
        if words is None:
            late = self._ledger.clock() - member.asked_at > NOT_BEGUN_SECONDS
            overdue = f"has not begun for {NOT_BEGUN_SECONDS // 60} minutes" if late else ""
            return Seen(
                Standing.UNDER_WAY,
                "has not begun",
                overdue=overdue and f"{overdue}; is there a worker for it?",
                abortable=True,
                aborted=member.cancelled,
            )
        self._read()  # it may have begun between our two questions
        return self.of(member) if self.release(member.service) else Seen(Standing.UNDONE, words)

    def _under_way(self, member: MemberRecord, rollout: RolloutRecord) -> Seen:
        building = rollout.phase is Phase.BUILDING
        aborted = rollout.abort_reason is not None and (member.cancelled or not building)
        decided = rollout.phase in TURNING or rollout.phase in UNLED
        abortable = not decided and not self._one_way(rollout)
        return Seen(Standing.UNDER_WAY, rollout.phase, abortable=abortable, aborted=aborted)

    def _one_way(self, rollout: RolloutRecord) -> bool:
        """Is its migration past the point from which it would freeze instead of going back?"""
        if not self._contract(rollout.release_id):
            return False
        return no_way_back(self._site_of(rollout.service, rollout.environment), rollout)

    def _contract(self, release_id: str | None) -> bool:
        if release_id is None:
            return False
        return self._ledger.release(release_id).migration == "contract"

    def _promoted(self, member: MemberRecord, rollout: RolloutRecord) -> Seen:
        serving, since = self._serving.get(member.service, ("nothing", 0.0))
        if rollout.stable_id is not None and serving == rollout.stable_id:
            back = self._newest(member.service, "rollback")
            ended = back is None or (back.phase in UNLED and not self._ledger.leads(back))
            return Seen(Standing.BACK if ended else Standing.GOING_BACK)
        first = rollout.stable_id is None
        if member.kept:
            return Seen(Standing.KEPT, member.kept, first=first)
        own = serving == rollout.release_id
        promoted_at = since if own else rollout.finished_at or rollout.started_at
        failed, why, going = self._attempts(member)
        if going:
            return Seen(Standing.GOING_BACK)
        return Seen(
            Standing.PROMOTED,
            why,
            promoted_at=promoted_at,
            first=first,
            one_way=self._contract(rollout.release_id),
            superseded="" if own else serving,
            failed_attempts=failed,
        )

    def _attempts(self, member: MemberRecord) -> tuple[int, str, bool]:
        """To take it back: how many failed, why the last one did, and is one under way?"""
        if not member.back_attempts:
            return 0, "", False
        back = self._newest(member.service, "rollback")
        if back and (back.phase not in UNLED or self._ledger.leads(back)):
            return 0, "", True
        try:
            key = key_of(self._change, member.service, member.back_attempts)
            run_id = member.back_run_id or self._runs.find(key)
            words = run_id and self._runs.ended(run_id)
        except Unreachable:
            return 0, "", True
        if run_id is None:  # written down and never begun
            return member.back_attempts - 1, "", False
        serving = self._serving.get(member.service)
        self._read()  # it may have ended between our two questions
        if words is None or self._serving.get(member.service) != serving:
            return 0, "", True
        why = f"{back.phase}: {back.reason}" if back and back.flow_run_id == run_id else words
        return member.back_attempts, why, False
