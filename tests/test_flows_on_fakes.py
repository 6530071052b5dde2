"""What flows do around a rollout, on the fakes: nothing here needs Prefect's server."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeNotifier, a_release, a_site, serving
from test_local_stack import frozen
from test_tasks_put_back import autoscaled, fakes, serves_alone, under_way

from flows import renew, resume, rollback
from flows.carry_out import Progress, carry_out, whole_or_nothing
from policy.change import MemberRecord
from policy.errors import NotApplied, Refused, Unreachable
from policy.notice import Event
from policy.release import Phase, Release, RolloutRecord
from policy.rollout import (
    Action,
    AskApproval,
    Plan,
    Promote,
    Seen,
    Shift,
    Step,
    Wait,
    next_action,
    plan,
)
from policy.service_file import Rollout
from tasks import traffic
from tasks.frozen import FreezeWindow
from tasks.site import Site
from tasks.workloads import shrink_stable, start_replicas


@contextmanager
def unreported(site: Site) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(rollout_id=None)


def falls_silent(site: Site) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unreachable("the ledger does not answer")

    site.ledger._reading = away  # type: ignore[method-assign,assignment]
    site.ledger._writing = away  # type: ignore[method-assign,assignment]


@pytest.fixture(autouse=True)
def no_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    for flow in (renew, resume, rollback):
        monkeypatch.setattr(flow, "reported", unreported)
        monkeypatch.setattr(flow, "prune", lambda *_, **__: None)


def test_resumed_with_a_silent_ledger_no_traffic_goes_to_old_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can ask whether the migration forbids it: what was frozen is past that point."""
    site, stable, new, _ = frozen(tmp_path, 50)

    def first_look(site: Site, rollout: RolloutRecord, *_: object) -> None:
        falls_silent(site)
        site.ledger.rollout(rollout.id)

    monkeypatch.setattr(resume, "carry_out", first_look)
    with pytest.raises(Unreachable):
        resume._resume(site, "ada")
    assert fakes(site)[0].held == {stable.id: 50, new.id: 50}


def test_a_rollout_knows_at_once_what_share_it_once_had(tmp_path: Path) -> None:
    """Before its first shift, too: it may be led by another process than the one that shifted."""
    site, stable, new, rollout = frozen(tmp_path, 50)
    steps = plan(new.rollout, replicas=2, stable_replicas=2, now=0, migration="contract")
    nobody: Any = SimpleNamespace(check=lambda: falls_silent(site))
    with (
        pytest.raises(Unreachable),
        whole_or_nothing(site, replace(rollout, phase=Phase.SHIFTING)) as progress,
    ):
        carry_out(site, rollout, new, steps, nobody, nobody, progress)
    assert progress == Progress(no_way_back=True)
    assert fakes(site)[0].held == {stable.id: 50, new.id: 50}


def test_a_person_brings_a_dead_frozen_release_back_to_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 100% there is no other way forward: its replicas first, then it is promoted."""
    site, _, new, rollout = frozen(tmp_path, 100)
    _, workloads = fakes(site)
    workloads.wanted.pop(new.id)
    decided: list[Action] = []

    def look(site: Site, rollout: RolloutRecord, release: object, steps: Plan, *_: object) -> Phase:
        endpoints = site.platform.workloads.endpoints(new.id)
        share = site.platform.router.shares()[new.id]
        seen = Seen(
            now=steps.deadline - 1,
            phase=site.ledger.rollout(rollout.id).phase,
            share=share,
            shifted_at=0,
            new_ready=len(endpoints.ready),
            new_dead=not endpoints.ready,
            restarts=endpoints.restarts,
            stable_running=2,
            peak=share,
        )
        decided.append(next_action(steps, seen))
        site.ledger.promote(rollout.id, "ada let it go on")
        return Phase.DRAINING

    monkeypatch.setattr(resume, "carry_out", look)
    workloads.sick[new.id] = "no database"
    with pytest.raises(NotApplied, match="no database"):
        resume._resume(site, "ada")
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN, "for a person who repairs it"
    workloads.sick.clear()
    resume._resume(site, "ada")
    assert decided == [Promote("ada let it go on")]


def test_a_rollback_goes_to_as_many_replicas_as_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = autoscaled(a_site(tmp_path), 7)
    target = serving(site)
    serving(site, a_release(1))
    seen: list[Plan] = []

    def carry(site: Site, rollout: RolloutRecord, _: object, steps: Plan, *__: object) -> None:
        seen.append(steps)
        site.ledger.promote(rollout.id, "as it was")

    monkeypatch.setattr(rollback, "carry_out", carry)
    rollback._rollback(site, target.id, False, "", "ada", None)
    assert [steps.steps for steps in seen] == [(Step(100, 7, 7),)]
    assert (seen[0].first, seen[0].shrinks) == (False, False)


def test_a_rollback_goes_past_renewals(tmp_path: Path) -> None:
    """What is bad of a release is bad of its renewals; what served before them is another one."""
    site = a_site(tmp_path)
    before = serving(site)
    bad = serving(site, a_release(1))
    again = {"renewal_of": bad.id}
    serving(site, a_release(1).model_copy(update=again))
    serving(site, a_release(1).model_copy(update=again))
    assert rollback._last_good(site) == before.id


def test_a_rollback_goes_on_back_after_a_renewal(tmp_path: Path) -> None:
    """3 was bad, 2 serves again, and is renewed at night: not to 3, which was given up."""
    site = a_site(tmp_path)
    first = serving(site)
    second = serving(site, a_release(1))
    serving(site, a_release(2))
    serving(site, a_release(1).model_copy(update={"renewal_of": second.id}))
    assert rollback._last_good(site) == first.id


def test_a_renewal_waits_for_the_end_of_a_change(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    serving(site)
    token = site.ledger.take_lease("stack:shops", "prod", "a change")
    member = MemberRecord(0, "shop", 0, (), {})
    site.ledger.open_change(
        *("shops", "prod", [member]),
        token=token,
        version="2",
        file="stack.yaml",
        at_once=1,
        by="ada",
    )
    with pytest.raises(Refused, match="part of change 1 of shops"):
        renew._renew(site, None, "", "ada")


def test_a_renewal_heeds_freeze_windows(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    always = Rollout(freeze=["Jan 1 - Dec 31"])
    serving(site, a_release().model_copy(update={"rollout": always}))
    with pytest.raises(FreezeWindow, match="shop in prod is frozen"):
        renew._renew(site, None, "", "ada")


def test_a_shrink_waits_for_the_autoscaler_that_does_it(tmp_path: Path) -> None:
    """Else the next look would find it undone, and ask for it again and again."""
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)
    _, workloads = fakes(site)
    start, looks, told = workloads.start, [0], []

    def tell_it(release: Release, replicas: int) -> None:
        told.append(replicas)

    def still_good() -> None:
        looks[0] += 1
        if told and looks[0] > 10:
            start(stable, told[0])

    workloads.start = tell_it  # type: ignore[method-assign]
    shrink_stable.fn(site, rollout, 1, still_good)
    assert (told, workloads.wanted[stable.id]) == ([1], 1)


def test_a_start_takes_no_replica_away(tmp_path: Path) -> None:
    """An autoscaler of its own has grown the new release, and some are not ready yet."""
    site = a_site(tmp_path)
    _, new, rollout = under_way(site, 50)
    _, workloads = fakes(site)
    workloads.start(new, 5)
    start_replicas.fn(site, rollout.id, new, 3, lambda: None)
    assert workloads.wanted[new.id] == 5


def test_people_hear_once_that_a_person_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is told again and again, with what the judge says now; people are not."""
    site = a_site(tmp_path)
    _, _, rollout = under_way(site, 50)
    held = "held until a person says dafnck approve or dafnck abort"
    waits: list[Action] = [
        Wait(0, "bakes for 10 s"),
        *[Wait(0, f"{held}: {why}", for_person=True) for why in ("errors", "slow", "errors")],
        AskApproval("waits for a person before 100%"),
        AskApproval("waits for a person before 100%"),
        Shift(100),
    ]
    script = iter(waits)
    monkeypatch.setattr(traffic, "next_action", lambda *_: next(script))
    monkeypatch.setattr(traffic, "TELL_SECONDS", 0.0)
    written: list[Action] = []
    eyes: Any = SimpleNamespace(
        look=lambda: None, tell=written.append, interrupted=threading.Event()
    )
    own_run: Any = SimpleNamespace(go_on=lambda: None, pause=lambda until: None)
    steps = plan(Rollout(), replicas=2, stable_replicas=2, now=0)
    traffic.watch.fn(site, rollout, replace(steps, poll_seconds=0.0), eyes, own_run)
    assert written == waits[:-1]
    site.outbox.close()
    notifier = site.outbox._notifier
    assert isinstance(notifier, FakeNotifier)
    assert [notice.event for notice in notifier.recorded] == [Event.PAUSE, Event.PAUSE]


class TermHeard(BaseException):
    """What Prefect's handler raises."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_goes_nowhere_is_heard(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came up in a finalizer, or in a library that takes everything."""
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 50)
    steps = plan(new.rollout, replicas=2, stable_replicas=2, now=site.clock())
    publisher: Any = SimpleNamespace(table=lambda *_: None)
    lease: Any = SimpleNamespace(check=lambda: None)

    def raises(*_: object) -> None:
        raise TermHeard

    def shift_traffic(*_: object) -> None:
        with suppress(TermHeard):
            os.kill(os.getpid(), number)
            time.sleep(1)
            pytest.fail("nothing was raised")

    for name in ("roll_back", "clean_up"):
        monkeypatch.setattr(traffic, name, getattr(traffic, name).fn)
    monkeypatch.setattr(traffic, "shift_traffic", shift_traffic)
    before = signal.signal(number, raises)
    try:
        end = carry_out(site, rollout, new, steps, lease, publisher, Progress())
    finally:
        signal.signal(number, before)
    assert end is Phase.ROLLED_BACK
    assert site.ledger.rollout(rollout.id).reason == f"its process was told to end ({number.name})"
    serves_alone(site, stable)
    assert signal.set_wakeup_fd(-1) == -1
