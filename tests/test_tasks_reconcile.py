"""Who leads, and what ends when nobody does. Every clock is moved by the test; no servers."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from fakes import FakeNotifier, FakeRouter, a_release, a_site
from test_tasks_put_back import Killed, fakes, serves_alone, under_way

from blocks.files import HALF, locked, remove_half_written, scratch
from blocks.ledger import Ledger
from blocks.ledger_leases import LEASE_SECONDS, RENEW_SECONDS
from blocks.prefect_api import PrefectApi
from blocks.processes import Process, end_orphans, marked, own
from blocks.stack import Ports, Stack
from deployments import cli
from deployments import guard as guard_module
from deployments.guard import Guard
from policy.errors import Frozen, LeaseLost, NotAllowed, NotApplied, Refused, Unreachable
from policy.notice import Event
from policy.release import Phase, Release, RolloutRecord
from tasks import put_back, reconcile
from tasks.abort import abort_frozen
from tasks.lease import held_lease
from tasks.outbox import Outbox
from tasks.reconcile import Unled, Watch
from tasks.site import Site

HOUR = 3600.0


class Time:
    """A wall clock that jumps, a monotonic one that does not, and who acts while they pass."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 1000.0
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds
        self.meanwhile()


@pytest.fixture
def time() -> Time:
    return Time()


def site_at(folder: Path, time: Time) -> Site:
    return a_site(folder, time, time.monotonic, time.sleep)


def elsewhere(site: Site) -> None:
    """The holder of the lease is a process of another machine: nobody can say whether it lives."""
    _write(site.ledger, "UPDATE leases SET machine = 'another'")


def dead(site: Site) -> None:
    """The holder of the lease is a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    process.communicate(b"\n")
    change = "UPDATE leases SET pid = :pid, pid_started = :started"
    _write(site.ledger, change, pid=process.pid, started=started)


def _write(ledger: Ledger, statement: str, **values: object) -> None:
    import sqlalchemy as sa

    with ledger._engine.begin() as db:
        db.execute(sa.text(statement), values)


def looked(watch: Watch, site: Site, time: Time, seconds: int) -> list[Unled]:
    """Look once a second for so long, or until something is found."""
    for _ in range(seconds):
        if found := watch.look(site.ledger):
            return found
        time.sleep(1)
    return watch.look(site.ledger)


def died(tmp_path: Path, time: Time, share: int = 50) -> tuple[Site, Release, RolloutRecord]:
    site = site_at(tmp_path, time)
    stable, _, rollout = under_way(site, share)
    dead(site)
    return site, stable, rollout


# -- who leads -------------------------------------------------------------------------------


def test_a_lease_lapses_by_the_time_in_which_it_was_seen_unrenewed(
    tmp_path: Path, time: Time
) -> None:
    site = site_at(tmp_path, time)
    under_way(site, 50)
    elsewhere(site)
    watch = Watch(time.monotonic)
    assert looked(watch, site, time, 14) == []
    found = looked(watch, site, time, 2)
    assert "its lease lapsed: not renewed for 1" in found[0].why


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 20.0, -20.0])
def test_no_jump_of_the_clock_makes_a_renewed_lease_lapse(
    tmp_path: Path, time: Time, jump: float
) -> None:
    site = site_at(tmp_path, time)
    under_way(site, 50)
    lease = site.ledger.lease_row("shop", "prod")
    assert lease
    watch = Watch(time.monotonic)
    for second in range(60):
        if second == 17:
            time.wall += jump
        if second % int(RENEW_SECONDS) == 0:
            site.ledger.renew_lease(lease.token)
        assert watch.look(site.ledger) == []
        time.sleep(1)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_no_jump_of_the_clock_keeps_a_dead_lease_alive(
    tmp_path: Path, time: Time, jump: float
) -> None:
    site = site_at(tmp_path, time)
    under_way(site, 50)
    elsewhere(site)
    watch = Watch(time.monotonic)
    assert looked(watch, site, time, 3) == []
    time.wall += jump
    assert looked(watch, site, time, 14)


def test_time_in_which_nobody_looked_does_not_count(tmp_path: Path, time: Time) -> None:
    """The ledger was away, or the whole machine stood still: others had no chance to renew."""
    site = site_at(tmp_path, time)
    under_way(site, 50)
    elsewhere(site)
    watch = Watch(time.monotonic)
    assert looked(watch, site, time, 2) == []
    time.sleep(100)
    assert looked(watch, site, time, 9) == []


def test_a_dead_process_is_known_at_once(tmp_path: Path, time: Time) -> None:
    site, _, _ = died(tmp_path, time)
    assert [found.why for found in Watch(time.monotonic).look(site.ledger)] == ["its process died"]


def test_a_pid_that_another_program_has_now_is_a_dead_process(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    under_way(site, 50)
    assert Watch(time.monotonic).look(site.ledger) == [], "this process lives"
    _write(site.ledger, "UPDATE leases SET pid_started = '1'")
    assert Watch(time.monotonic).look(site.ledger)
    assert Process(os.getpid(), own().started).alive()
    assert not Process(os.getpid(), "1").alive()


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    process = Process(child.pid, started)
    assert process.alive()
    child.kill()
    wait_for(lambda: not process.alive(), "dead before it is waited for")
    child.communicate()


def test_what_was_left_without_a_lease_is_found(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    under_way(site, 50)
    _write(site.ledger, "DELETE FROM leases")
    found = Watch(time.monotonic).look(site.ledger)
    assert [one.why for one in found] == ["its process ended and left it unfinished"]


# -- taking a lease over ---------------------------------------------------------------------


def test_a_lease_that_looks_lapsed_and_is_renewed_is_not_taken(tmp_path: Path, time: Time) -> None:
    """The clock was set an hour forward; its holder is well."""
    site = site_at(tmp_path, time)
    token = site.ledger.take_lease("shop", "prod", "release 1")
    time.wall += HOUR
    renewed_at = time.steady

    def renew() -> None:
        nonlocal renewed_at
        if time.steady - renewed_at >= RENEW_SECONDS:
            renewed_at = time.steady
            site.ledger.renew_lease(token)

    time.meanwhile = renew
    with pytest.raises(Refused, match="is being changed by release 1"):
        site.ledger.take_lease("shop", "prod", "release 2")
    site.ledger.renew_lease(token)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_lapsed_lease_is_taken_after_it_was_watched(
    tmp_path: Path, time: Time, jump: float
) -> None:
    """Set back by an hour, the clock would have it live for an hour."""
    site = site_at(tmp_path, time)
    token = site.ledger.take_lease("shop", "prod", "release 1")
    time.wall += jump
    began = time.steady
    site.ledger.take_lease("shop", "prod", "release 2")
    assert RENEW_SECONDS < time.steady - began < LEASE_SECONDS
    with pytest.raises(LeaseLost):
        site.ledger.renew_lease(token)


def test_a_dead_holders_lease_is_taken_at_once(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    site.ledger.take_lease("shop", "prod", "release 1")
    dead(site)
    assert site.ledger.lease("shop", "prod") is None
    began = time.steady
    site.ledger.take_lease("shop", "prod", "release 2")
    assert time.steady == began


def test_a_lease_that_was_renewed_after_it_was_looked_at_is_not_taken(
    tmp_path: Path, time: Time
) -> None:
    site = site_at(tmp_path, time)
    token = site.ledger.take_lease("shop", "prod", "release 1")
    seen = site.ledger.lease_row("shop", "prod")
    site.ledger.renew_lease(token)
    with pytest.raises(Refused):
        site.ledger.take_lease("shop", "prod", "the guard", over=seen)
    site.ledger.free_lease(token)
    with pytest.raises(Refused, match="given its lease back"):
        site.ledger.take_lease("shop", "prod", "the guard", over=seen)


def test_who_stood_still_while_another_took_over_moves_nothing(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    stable, new, _ = under_way(site, 0)
    _write(site.ledger, "DELETE FROM leases")
    with held_lease(site, "release 2") as (mine, _):
        rollout = mine.ledger.open_rollout(
            "shop", "prod", token=mine.token or "", kind="release", version="2", strategy="canary"
        )
        _write(site.ledger, "DELETE FROM leases")
        other = site.ledger.take_lease("shop", "prod", "the guard")
        for write in (
            lambda: mine.platform.router.set_shares({new.id: 100}),
            lambda: mine.platform.router.match(None),
            lambda: mine.platform.router.detach(new.id),
            lambda: mine.platform.router.attach(mine.platform.workloads.endpoints(new.id)),
            lambda: mine.platform.workloads.start(new, 5),
            lambda: mine.platform.workloads.stop(stable.id, 0),
            lambda: mine.ledger.promote(rollout.id, "good", token=mine.token),
        ):
            with pytest.raises(LeaseLost):
                write()
    assert fakes(site)[0].held == {stable.id: 100}
    assert site.ledger.stable("shop", "prod") == stable.id
    site.ledger.check_lease(other)


def test_what_has_ended_stays_as_it_ended(tmp_path: Path, time: Time) -> None:
    site, _, rollout = died(tmp_path, time)
    found = Watch(time.monotonic).look(site.ledger)[0]
    assert reconcile.end(site, found, "the guard") == [Phase.ROLLED_BACK]
    for late in (Phase.SHIFTING, Phase.ROLLING_BACK, Phase.FAILED):
        site.ledger.set_phase(rollout.id, late, "late")
    ended = site.ledger.rollout(rollout.id)
    assert (ended.phase, ended.reason[:16]) == (Phase.ROLLED_BACK, "its process died")


# -- the guard -------------------------------------------------------------------------------


@dataclass
class FakeFlowRuns:
    """Prefect's API: answers after so many questions."""

    silent: int = 0
    states: dict[str, str] = field(default_factory=dict)

    def state(self, flow_run_id: str) -> dict[str, object]:
        if self.silent > 0:
            self.silent -= 1
            raise Unreachable("Prefect's API does not answer")
        if flow_run_id not in self.states:
            raise Refused(f"Prefect's API knows no {flow_run_id}")
        return {"type": self.states[flow_run_id]}

    def set_state(
        self, flow_run_id: str, kind: str, message: str = "", *, force: bool = False
    ) -> None:
        assert message
        assert force
        self.states[flow_run_id] = kind


def guard_of(site: Site, time: Time, runs: FakeFlowRuns | None = None) -> Guard:
    return Guard(
        site.ledger,
        lambda service, environment: site,
        lambda: runs or FakeFlowRuns(),
        reconcile.write_report,
        time.monotonic,
    )


def rounds(guard: Guard, time: Time, until: Callable[[], object], what: str) -> None:
    def one() -> object:
        guard.look()
        time.sleep(1)
        return until()

    wait_for(one, what)


@pytest.mark.parametrize("share", [0, 50, 100])
def test_the_guard_ends_what_died(tmp_path: Path, time: Time, share: int) -> None:
    site, stable, rollout = died(tmp_path, time, share)
    guard = guard_of(site, time)
    rounds(guard, time, lambda: site.ledger.rollout(rollout.id).closed_at, "ended and told")
    guard.wait()
    serves_alone(site, stable)
    ended = site.ledger.rollout(rollout.id)
    assert ended.phase is (Phase.ROLLED_BACK if share else Phase.FAILED)
    assert f"its process died (pid {os.getpid()} on " in ended.reason
    assert ended.reason == ended.taken_over
    assert "its process died" in (site.reports / f"shop-prod-rollout-{rollout.id}.html").read_text()
    assert site.ledger.leases() == []


def test_the_guard_finishes_what_was_promoted(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    _, new, rollout = under_way(site, 100)
    site.ledger.promote(rollout.id, "good")
    dead(site)
    guard = guard_of(site, time)
    rounds(guard, time, lambda: site.ledger.rollout(rollout.id).closed_at, "ended and told")
    guard.wait()
    serves_alone(site, new)
    ended = site.ledger.rollout(rollout.id)
    assert (ended.phase, ended.reason) == (Phase.PROMOTED, "good")
    assert "its process died" in (ended.taken_over or "")


def test_a_lease_without_a_rollout_is_removed(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    site.ledger.take_lease("shop", "prod", "release 1")
    dead(site)
    guard = guard_of(site, time)
    rounds(guard, time, lambda: not site.ledger.leases(), "the lease is gone")
    guard.wait()


def test_the_run_is_shown_as_crashed_when_prefect_is_back(tmp_path: Path, time: Time) -> None:
    """By another guard than the one that ended the rollout: the ledger remembers."""
    site, stable, rollout = died(tmp_path, time)
    _write(site.ledger, "UPDATE rollouts SET flow_run_id = 'run' WHERE id = :id", id=rollout.id)
    away = FakeFlowRuns(silent=1000, states={"run": "RUNNING"})
    first = guard_of(site, time, away)
    rounds(first, time, lambda: away.silent < 998, "asked twice")
    first.wait()
    serves_alone(site, stable)
    assert site.ledger.rollout(rollout.id).closed_at is None
    back = FakeFlowRuns(silent=1, states={"run": "RUNNING"})
    second = guard_of(site, time, back)
    rounds(second, time, lambda: site.ledger.rollout(rollout.id).closed_at, "told")
    second.wait()
    assert back.states == {"run": "CRASHED"}


def test_a_run_that_prefect_ended_itself_is_left_as_it_is(tmp_path: Path, time: Time) -> None:
    site, _, rollout = died(tmp_path, time)
    _write(site.ledger, "UPDATE rollouts SET flow_run_id = 'run' WHERE id = :id", id=rollout.id)
    runs = FakeFlowRuns(states={"run": "CANCELLED"})
    guard = guard_of(site, time, runs)
    rounds(guard, time, lambda: site.ledger.rollout(rollout.id).closed_at, "told")
    guard.wait()
    assert runs.states == {"run": "CANCELLED"}


def test_two_guards_at_once_do_no_harm(tmp_path: Path, time: Time) -> None:
    site, stable, _ = died(tmp_path, time)
    found = Watch(time.monotonic).look(site.ledger)[0]
    ends: list[list[Phase]] = []
    faults: list[BaseException] = []

    def act() -> None:
        try:
            ends.append(reconcile.end(site, found, "a guard"))
        except BaseException as fault:
            faults.append(fault)

    guards = [threading.Thread(target=act) for _ in range(4)]
    for guard in guards:
        guard.start()
    for guard in guards:
        guard.join()
    assert faults == []
    assert sorted(ends) == [[], [], [], [Phase.ROLLED_BACK]]
    serves_alone(site, stable)
    assert site.ledger.leases() == []
    router, _ = fakes(site)
    assert router.moves.count({stable.id: 100}) == 2, "at the start, and once by one guard"


def cut_at(site: Site, cut: int, restore: list[tuple[Any, str, Any]]) -> None:
    """Every call after the first `cut` ones to a platform or, writing, to the ledger kills."""
    calls = 0

    def cutting(target: Any, name: str) -> None:
        real = getattr(target, name)
        restore.append((target, name, real))

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > cut:
                raise Killed
            return real(*arguments, **named)

        setattr(target, name, counted)

    for name in ("attach", "detach", "set_shares", "match"):
        cutting(site.platform.router, name)
    for name in ("start", "stop"):
        cutting(site.platform.workloads, name)
    cutting(site.builder, "remove_half_built")
    for name in (
        *("_insert_lease", "take_over", "set_phase", "_intend", "_outcome"),
        *("free_lease", "close_rollout"),
    ):
        cutting(site.ledger, name)


@pytest.mark.parametrize("way", ["back", "forward"])
def test_a_guard_killed_at_any_call_is_followed_by_one_that_ends_it(
    tmp_path: Path, time: Time, way: str
) -> None:
    cut = 0
    while True:
        site = site_at(tmp_path / f"{way}{cut}", time)
        stable, new, rollout = under_way(site, 100 if way == "forward" else 50)
        if way == "forward":
            site.ledger.promote(rollout.id, "good")
        left_behind = half_built(site)
        dead(site)
        restore: list[tuple[Any, str, Any]] = []
        cut_at(site, cut, restore)
        killed = False
        try:
            _once(site, time)
        except Killed:
            killed = True
        for target, name, real in restore:
            setattr(target, name, real)
        if site.ledger.leases():
            dead(site)  # the killed guard's
        _once(site, time)
        serves_alone(site, new if way == "forward" else stable)
        ended = site.ledger.rollout(rollout.id)
        assert ended.phase is (Phase.PROMOTED if way == "forward" else Phase.ROLLED_BACK)
        assert "its process died" in (ended.taken_over or "")
        assert ended.closed_at
        assert not left_behind.exists()
        assert site.ledger.leases() == []
        site.ledger.close()
        if not killed:
            break
        cut += 1
    assert cut >= 12, f"{way}: only {cut} places were cut"


def half_built(site: Site) -> Path:
    """What a build leaves that was killed."""
    folder = site.reports.parent / "artifacts" / "half"
    folder.mkdir(parents=True)
    return folder


def _once(site: Site, time: Time, runs: FakeFlowRuns | None = None) -> None:
    for found in Watch(time.monotonic).look(site.ledger):
        reconcile.end(site, found, "the guard")
    for rollout in site.ledger.unclosed():
        reconcile.close(site, rollout, runs or FakeFlowRuns(), reconcile.write_report)


def test_a_router_that_is_away_keeps_the_guard_trying(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stable, rollout = died(tmp_path, time)
    router = site.platform.router
    assert isinstance(router, FakeRouter)
    router.down = True
    monkeypatch.setattr(put_back, "ROUTER_SECONDS", 0.2)
    guard = guard_of(site, time)
    guard.look()
    wait_for(lambda: not guard._busy, "it failed")
    assert site.ledger.unfinished()
    router.down = False
    rounds(guard, time, lambda: site.ledger.rollout(rollout.id).closed_at, "ended and told")
    guard.wait()
    serves_alone(site, stable)


# -- what is left ----------------------------------------------------------------------------


def test_children_of_a_dead_process_end_and_those_of_a_living_one_do_not() -> None:
    """Also a grandchild in a session of its own."""
    code = (
        "import subprocess, sys; from blocks.processes import marked; import os\n"
        "deep = ['sh', '-c', 'setsid sleep 1000 & echo $!; wait']\n"
        "child = subprocess.Popen(deep, env=marked(os.environ), start_new_session=True)\n"
        "input()"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    mine = subprocess.Popen(["sleep", "1000"], env=marked(os.environ))
    try:
        assert parent.stdout
        grandchild = int(parent.stdout.readline())
        assert end_orphans() == []
        parent.kill()
        parent.wait()
        assert grandchild in end_orphans()
        wait_for(lambda: not Path(f"/proc/{grandchild}").exists(), "the grandchild ends")
        assert end_orphans() == []
        assert mine.poll() is None
    finally:
        mine.kill()
        mine.wait()
        parent.kill()
        parent.communicate()


def test_half_written_files_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    me = own()
    half = tmp_path / f".a.conf.x1.1-1{HALF}"
    within = tmp_path / "release" / f".b.json.x2.1-1{HALF}"
    living = tmp_path / f".c.conf.x3.{me.pid}-{me.started}{HALF}"
    whole = tmp_path / "a.conf"
    folder = tmp_path / f".unit.x4.1-1{HALF}"
    within.parent.mkdir()
    folder.mkdir()
    for path in (half, within, living, whole, folder / "junit.xml"):
        path.write_text("")
    with scratch(tmp_path, "unit") as used:
        (mine := used / "junit.xml").write_text("")
        remove_half_written(tmp_path)
        left = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {living, whole, mine}
        assert not folder.exists()
    assert not used.exists()


def test_a_lock_that_another_process_does_not_let_go_is_told(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(Unreachable, match=r"another process holds .*/lock for 0.1s"),
        locked(tmp_path / "lock", within_seconds=0.1),
    ):
        pass
    with locked(tmp_path / "lock", within_seconds=0.1):
        pass


def test_the_guard_does_not_give_up_while_stable_is_not_ready(tmp_path: Path, time: Time) -> None:
    """Its replicas need longer than their start time once; the router is split meanwhile."""
    site, stable, rollout = died(tmp_path, time)
    router, workloads = fakes(site)
    workloads.stop(stable.id, 0)
    workloads.sick[stable.id] = "slow"
    guard = guard_of(site, time)
    tries: list[float] = []
    for _ in range(4):
        guard.look()
        wait_for(lambda: not guard._busy, "it tried")
        assert site.ledger.rollout(rollout.id).finished_at is None
        assert len(router.held) == 2, "traffic is unchanged"
        tries.append(guard._not_before["shop", "prod"] - time.monotonic())
        time.sleep(tries[-1] + 1)
    assert tries == [3.0, 6.0, 12.0, 24.0], "each may take as long as replicas may to start"
    workloads.sick.clear()
    rounds(guard, time, lambda: site.ledger.rollout(rollout.id).closed_at, "ended and told")
    guard.wait()
    serves_alone(site, stable)
    assert site.ledger.rollout(rollout.id).phase is Phase.ROLLED_BACK


# -- frozen, resumed, taken back --------------------------------------------------------------


def frozen_by_the_guard(site: Site, time: Time, share: int = 50) -> RolloutRecord:
    """A contract release whose process died, led by the flow run "run 1"."""
    _, _, rollout = under_way(site, share, migration="contract")
    _write(site.ledger, "UPDATE rollouts SET flow_run_id = 'run 1' WHERE id = :id", id=rollout.id)
    dead(site)
    for found in Watch(time.monotonic).look(site.ledger):
        assert reconcile.end(site, found, "the guard") == [Phase.FROZEN]
    return site.ledger.rollout(rollout.id)


def resumed(site: Site, rollout: RolloutRecord) -> str:
    """-> the token of its lease."""
    token = site.ledger.take_lease("shop", "prod", "resumed by ada")
    site.ledger.go_on(rollout.id, token=token, who="ada", flow_run_id="run 2")
    return token


def test_a_resumed_rollout_that_dies_is_told_anew(tmp_path: Path, time: Time) -> None:
    """Nothing of its first death is taken for its second one."""
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time)
    runs = FakeFlowRuns(states={"run 1": "RUNNING", "run 2": "RUNNING"})
    _once(site, time, runs)
    _write(site.ledger, "UPDATE rollouts SET leader = 'pid 1 on another'")
    resumed(site, rollout)
    led = site.ledger.rollout(rollout.id)
    assert (led.reason, led.taken_over, led.closed_at) == ("", None, None)
    assert led.leader == f"pid {os.getpid()} on {socket.gethostname()}"
    dead(site)
    _once(site, time, runs)
    assert runs.states == {"run 1": "CRASHED", "run 2": "CRASHED"}
    assert told(site).count(Event.CRASH) == 2


@pytest.mark.parametrize("ended", [True, False])
def test_the_run_before_the_resumed_one_is_shown_as_crashed(
    tmp_path: Path, time: Time, ended: bool
) -> None:
    """Prefect was away when it died; the run that goes on, or went well, is left alone."""
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time)
    token = resumed(site, rollout)
    if ended:
        site.ledger.promote(rollout.id, "good", token=token)
        site.ledger.set_phase(rollout.id, Phase.PROMOTED)
    runs = FakeFlowRuns(silent=1, states={"run 1": "RUNNING", "run 2": "RUNNING"})
    _once(site, time, runs)
    assert site.ledger.unclosed()
    _once(site, time, runs)
    assert runs.states == {"run 1": "CRASHED", "run 2": "RUNNING"}
    assert site.ledger.unclosed() == []


def test_a_person_who_takes_it_back_is_obeyed_to_the_end(tmp_path: Path, time: Time) -> None:
    """Stable could not start at first: the guard finishes what was decided."""
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time, 100)
    stable = site.ledger.release(rollout.stable_id or "")
    _, workloads = fakes(site)
    workloads.stop(stable.id, 0)
    workloads.sick[stable.id] = "no database"
    with pytest.raises(NotApplied):
        abort_frozen(site, "aborted by ada", "nothing was written", "ada")
    half = site.ledger.rollout(rollout.id)
    assert (half.phase, half.unsafe_reason) == (Phase.ROLLING_BACK, "nothing was written")
    workloads.sick.clear()
    _once(site, time)
    serves_alone(site, stable)
    assert site.ledger.rollout(rollout.id).phase is Phase.ROLLED_BACK
    page = (site.reports / f"shop-prod-rollout-{rollout.id}.html").read_text()
    assert "frozen" not in page.split("</h1>")[0]


def test_the_report_of_what_was_taken_back_does_not_say_frozen(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time)
    path = reconcile.write_report(site, rollout.id)
    before = path.read_text()
    abort_frozen(site, "aborted by ada", "nothing was written", "ada")
    assert "rolled back" not in before
    assert "rolled back" in path.read_text()


def test_who_lets_it_go_on_takes_an_earlier_permission_back(tmp_path: Path, time: Time) -> None:
    """A permission to go back past the migration was for then, not for a later verdict."""
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time)
    site.ledger.abort(rollout.id, "no", unsafe_reason="nothing was written", unsafe_by="ada")
    resumed(site, rollout)
    led = site.ledger.rollout(rollout.id)
    assert (led.abort_reason, led.unsafe_reason, led.unsafe_by) == (None, None, None)
    assert put_back.put_back(site, rollout.id, "bad") is Phase.FROZEN


def test_a_late_leader_does_not_thaw(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    rollout = frozen_by_the_guard(site, time)
    for late in (Phase.STARTING, Phase.SHIFTING, Phase.ROLLING_BACK):
        site.ledger.set_phase(rollout.id, late, "late")
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN


def test_what_froze_between_two_questions_was_not_left(tmp_path: Path, time: Time) -> None:
    site = site_at(tmp_path, time)
    seen = under_way(site, 50, migration="contract")[2]
    put_back.put_back(site, seen.id, "bad")
    assert Watch(time.monotonic)._left(site.ledger, seen) == ""


def test_taken_back_before_it_had_traffic_it_keeps_nobody_from_going_back(
    tmp_path: Path, time: Time
) -> None:
    site = site_at(tmp_path, time)
    stable, _, rollout = under_way(site, 0, migration="contract")
    site.ledger.abort(rollout.id, "no", unsafe_reason="why not", unsafe_by="ada")
    assert put_back.put_back(site, rollout.id, "no") is Phase.FAILED
    assert site.ledger.contracts_after(stable) == []


# -- what is told, and to the end ---------------------------------------------------------------


def told(site: Site) -> list[Event]:
    site.outbox.close()
    notifier = site.outbox._notifier
    assert isinstance(notifier, FakeNotifier)
    return [notice.event for notice in notifier.recorded]


def test_a_death_is_told_once_and_by_no_thread_that_stays(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the guard must try."""
    monkeypatch.setattr(put_back, "ROUTER_SECONDS", 0.01)
    site, _, _ = died(tmp_path, time)
    fakes(site)[0].down = True
    before = threading.active_count()
    for _ in range(4):
        for found in Watch(time.monotonic).look(site.ledger):
            other = copy(site)
            other.outbox = Outbox(site.outbox._notifier)
            with pytest.raises(Unreachable):
                reconcile.end(other, found, "the guard", stays=True)
    assert told(site) == [Event.CRASH]
    wait_for(lambda: threading.active_count() <= before, "the threads that told ended")


@pytest.mark.parametrize(
    ("kind", "outcome", "heard"),
    [
        ("release", "done", []),
        ("release", None, [Event.PROMOTE]),
        ("rollback", None, [Event.ROLLBACK]),
    ],
)
def test_a_promotion_is_told_once(
    tmp_path: Path, time: Time, kind: str, outcome: str | None, heard: list[Event]
) -> None:
    """By its own process, or when that died before it could, by who finishes it."""
    site = site_at(tmp_path, time)
    _, new, rollout = under_way(site, 100)
    _write(site.ledger, "UPDATE rollouts SET kind = :kind", kind=kind)
    with site.ledger.act(rollout.id, "promote", release=new.id):
        site.ledger.promote(rollout.id, "good")
    _write(site.ledger, "UPDATE intents SET outcome = :o WHERE act = 'promote'", o=outcome)
    dead(site)
    _once(site, time)
    assert [event for event in told(site) if event is not Event.CRASH] == heard


def test_one_failing_place_keeps_no_other_waiting(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_back, "ROUTER_SECONDS", 0.01)
    site, stable, _ = died(tmp_path, time)
    site.ledger.take_lease("accounts", "prod", "release 1")
    dead(site)

    def site_of(service: str, environment: str) -> Site:
        if service == "accounts":
            raise Unreachable("its router does not answer")
        return site

    with pytest.raises(Unreachable, match="its router"):
        reconcile.everywhere(site.ledger, site_of, None, "reconcile")
    serves_alone(site, stable)


def test_a_dead_lease_that_goes_away_while_it_is_taken_over_is_no_refusal(
    tmp_path: Path, time: Time
) -> None:
    site = site_at(tmp_path, time)
    site.ledger.take_lease("shop", "prod", "release 1")
    dead(site)
    insert, tries = site.ledger._insert_lease, []

    def slow(*arguments: Any) -> str | None:
        tries.append(1)
        if len(tries) == 2:
            site.ledger.remove_lease(site.ledger.leases()[0])
        return insert(*arguments)

    site.ledger._insert_lease = slow  # type: ignore[method-assign]
    assert site.ledger.take_lease("shop", "prod", "release 2")


def test_a_run_that_our_credentials_may_not_see_is_tried_again(tmp_path: Path, time: Time) -> None:
    """It is not an unknown one: somebody will repair them."""

    class Locked(FakeFlowRuns):
        def state(self, flow_run_id: str) -> dict[str, object]:
            raise NotAllowed("refuses our credentials")

    site, _, rollout = died(tmp_path, time)
    _write(site.ledger, "UPDATE rollouts SET flow_run_id = 'run' WHERE id = :id", id=rollout.id)
    _once(site, time, Locked())
    assert site.ledger.rollout(rollout.id).closed_at is None
    runs = FakeFlowRuns(states={"run": "RUNNING"})
    _once(site, time, runs)
    assert runs.states == {"run": "CRASHED"}


def test_prefects_api_tells_what_is_unknown_from_what_is_forbidden() -> None:
    class Forbidding(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401 if "mine" in self.path else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with PrefectApi(f"http://127.0.0.1:{server.server_port}/api", "a:b") as api:
            with pytest.raises(NotAllowed):
                api.state("mine")
            with pytest.raises(Refused) as unknown:
                api.state("other")
            assert not isinstance(unknown.value, NotAllowed)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_guard_waits_for_a_ledger_that_does_not_answer_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "LOOK_SECONDS", 0.05)
    stack = Stack(home=tmp_path, ports=Ports(), ledger_url=str(tmp_path / "there" / "ledger.db"))
    (tmp_path / "there" / "ledger.db").mkdir(parents=True)
    opened: list[Ledger] = []
    thread = threading.Thread(target=lambda: opened.append(guard_module._ledger(stack)))
    thread.start()
    thread.join(1)
    assert thread.is_alive(), "it asks again"
    (tmp_path / guard_module.LOOKED).unlink()
    wait_for((tmp_path / guard_module.LOOKED).exists, "who waits does not hang")
    (tmp_path / "there" / "ledger.db").rmdir()
    wait_for(lambda: opened, "it is there now")
    opened[0].close()


def test_an_abort_says_at_once_that_the_rollout_froze_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAFNCK_HOME", str(tmp_path))
    Stack(home=tmp_path, ports=Ports(), ledger_url=str(tmp_path / "ledger.db")).save()
    site = a_site(tmp_path)
    late = a_release().rollout.model_copy(update={"freeze_at": 60})
    _, _, rollout = under_way(site, 50, migration="contract", rollout=late)
    _write(site.ledger, "DELETE FROM leases")

    def freezes() -> None:
        wait_for(lambda: site.ledger.rollout(rollout.id).abort_reason, "the abort is written down")
        site.ledger.set_phase(rollout.id, Phase.FROZEN, "errors")

    leader = threading.Thread(target=freezes)
    leader.start()
    with pytest.raises(Frozen, match="is frozen, because errors"):
        cli.abort("shop", "prod")
    leader.join()
