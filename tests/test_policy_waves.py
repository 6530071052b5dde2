"""Changes of several services: decided from what is seen alone, cut anywhere and gone on with."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.change import ChangeVerdict
from policy.waves import (
    ATTEMPTS,
    Abort,
    Begin,
    ChangeAction,
    ChangePlan,
    Close,
    Keep,
    Seen,
    Standing,
    TakeBack,
    Wait,
    next_change_action,
    waves,
)

CHAIN = {"db": (), "shop": ("db",), "web": ("shop",)}
ENDS = ("good", "bad", "frozen", "contract", "first")


@dataclass
class World:
    """Services whose releases end as the test says, one look after they began. What was done is
    all that is remembered, as in the ledger."""

    plan: ChangePlan
    ends: dict[str, str]
    stuck: frozenset[str] = frozenset()  # cannot be taken back
    endless: frozenset[str] = frozenset()  # roll out until they are aborted
    seen: dict[str, Seen] = field(default_factory=dict)
    trouble: str = ""
    clock: float = 0.0
    journey: list[ChangeAction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = {service: Seen(Standing.WAITING) for service in self.plan.after}

    def action(self) -> ChangeAction:
        return next_change_action(self.plan, self.seen, self.trouble)

    def run(self, most: int = 200) -> Close:
        for _ in range(most):
            if isinstance(action := self.action(), Close):
                self.journey.append(action)
                return action
            self.step(action)
        raise AssertionError(f"no end: {self.journey}")

    def step(self, action: ChangeAction) -> None:
        self.clock += 1
        if not isinstance(action, Wait):
            self.journey.append(action)
        if isinstance(action, Abort | TakeBack | Keep):
            self.trouble = self.trouble or action.reason
        match action:
            case Begin(service):
                self._begin(service)
            case Abort(services):
                for service in services:
                    self.seen[service] = replace(self.seen[service], aborted=True)
            case TakeBack(service):
                self._may_go_back(service)
                self.seen[service] = replace(self.seen[service], standing=Standing.GOING_BACK)
            case Keep(service, why):
                self.seen[service] = replace(self.seen[service], standing=Standing.KEPT, why=why)
            case Wait():
                self._pass()

    def _begin(self, service: str) -> None:
        assert not self.trouble
        assert self.seen[service].standing is Standing.WAITING
        for name in self.plan.after[service]:
            assert self.seen[name].standing is Standing.PROMOTED
        self.seen[service] = Seen(Standing.UNDER_WAY, abortable=self.ends[service] != "frozen")
        under_way = [s for s in self.seen.values() if s.standing is Standing.UNDER_WAY]
        assert len(under_way) <= self.plan.at_once

    def _may_go_back(self, service: str) -> None:
        for other, one in self.seen.items():
            if service in self.plan.needed_by(other):
                gone = (Standing.WAITING, Standing.UNDONE, Standing.BACK)
                assert one.standing in gone, f"{service} before {other}"
            assert one.standing is not Standing.UNDER_WAY
            assert one.standing is not Standing.GOING_BACK

    def _pass(self) -> None:
        for service, one in self.seen.items():
            if one.standing is Standing.UNDER_WAY:
                self.seen[service] = self._ended(service, one)
            if one.standing is Standing.GOING_BACK:
                failed = one.failed_attempts + 1
                back = Seen(Standing.BACK)
                still = replace(one, standing=Standing.PROMOTED, failed_attempts=failed)
                self.seen[service] = still if service in self.stuck else back

    def _ended(self, service: str, one: Seen) -> Seen:
        if one.aborted:
            return Seen(Standing.UNDONE, "aborted")
        if service in self.endless:
            return one
        match self.ends[service]:
            case "bad":
                return Seen(Standing.UNDONE, "its verdict")
            case "frozen":
                return Seen(Standing.FROZEN, "its verdict")
            case end:
                return Seen(
                    Standing.PROMOTED,
                    promoted_at=self.clock,
                    first=end == "first",
                    one_way=end == "contract",
                )


def world(after: dict[str, tuple[str, ...]], at_once: int = 4, **ends: str) -> World:
    return World(ChangePlan(after, at_once), dict.fromkeys(after, "good") | ends)


def test_one_after_the_other_and_all_of_it_serves() -> None:
    chain = world(CHAIN)
    assert chain.run().verdict is ChangeVerdict.PROMOTED
    assert chain.journey[:-1] == [Begin("db"), Begin("shop"), Begin("web")]


def test_the_third_one_is_bad_and_the_others_go_back_in_reverse() -> None:
    chain = world(CHAIN, web="bad")
    assert chain.run() == Close(ChangeVerdict.ROLLED_BACK, "web is not promoted: its verdict")
    back = [action.service for action in chain.journey if isinstance(action, TakeBack)]
    assert back == ["shop", "db"]


def test_those_that_wait_for_nobody_begin_together_but_no_more_than_wanted() -> None:
    wide = world(dict.fromkeys("abcde", ()), at_once=2)
    assert isinstance(wide.action(), Begin)
    wide.run()
    assert [type(action) for action in wide.journey[:2]] == [Begin, Begin]


def test_one_that_fails_ends_the_others_that_roll_out() -> None:
    wide = World(
        ChangePlan({"a": (), "b": (), "c": ("a",)}, 4),
        {"a": "good", "b": "bad", "c": "good"},
        endless=frozenset("a"),
    )
    assert wide.run().verdict is ChangeVerdict.ROLLED_BACK
    assert Abort(("a",), "b is not promoted: its verdict") in wide.journey
    assert Begin("c") not in wide.journey


def test_independent_ones_go_back_last_one_first() -> None:
    seen = {
        "a": Seen(Standing.PROMOTED, promoted_at=1),
        "b": Seen(Standing.PROMOTED, promoted_at=3),
        "c": Seen(Standing.PROMOTED, promoted_at=2),
        "d": Seen(Standing.UNDONE),
    }
    plan = ChangePlan(dict.fromkeys(seen, ()), 4)
    action = next_change_action(plan, seen)
    assert isinstance(action, TakeBack)
    assert action.service == "b"


def test_a_clock_that_is_wrong_takes_nothing_from_under_another_one() -> None:
    seen = {
        "db": Seen(Standing.PROMOTED, promoted_at=900),
        "shop": Seen(Standing.PROMOTED, promoted_at=100),
        "web": Seen(Standing.UNDONE),
    }
    action = next_change_action(ChangePlan(CHAIN, 4), seen)
    assert isinstance(action, TakeBack)
    assert action.service == "shop"


def test_a_first_release_stays_with_all_that_it_needs() -> None:
    chain = world(CHAIN, shop="first", web="bad")
    assert chain.run().verdict is ChangeVerdict.INCONSISTENT
    assert chain.seen["shop"].standing is Standing.KEPT
    assert chain.seen["db"].standing is Standing.KEPT
    assert chain.seen["db"].why == "shop, which needs it, is kept"


def test_a_first_release_that_needs_none_that_stays_is_no_inconsistency() -> None:
    chain = world(CHAIN, db="first", web="bad")
    assert chain.run().verdict is ChangeVerdict.ROLLED_BACK
    assert chain.seen["db"].standing is Standing.KEPT
    assert chain.seen["shop"].standing is Standing.BACK


@pytest.mark.parametrize("end", ["contract", "frozen"])
def test_what_lets_nobody_go_back_stays_with_all_that_it_needs(end: str) -> None:
    after: dict[str, tuple[str, ...]] = {"db": (), "other": (), "shop": ("db",), "web": ("shop",)}
    change = world(after, shop=end, web="bad")
    assert change.run().verdict is ChangeVerdict.INCONSISTENT
    assert change.seen["db"].standing is Standing.KEPT
    assert change.seen["db"].why.startswith("shop, which needs it, is ")
    assert change.seen["other"].standing is Standing.BACK


def test_one_that_cannot_be_taken_back_is_tried_again_and_then_left() -> None:
    chain = World(
        ChangePlan(CHAIN, 4), {"db": "good", "shop": "good", "web": "bad"}, frozenset({"shop"})
    )
    assert chain.run().verdict is ChangeVerdict.INCONSISTENT
    tried = [action for action in chain.journey if isinstance(action, TakeBack)]
    assert [action.service for action in tried] == ["shop"] * ATTEMPTS
    assert "could not be taken back" in chain.seen["shop"].why
    assert chain.seen["db"].standing is Standing.KEPT


def test_what_somebody_released_since_is_not_touched() -> None:
    seen = {
        "a": Seen(Standing.PROMOTED, superseded="a-prod-9"),
        "b": Seen(Standing.UNDONE, "its verdict"),
    }
    plan = ChangePlan({"a": (), "b": ()}, 4)
    assert next_change_action(plan, seen) == Keep(
        "a", "a-prod-9 serves instead by now", "a: a-prod-9 serves instead"
    )


@pytest.mark.parametrize("shop", [Standing.WAITING, Standing.PROMOTED])
def test_one_that_does_not_serve_any_more_is_not_promoted(shop: Standing) -> None:
    """Nothing begins on it, and when it was the last one the change is not promoted either."""
    seen = {"db": Seen(Standing.PROMOTED, superseded="db-prod-1"), "shop": Seen(shop)}
    plan = ChangePlan({"db": (), "shop": ("db",)}, 4)
    action = next_change_action(plan, seen)
    assert isinstance(action, TakeBack if shop is Standing.PROMOTED else Keep)
    assert action.reason == "db: db-prod-1 serves instead"


def test_a_leader_that_died_when_all_of_it_serves_changes_nothing() -> None:
    seen = {service: Seen(Standing.PROMOTED) for service in CHAIN}
    action = next_change_action(ChangePlan(CHAIN, 4), seen, "its process died")
    assert action == Close(ChangeVerdict.PROMOTED, "all 3 serve")


SHAPES: list[dict[str, tuple[str, ...]]] = [
    CHAIN,
    {"a": (), "b": (), "c": ()},
    {"a": (), "b": ("a",), "c": ("a",)},
    {"a": (), "b": (), "c": ("a", "b")},
]


def _worlds() -> Iterator[World]:
    for after, ends, at_once in product(SHAPES, product(ENDS, repeat=3), (1, 2)):
        for stuck in (frozenset[str](), frozenset({next(iter(after))})):
            named = dict(zip(after, ends, strict=True))
            yield World(ChangePlan(after, at_once), named, stuck)


def _ended_as_it_says(world: World, end: Close) -> None:
    standings = {service: one.standing for service, one in world.seen.items()}
    stays = [
        service
        for service, one in world.seen.items()
        if one.standing is Standing.FROZEN or (one.standing is Standing.KEPT and not one.first)
    ]
    if end.verdict is ChangeVerdict.PROMOTED:
        assert set(standings.values()) == {Standing.PROMOTED}
    else:
        open_still = {Standing.UNDER_WAY, Standing.GOING_BACK, Standing.PROMOTED}
        assert not open_still & set(standings.values())
        assert bool(stays) is (end.verdict is ChangeVerdict.INCONSISTENT)
    with_first = [s for s, it in standings.items() if it in (Standing.FROZEN, Standing.KEPT)]
    for service in with_first:
        for needed in world.plan.needed_by(service):
            assert standings[needed] is Standing.KEPT, "it must stay with what needs it"


def test_every_journey_ends_as_its_verdict_says() -> None:
    for world in _worlds():
        _ended_as_it_says(world, world.run())


def test_cut_anywhere_it_goes_on_as_if_it_had_not_been() -> None:
    """Whoever leads on knows what is seen, and nothing else."""
    for whole in _worlds():
        whole.run()
        for cut in range(len(whole.journey)):
            first = World(whole.plan, whole.ends, whole.stuck)
            while len(first.journey) < cut:
                first.step(first.action())
            second = World(first.plan, first.ends, first.stuck)
            second.seen, second.trouble, second.clock = first.seen, first.trouble, first.clock
            second.run()
            assert first.journey + second.journey == whole.journey


def test_its_leader_dies_anywhere_and_all_goes_back() -> None:
    for whole in _worlds():
        whole.run()
        for cut in range(len(whole.journey)):
            change = World(whole.plan, whole.ends, whole.stuck)
            while len(change.journey) < cut:
                change.step(change.action())
            change.trouble = change.trouble or "its process died"
            end = change.run()
            _ended_as_it_says(change, end)
            began = [action for action in change.journey if isinstance(action, Begin)]
            assert len(began) <= cut


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    names = [f"s{number}" for number in range(draw(st.integers(1, 8)))]
    return {
        name: tuple(draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else [])
        for at, name in enumerate(names)
    }


@given(shapes(), st.data(), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_any_shape_of_change(
    after: dict[str, tuple[str, ...]], data: st.DataObject, at_once: int
) -> None:
    ends = {service: data.draw(st.sampled_from(ENDS)) for service in after}
    stuck = frozenset(data.draw(st.sets(st.sampled_from(list(after)))))
    change = World(ChangePlan(after, at_once), ends, stuck)
    dies_after = data.draw(st.integers(0, 20))
    while len(change.journey) < dies_after and not isinstance(change.action(), Close):
        change.step(change.action())
    if data.draw(st.booleans()):
        change.trouble = change.trouble or "its process died"
    _ended_as_it_says(change, change.run())


@given(shapes())
def test_waves_hold_each_service_once_and_after_what_it_needs(
    after: dict[str, tuple[str, ...]],
) -> None:
    found = waves(after)
    order = [service for wave in found for service in wave]
    assert sorted(order) == sorted(after)
    wave_of = {service: number for number, wave in enumerate(found) for service in wave}
    for service, needed in after.items():
        assert wave_of[service] == max([wave_of[name] + 1 for name in needed], default=0)


def test_a_circle_is_named() -> None:
    with pytest.raises(ValueError, match="b → c → b"):
        waves({"a": ("b",), "b": ("c",), "c": ("b",)})
    with pytest.raises(ValueError, match="there is no service x"):
        waves({"a": ("x",)})
