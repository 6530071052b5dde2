"""The decisions of a rollout: whole journeys, cut at every step, and what must never happen."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.release import Phase, Verdict
from policy.rollout import (
    Action,
    AskApproval,
    CleanUp,
    Finish,
    Freeze,
    Plan,
    Promote,
    RollBack,
    Seen,
    Shift,
    ShrinkStable,
    StartNew,
    Stop,
    Wait,
    accepted,
    next_action,
    plan,
)
from policy.service_file import Rollout

JUDGE = {"method": "threshold", "errors": "at most 2%", "interval": 1}


@dataclass
class World:
    """What actions do, as a value: enough of a world to walk a plan to its end."""

    now: float = 0.0
    phase: Phase = Phase.STARTING
    share: int = 0
    shifted_at: float = 0.0
    new_ready: int = 0
    stable_running: int = 2
    verdict: Verdict | None = Verdict.PASS
    approved_at: float | None = None
    serving_capacity: list[int] = field(default_factory=list)
    peak: int = 0

    def seen(self) -> Seen:
        return Seen(
            now=self.now,
            phase=self.phase,
            share=self.share,
            shifted_at=self.shifted_at,
            new_ready=self.new_ready,
            new_dead=self.new_ready == 0,
            restarts=0,
            stable_running=self.stable_running,
            verdict=self.verdict if self.share else None,
            verdict_reason="because",
            approved_at=self.approved_at,
            peak=self.peak,
        )

    def perform(self, action: Action) -> None:
        self.now += 0.1
        match action:
            case StartNew(replicas):
                self.new_ready = replicas
            case Shift(share):
                assert self.new_ready > 0, "traffic to a release without replicas"
                self.share, self.shifted_at, self.phase = share, self.now, Phase.SHIFTING
                self.peak = max(self.peak, share)
            case Wait(seconds):
                self.now += seconds
            case AskApproval():
                self.approved_at = self.now
            case ShrinkStable(replicas):
                self.stable_running = replicas
            case Promote():
                self.phase = Phase.DRAINING
            case Finish():
                self.phase = Phase.PROMOTED
            case RollBack():
                self.phase, self.share = Phase.ROLLING_BACK, 0
            case Freeze():
                self.phase = Phase.FROZEN
            case CleanUp():
                self.phase, self.new_ready = Phase.ROLLED_BACK, 0


def walk(steps: Plan, world: World) -> list[Action]:
    journey: list[Action] = []
    while not isinstance(action := next_action(steps, world.seen()), Stop):
        journey.append(action)
        assert len(journey) < 1000, "the rollout does not end"
        world.perform(action)
    return journey


def shifts(journey: list[Action]) -> list[int]:
    return [action.share for action in journey if isinstance(action, Shift)]


def a_plan(
    rollout: dict[str, object] | None = None,
    *,
    replicas: int = 2,
    old: int | None = 2,
    migration: str | None = None,
) -> Plan:
    wanted = Rollout.model_validate(rollout or {})
    return plan(wanted, replicas=replicas, stable_replicas=old, now=0, migration=migration)


CANARY = {"strategy": "canary", "steps": [10, 50, 100], "bake": 2}


def test_canary_rises_in_steps_and_ends_promoted() -> None:
    world = World()
    journey = walk(a_plan(CANARY), world)
    assert shifts(journey) == [10, 50, 100]
    assert world.phase is Phase.PROMOTED
    assert world.stable_running == 0


def test_every_step_bakes() -> None:
    journey = walk(a_plan(CANARY), World())
    assert sum(action.seconds for action in journey if isinstance(action, Wait)) >= 3 * 1.9


def test_blue_green_is_one_shift() -> None:
    assert shifts(walk(a_plan(), World())) == [100]


def test_the_old_release_stays_whole_until_promotion() -> None:
    for rollout in (CANARY, {"strategy": "blue-green", "bake": 2}):
        journey = walk(a_plan(rollout), World())
        promoted = next(i for i, action in enumerate(journey) if isinstance(action, Promote))
        shrunk = [i for i, action in enumerate(journey) if isinstance(action, ShrinkStable)]
        assert all(i > promoted for i in shrunk)


def test_rolling_goes_replica_by_replica() -> None:
    journey = walk(a_plan({"strategy": "rolling"}, replicas=4, old=4), World(stable_running=4))
    assert shifts(journey) == [25, 50, 75, 100]
    assert [a.replicas for a in journey if isinstance(a, StartNew)] == [1, 2, 3, 4]
    assert [a.replicas for a in journey if isinstance(a, ShrinkStable)] == [3, 2, 1, 0]


def test_an_old_release_that_an_autoscaler_has_grown_is_left_alone() -> None:
    for rollout in (CANARY, {"strategy": "blue-green", "bake": 2}):
        journey = walk(a_plan(rollout), World(stable_running=7))
        shrunk = [action.replicas for action in journey if isinstance(action, ShrinkStable)]
        assert shrunk == [0], "once the new one is promoted"


def test_rolling_shrinks_what_an_autoscaler_has_grown_meanwhile() -> None:
    journey = walk(a_plan({"strategy": "rolling"}, replicas=4, old=4), World(stable_running=9))
    assert shifts(journey) == [25, 50, 75, 100]
    assert [a.replicas for a in journey if isinstance(a, ShrinkStable)] == [3, 2, 1, 0]


def test_recreate_stops_the_old_release_first() -> None:
    journey = walk(a_plan({"strategy": "recreate"}), World())
    kinds = [type(action) for action in journey]
    assert kinds.index(ShrinkStable) < kinds.index(StartNew) < kinds.index(Shift)


def test_a_first_release_needs_no_stable() -> None:
    world = World(stable_running=0, verdict=Verdict.UNSURE)
    journey = walk(a_plan(CANARY | {"judge": JUDGE}, old=None), world)
    assert shifts(journey) == [100]
    assert world.phase is Phase.PROMOTED
    promoted = next(action for action in journey if isinstance(action, Promote))
    assert "first release" in promoted.reason


def test_a_bad_verdict_rolls_back_at_once() -> None:
    world = World(verdict=Verdict.FAIL)
    journey = walk(a_plan(CANARY | {"judge": JUDGE}), world)
    assert shifts(journey) == [10]
    assert RollBack("because") in journey
    assert world.phase is Phase.ROLLED_BACK


def test_unsure_is_not_promoted() -> None:
    world = World(verdict=Verdict.UNSURE)
    walk(a_plan(CANARY | {"judge": JUDGE, "within": 60}), world)
    assert world.phase is Phase.ROLLED_BACK


def test_unsure_can_hold_for_a_person() -> None:
    steps = a_plan(CANARY | {"judge": JUDGE | {"unsure": "hold"}, "within": 60})
    world = World(phase=Phase.SHIFTING, share=10, new_ready=2, verdict=Verdict.UNSURE, now=61)
    assert isinstance(next_action(steps, world.seen()), Wait)
    world.approved_at = 59
    assert isinstance(next_action(steps, world.seen()), Wait), "said before there was a doubt"
    for share in (50, 100):
        world.approved_at = world.now
        assert next_action(steps, world.seen()) == Shift(share)
        world.perform(Shift(share))
        world.now += 5
        assert isinstance(next_action(steps, world.seen()), Wait), "held again"
    world.approved_at = world.now
    walk(steps, world)
    assert world.phase is Phase.PROMOTED


def test_what_is_held_waits_for_the_person_also_when_the_proof_comes_late() -> None:
    steps = a_plan(CANARY | {"judge": JUDGE | {"unsure": "hold"}, "within": 60})
    world = World(phase=Phase.SHIFTING, share=10, new_ready=2, verdict=Verdict.PASS, now=70)
    action = next_action(steps, world.seen())
    assert isinstance(action, Wait)
    assert "held until a person says" in action.reason
    world.approved_at = 71
    assert next_action(steps, world.seen()) == Shift(50)


def test_a_person_overrules_only_where_the_file_lets_them() -> None:
    steps = a_plan(CANARY | {"judge": JUDGE, "within": 60})
    seen = World(phase=Phase.SHIFTING, share=10, new_ready=2, verdict=Verdict.UNSURE, now=61)
    seen.approved_at = 50
    assert isinstance(next_action(steps, seen.seen()), RollBack)


def test_an_approval_counts_for_the_step_at_which_it_was_given() -> None:
    steps = a_plan(CANARY | {"approve": True})
    early = World(phase=Phase.SHIFTING, share=50, new_ready=2, shifted_at=10, now=13, approved_at=5)
    assert isinstance(next_action(steps, early.seen()), AskApproval)
    early.approved_at = 12
    assert next_action(steps, early.seen()) == Shift(100)


def test_what_has_not_baked_at_the_deadline_goes_back() -> None:
    steps = a_plan({"strategy": "blue-green", "bake": 30, "within": 60})
    world = World(phase=Phase.SHIFTING, share=100, new_ready=2, shifted_at=55, now=61, verdict=None)
    assert isinstance(next_action(steps, world.seen()), RollBack)


def test_approval_is_asked_before_all_traffic() -> None:
    for rollout in (CANARY | {"approve": True}, {"approve": True}):
        journey = walk(a_plan(rollout), World())
        asked = next(i for i, action in enumerate(journey) if isinstance(action, AskApproval))
        assert Shift(100) in journey[asked:]
        assert Shift(100) not in journey[:asked]


def test_nobody_approves_in_time() -> None:
    steps = a_plan({"approve": True, "within": 60})
    late = World(new_ready=2, now=61)
    assert isinstance(next_action(steps, late.seen()), RollBack)


def test_an_abort_wins_over_everything() -> None:
    seen = replace(World(share=50, new_ready=2, phase=Phase.SHIFTING).seen(), abort_reason="no")
    assert next_action(a_plan(CANARY), seen) == RollBack("no")


def test_replicas_that_die_under_traffic_roll_back() -> None:
    world = World(phase=Phase.SHIFTING, share=50, new_ready=0)
    assert isinstance(next_action(a_plan(CANARY), world.seen()), RollBack)


def test_replicas_that_end_again_and_again_roll_back() -> None:
    seen = replace(World(phase=Phase.SHIFTING, share=50, new_ready=2).seen(), restarts=3)
    assert isinstance(next_action(a_plan(CANARY), seen), RollBack)


@pytest.mark.parametrize("share", [50, 100])
def test_nothing_more_is_given_to_a_release_that_is_not_whole(share: int) -> None:
    world = World(phase=Phase.SHIFTING, share=share, new_ready=1, now=60)
    assert isinstance(next_action(a_plan(CANARY), world.seen()), StartNew | Wait)
    silent = replace(world.seen(), new_ready=0, new_dead=False)
    assert isinstance(next_action(a_plan(CANARY), silent), StartNew | Wait)


def test_more_time_is_not_less_care() -> None:
    """Held at 10%, approved after the deadline: the next step bakes and is judged like any."""
    steps = a_plan(CANARY | {"judge": JUDGE | {"unsure": "hold"}, "within": 60})
    world = World(
        phase=Phase.SHIFTING, share=10, new_ready=2, verdict=Verdict.UNSURE, now=62, approved_at=61
    )
    assert next_action(steps, world.seen()) == Shift(50)
    world.perform(Shift(50))
    assert "bakes" in str(next_action(steps, world.seen()))
    world.now += 5
    assert "held" in str(next_action(steps, world.seen()))


def test_an_abort_after_promotion_comes_too_late() -> None:
    seen = replace(World(phase=Phase.DRAINING, share=100).seen(), abort_reason="no")
    assert next_action(a_plan(CANARY), seen) == ShrinkStable(0)


rollouts = st.sampled_from(
    [
        CANARY,
        CANARY | {"judge": JUDGE},
        CANARY | {"approve": True},
        {"strategy": "blue-green", "bake": 3},
        {"strategy": "rolling"},
        {"strategy": "recreate"},
    ]
)


@given(rollouts, st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_interrupted_anywhere_it_goes_on(
    rollout: dict[str, object], replicas: int, old: int, good: bool
) -> None:
    """Cut the journey after any action: what follows is what would have followed."""
    steps = a_plan(rollout, replicas=replicas, old=old)
    verdict = Verdict.PASS if good else Verdict.FAIL
    whole = walk(steps, World(stable_running=old, verdict=verdict))
    for cut in range(len(whole)):
        world = World(stable_running=old, verdict=verdict)
        for action in whole[:cut]:
            world.perform(action)
        assert walk(steps, world) == whole[cut:]


@given(rollouts, st.integers(1, 6), st.integers(1, 6), st.data())
def test_every_plan_ends_and_shares_only_rise(
    rollout: dict[str, object], replicas: int, old: int, data: st.DataObject
) -> None:
    steps = a_plan(rollout, replicas=replicas, old=old)
    world = World(stable_running=old)
    for _ in range(200):
        world.verdict = data.draw(st.sampled_from([*Verdict]))
        action = next_action(steps, world.seen())
        if isinstance(action, Stop):
            break
        if isinstance(action, Shift):
            assert action.share > world.share
        world.perform(action)
    else:
        world.now = steps.deadline + 1
        walk(steps, world)
    assert world.phase in (Phase.PROMOTED, Phase.ROLLED_BACK)


@pytest.mark.parametrize("share", [1, 9])
def test_a_share_below_the_first_step_is_before_it(share: int) -> None:
    assert a_plan(CANARY).reached(share) is None


# -- contract migrations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze_at", "share"), [(None, 10), ("10%", 10), ("50%", 50), ("11%", 50)]
)
def test_past_its_point_a_contract_migration_freezes_where_it_would_roll_back(
    freeze_at: str | None, share: int
) -> None:
    steps = a_plan(CANARY | {"freeze_at": freeze_at}, migration="contract")
    reasons = {
        "verdict": {"verdict": Verdict.FAIL, "verdict_reason": "bad"},
        "abort": {"abort_reason": "no"},
        "dead": {"new_ready": 0, "new_dead": True},
        "restarts": {"restarts": 3},
        "late": {"now": steps.deadline + 1},
    }
    for name, change in reasons.items():
        at = World(phase=Phase.SHIFTING, share=share, peak=share, new_ready=2).seen()
        below = World(phase=Phase.SHIFTING, share=10, peak=10, new_ready=2).seen()
        assert isinstance(next_action(steps, replace(at, **change)), Freeze), name  # type: ignore[arg-type]
        if share > 10:
            back = next_action(steps, replace(below, **change))  # type: ignore[arg-type]
            assert isinstance(back, RollBack), name


def test_what_once_had_the_traffic_has_changed_the_data() -> None:
    """The share may have been lent to stable since."""
    steps = a_plan(CANARY, migration="contract")
    seen = World(phase=Phase.SHIFTING, share=0, peak=10, new_ready=2).seen()
    assert isinstance(next_action(steps, replace(seen, abort_reason="no")), Freeze)


@pytest.mark.parametrize("migration", [None, "expand"])
def test_an_expand_migration_can_be_rolled_back(migration: str | None) -> None:
    world = World(verdict=Verdict.FAIL)
    walk(a_plan(CANARY | {"judge": JUDGE}, migration=migration), world)
    assert world.phase is Phase.ROLLED_BACK


def test_a_first_release_has_nothing_that_its_migration_could_harm() -> None:
    assert a_plan(CANARY, old=None, migration="contract").freeze_at is None


def test_a_person_may_go_back_even_past_a_migration() -> None:
    steps = a_plan(CANARY, migration="contract")
    seen = World(phase=Phase.SHIFTING, share=50, peak=50, new_ready=2).seen()
    unsafe = replace(seen, abort_reason="I know", unsafe=True)
    assert next_action(steps, unsafe) == RollBack("I know")


def test_before_any_traffic_a_contract_migration_goes_back() -> None:
    seen = replace(World(new_ready=2).seen(), abort_reason="no")
    assert next_action(a_plan(CANARY, migration="contract"), seen) == RollBack("no")


def test_nothing_moves_while_it_is_frozen() -> None:
    for share in (0, 10, 100):
        world = World(phase=Phase.FROZEN, share=share, new_ready=0, verdict=Verdict.FAIL)
        assert isinstance(next_action(a_plan(CANARY), world.seen()), Stop)


def test_a_person_takes_one_step_on_themselves_the_next_is_judged_again() -> None:
    bad = World(verdict=Verdict.FAIL)
    steps = a_plan(CANARY | {"judge": JUDGE}, migration="contract")
    for share, following in [(10, 50), (50, 100)]:
        journey = walk(steps, bad)
        assert journey[-1] == Freeze("because")
        assert (bad.phase, bad.share) == (Phase.FROZEN, share)
        bad.phase = Phase.SHIFTING
        steps = accepted(steps, share=share, by="ada", restarts=5)
        assert next_action(steps, replace(bad.seen(), restarts=7)) == Shift(following)
    walk(steps, bad)
    assert (bad.phase, bad.share) == (Phase.FROZEN, 100)
    bad.phase = Phase.SHIFTING
    steps = accepted(steps, share=100, by="ada", restarts=0)
    assert next_action(steps, bad.seen()) == Promote("ada let it go on")
    walk(steps, bad)
    assert bad.phase is Phase.PROMOTED


def test_a_person_cannot_give_traffic_to_replicas_that_do_not_exist() -> None:
    steps = accepted(a_plan(CANARY, migration="contract"), share=10, by="ada", restarts=0)
    seen = World(phase=Phase.SHIFTING, share=10, peak=10, new_ready=0).seen()
    assert isinstance(next_action(steps, seen), Freeze)
    assert next_action(steps, replace(seen, new_dead=False)) == StartNew(2)


@settings(deadline=None)
@given(rollouts, st.integers(1, 4), st.integers(1, 4), st.integers(1, 100), st.data())
def test_a_contract_migration_is_never_rolled_back_past_its_point(
    rollout: dict[str, object], replicas: int, old: int, freeze_at: int, data: st.DataObject
) -> None:
    """Whatever the verdicts, and resumed whenever it froze: shares only rise, and it ends."""
    steps = a_plan(
        rollout | {"freeze_at": freeze_at}, replicas=replicas, old=old, migration="contract"
    )
    world = World(stable_running=old)
    for _ in range(300):
        world.verdict = data.draw(st.sampled_from([*Verdict]))
        action = next_action(steps, world.seen())
        if isinstance(action, Stop) and world.phase is not Phase.FROZEN:
            break
        if isinstance(action, Stop):
            world.phase = Phase.SHIFTING
            steps = accepted(steps, share=world.share, by="ada", restarts=0)
            continue
        if isinstance(action, RollBack):
            assert world.peak < freeze_at
        if isinstance(action, Freeze):
            assert world.peak >= freeze_at
        if isinstance(action, Shift):
            assert action.share > world.share
        world.perform(action)
    assert world.phase in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.SHIFTING)


@settings(deadline=None)
@given(rollouts, st.integers(1, 4), st.integers(1, 4), st.integers(1, 100))
def test_a_contract_migration_interrupted_anywhere_goes_on(
    rollout: dict[str, object], replicas: int, old: int, freeze_at: int
) -> None:
    steps = a_plan(
        rollout | {"freeze_at": freeze_at}, replicas=replicas, old=old, migration="contract"
    )
    for verdict in (Verdict.PASS, Verdict.FAIL):
        whole = walk(steps, World(stable_running=old, verdict=verdict))
        for cut in range(len(whole)):
            world = World(stable_running=old, verdict=verdict)
            for action in whole[:cut]:
                world.perform(action)
            assert walk(steps, world) == whole[cut:]
