"""What to do next in a rollout, decided from what is seen alone.

`next_action` has no memory: interrupted anywhere and asked again, it goes on. Invariants:
- traffic moves only to replicas that are ready;
- the stable release keeps what it needs to take everything back until the new one is promoted
  (except `rolling` and `recreate`, which say so by their names);
- from `freeze_at` on (a contract migration), where it would roll back it freezes: traffic moves
  neither way until a person has decided;
- nothing is promoted while the judge is unsure, unless a person says so after the deadline; a
  first release, which replaces nothing, is promoted on its health and says that.
"""

from dataclasses import dataclass, replace

from policy.quantities import in_words
from policy.release import FINISHED, Phase, Verdict
from policy.replica_ratio import attainable, share_of
from policy.service_file import Rollout

RESTARTS = 3  # of the new release's replicas; one may be an accident


@dataclass(frozen=True)
class Step:
    share: int  # of the requests, in percent, to the new release
    new: int  # replicas of the new release that must be ready
    stable: int  # replicas of the stable release that stay


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]
    bake_seconds: float
    deadline: float  # seconds since the epoch
    judged: bool = False
    first: bool = False  # there is no stable release
    approve: bool = False
    stop_first: bool = False
    shrinks: bool = False  # the old release gives replicas away between the steps
    hold_when_unsure: bool = False
    poll_seconds: float = 1.0
    freeze_at: int | None = None  # from this share on there is no automatic way back
    accepted_share: int | None = None  # up to here a person said to go on, whatever is seen
    accepted_by: str = ""
    forgiven_restarts: int = 0  # those that the person knew of

    def no_way_back(self, share: int) -> bool:
        """`share`: the highest that the new release ever had."""
        return self.freeze_at is not None and share >= self.freeze_at

    def reached(self, share: int) -> int | None:
        """Index of the step that this share belongs to; None before the first."""
        at = [index for index, step in enumerate(self.steps) if step.share <= share]
        return at[-1] if at and share > 0 else None


def freeze_at(rollout: Rollout, migration: str | None, *, first: bool) -> int | None:
    """The share from which on a release must not be rolled back by itself; None: never. A first
    release has nothing to go back to that could suffer."""
    return None if migration != "contract" or first else rollout.freeze_at or 1


def plan(
    rollout: Rollout,
    *,
    replicas: int,
    stable_replicas: int | None,
    now: float,
    migration: str | None = None,
    by_replicas: bool = False,
) -> Plan:
    """The steps of a strategy. `stable_replicas`: None for a first release. `by_replicas`: the
    router can only split by the number of replicas; the steps are the nearest that gives."""
    old = stable_replicas or 0
    first = stable_replicas is None
    if first or rollout.strategy in ("blue-green", "recreate"):
        steps = [Step(100, replicas, old)]
    elif rollout.strategy == "canary":
        steps = [Step(share, replicas, old) for share in rollout.shares]
        if by_replicas:
            ratios = attainable(rollout.shares, replicas, old)
            steps = [Step(ratio.share, ratio.new, old) for ratio in ratios]
    else:
        # One replica at a time: the old ones make room as the new ones take over.
        steps = [
            Step(
                100 if n == replicas else max(1, round(100 * n / replicas)),
                n,
                max(1, old - round(old * n / replicas)),
            )
            for n in range(1, replicas + 1)
        ]
        if by_replicas:
            last = len(steps) - 1
            steps = [
                step if index == last else replace(step, share=share_of(step.new, step.stable))
                for index, step in enumerate(steps)
            ]
    return Plan(
        steps=tuple(steps),
        bake_seconds=rollout.bake,
        deadline=now + rollout.within,
        judged=rollout.judge is not None,
        first=first,
        approve=rollout.approve and not first,
        stop_first=rollout.strategy == "recreate" and not first,
        shrinks=rollout.strategy == "rolling" and not first,
        hold_when_unsure=rollout.judge is not None and rollout.judge.unsure == "hold",
        freeze_at=freeze_at(rollout, migration, first=first),
    )


def accepted(plan: Plan, *, share: int, by: str, restarts: int) -> Plan:
    """The same plan after a person let a rollout go on that was frozen at this share: this step
    they take on themselves; the next one bakes and is judged again."""
    return replace(plan, accepted_share=share, accepted_by=by, forgiven_restarts=restarts)


@dataclass(frozen=True)
class Seen:
    """One look at the world. Shares and replicas as the router and the platform report them."""

    now: float
    phase: Phase
    share: int
    shifted_at: float  # when the router took the present share
    new_ready: int
    new_dead: bool  # none was ready for several looks in a row
    restarts: int  # how often replicas of the new release ended and were started again
    stable_running: int
    verdict: Verdict | None = None
    verdict_reason: str = ""
    early: bool = False  # this step alone has proved itself
    approved_at: float | None = None  # when a person last said to go on
    abort_reason: str | None = None
    trouble: str = ""  # why replicas of the new release are not ready
    peak: int = 0  # the highest share that the new release ever had
    unsafe: bool = False  # a person wants to go back even past a contract migration


@dataclass(frozen=True)
class StartNew:
    replicas: int

    def __str__(self) -> str:
        return f"start replicas of the new release: {self.replicas}"


@dataclass(frozen=True)
class ShrinkStable:
    replicas: int

    def __str__(self) -> str:
        return f"leave the old release {self.replicas} replicas"


@dataclass(frozen=True)
class Shift:
    share: int

    def __str__(self) -> str:
        return f"{self.share}% of the requests to the new release"


@dataclass(frozen=True)
class Wait:
    seconds: float  # until the next look
    reason: str
    for_person: bool = False

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class AskApproval:
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Promote:
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Finish:
    def __str__(self) -> str:
        return "the old release is gone"


@dataclass(frozen=True)
class RollBack:
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Freeze:
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class CleanUp:
    def __str__(self) -> str:
        return "traffic is back; remove the new release"


@dataclass(frozen=True)
class Stop:
    pass


Action = (
    StartNew
    | ShrinkStable
    | Shift
    | Wait
    | AskApproval
    | Promote
    | Finish
    | RollBack
    | Freeze
    | CleanUp
    | Stop
)


def waits_for_person(action: Action) -> bool:
    return isinstance(action, AskApproval) or (isinstance(action, Wait) and action.for_person)


def next_action(plan: Plan, seen: Seen) -> Action:
    action = _next(plan, seen)
    if isinstance(action, RollBack) and not seen.unsafe:
        if plan.no_way_back(max(seen.share, seen.peak)):
            return Freeze(action.reason)
    return action


def _next(plan: Plan, seen: Seen) -> Action:
    if seen.phase in FINISHED or seen.phase is Phase.FROZEN:
        return Stop()
    if seen.phase is Phase.DRAINING:
        return ShrinkStable(0) if seen.stable_running else Finish()
    if seen.phase is Phase.ROLLING_BACK:
        return CleanUp()
    if seen.abort_reason:
        return RollBack(seen.abort_reason)
    accepted = seen.share <= (plan.accepted_share or 0)
    if seen.verdict is Verdict.FAIL and not accepted:
        return RollBack(seen.verdict_reason)

    at = plan.reached(seen.share)
    if at is not None and seen.new_dead:
        return RollBack(f"no replica of the new release is ready: {seen.trouble or 'no answer'}")
    restarts = seen.restarts - plan.forgiven_restarts
    if at is not None and restarts >= RESTARTS:
        return RollBack(f"replicas of the new release ended {restarts} times: {seen.trouble}")
    # A person who approves after the deadline gives the rollout more time, not less care.
    extended = seen.approved_at is not None and seen.approved_at > plan.deadline
    late = seen.now > plan.deadline and not extended
    if at is None:
        if late:
            return RollBack("nobody approved in time" if plan.approve else "no traffic in time")
        return _towards(plan, plan.steps[0], seen)

    step = plan.steps[at]
    last = at == len(plan.steps) - 1
    if plan.shrinks and not last and not late and seen.stable_running > step.stable:
        return ShrinkStable(step.stable)
    if accepted and not late:
        if not last:
            return _towards(plan, plan.steps[at + 1], seen, accepted=True)
        if seen.new_ready >= step.new:
            return Promote(f"{plan.accepted_by} let it go on")
    baked_at = seen.shifted_at + plan.bake_seconds
    proved = seen.verdict is Verdict.PASS and seen.early
    if seen.now < baked_at and not late and not proved:
        pause = min(plan.poll_seconds, baked_at - seen.now)
        unsure = plan.judged and seen.verdict is Verdict.UNSURE
        why = f": {seen.verdict_reason}" if unsure else ""
        return Wait(pause, f"bakes for {in_words(plan.bake_seconds)}{why}")
    if plan.judged and seen.verdict is not Verdict.PASS and not plan.first:
        # To overrule the doubt, it must have been there to be seen.
        overruled = extended and (seen.approved_at or 0) >= baked_at
        if seen.now <= plan.deadline:
            return Wait(plan.poll_seconds, f"unsure: {seen.verdict_reason}")
        if not plan.hold_when_unsure:
            return RollBack(f"still unsure at the deadline: {seen.verdict_reason}")
        if not overruled:
            return _held(plan, seen.verdict_reason)
    baked = seen.now >= baked_at or proved
    if late and plan.hold_when_unsure and baked and not last:
        return _held(plan, "the time for the whole rollout is over")  # proved too late: as was said
    if late and (not last or not baked or seen.new_ready < step.new):
        return RollBack("the time for the whole rollout is over")
    if not last:
        return _towards(plan, plan.steps[at + 1], seen)
    if seen.new_ready < step.new:
        return Wait(plan.poll_seconds, f"{seen.new_ready} of {step.new} replicas are ready")
    return Promote(_why(plan, seen))


def _held(plan: Plan, reason: str) -> Wait:
    held = "held until a person says dafnck approve or dafnck abort"
    return Wait(plan.poll_seconds, f"{held}: {reason}", for_person=True)


def _towards(plan: Plan, step: Step, seen: Seen, *, accepted: bool = False) -> Action:
    if plan.stop_first and seen.stable_running:
        return ShrinkStable(0)
    approved = accepted or (seen.approved_at is not None and seen.approved_at >= seen.shifted_at)
    ask = plan.approve and step.share == 100 and not approved
    # Where replicas split the requests, to start more is to shift.
    if ask and seen.share and seen.new_ready:
        return AskApproval("waits for a person before 100%")
    if seen.new_ready < step.new:
        return StartNew(step.new)
    if ask:
        return AskApproval("waits for a person before 100%")
    return Shift(step.share)


def _why(plan: Plan, seen: Seen) -> str:
    if plan.first and seen.verdict is not Verdict.PASS and plan.judged:
        return f"first release, on its health checks alone ({seen.verdict_reason})"
    if plan.judged:
        return seen.verdict_reason
    return "healthy; no judge was asked for"
