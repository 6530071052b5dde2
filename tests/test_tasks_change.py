"""A change of several services over the real ledger: its leader killed at every boundary, Prefect
away, workers that come late. Releases are played; no servers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Clock, a_release, a_site

from blocks.ledger import Ledger
from deployments import look
from flows.release_stack import _led
from policy.change import ChangeRecord, MemberRecord, place_of
from policy.errors import NotAllowed, Refused, Unreachable
from policy.release import UNLED, Phase
from policy.waves import Abort, Wait
from tasks.change import Change, end_change, goes_on, held_change
from tasks.change_report import rows, what_is_true
from tasks.change_runs import WorkerRuns
from tasks.frozen import still_serves
from tasks.lease import Held
from tasks.reconcile import Watch
from tasks.site import Site

AFTER: dict[str, tuple[str, ...]] = {"db": (), "shop": ("db",), "web": ("shop",)}


class Killed(BaseException):
    """The leader's process is gone."""


@dataclass
class Played:
    """One flow run as a worker plays it."""

    flow: str
    parameters: dict[str, Any]
    words: str | None = None  # set when it has ended
    rollout_id: int | None = None
    token: str = ""


@dataclass
class PlayedRuns:
    """Prefect and its workers: each run goes one step further each time somebody waits."""

    ledger: Ledger
    ends: dict[str, str]  # service -> good, bad, slow (until aborted), refused, deaf
    runs: dict[str, Played] = field(default_factory=dict)  # by key, which is its id, too
    away: bool = False
    cancelled: list[tuple[str, bool]] = field(default_factory=list)
    asked: Callable[[str], None] = lambda what: None

    def begin(self, flow: str, parameters: dict[str, Any], name: str, key: str) -> str:
        self.asked(f"before {flow} of {name}")
        self._answers()
        if key not in self.runs:
            self.runs[key] = Played(flow, parameters)
        self.asked(f"after {flow} of {name}")
        return key

    def find(self, key: str) -> str | None:
        self._answers()
        return key if key in self.runs else None

    def ended(self, run_id: str) -> str | None:
        self._answers()
        return self.runs[run_id].words

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        self._answers()
        self.cancelled.append((run_id, force))
        run = self.runs[run_id]
        service = run.parameters["service_file"]
        if run.rollout_id is None and (force or self.ends[service] != "deaf"):
            self.runs[run_id].words = "cancelled"

    def _answers(self) -> None:
        if self.away:
            raise Unreachable("Prefect's API does not answer")

    def work(self, _: float = 0.0) -> None:
        for key, run in self.runs.items():
            deaf = self.ends.get(run.parameters.get("service_file", "")) == "deaf"
            if run.words is None and not deaf:
                try:
                    self._step(key, run)
                except Refused as error:
                    run.words = str(error)

    def _step(self, key: str, run: Played) -> None:
        ledger, given = self.ledger, run.parameters
        back = run.flow == "rollback"
        service = given["service"] if back else given["service_file"]
        if run.rollout_id is None:
            if self.ends[service] == "refused":
                raise Refused("nothing was changed")
            run.token = ledger.take_lease(service, "prod", "a release")
            try:
                goes_on(ledger, given["change"], back=back)
                still_serves(a_place(ledger, service), given.get("instead_of"))
            except Refused:
                ledger.free_lease(run.token)
                raise
            rollout = ledger.open_rollout(
                service,
                "prod",
                token=run.token,
                kind=run.flow,
                version="2",
                strategy="canary",
                flow_run_id=key,
                release_id=given.get("to"),
                change_id=given["change"],
            )
            run.rollout_id = rollout.id
            if not back:
                contract = "contract" if self.ends[service] == "contract" else None
                ledger.add_release(a_release(service=service, migration=contract), rollout.id)
            ledger.set_phase(rollout.id, Phase.SHIFTING)
            return
        rollout = ledger.rollout(run.rollout_id)
        end = "good" if back else self.ends[service]
        if rollout.abort_reason or end == "bad":
            reason = rollout.abort_reason or "its verdict"
            ledger.set_phase(rollout.id, Phase.ROLLED_BACK, reason)
        elif end in ("good", "contract"):
            ledger.promote(rollout.id, "judged good")
            ledger.set_phase(rollout.id, Phase.PROMOTED)
        if ledger.rollout(rollout.id).phase in UNLED:
            ledger.free_lease(run.token)
            run.words = "it ended"


def a_place(ledger: Ledger, service: str) -> Any:
    return SimpleNamespace(ledger=ledger, service=service, environment="prod")


@dataclass
class Play:
    ledger: Ledger
    runs: PlayedRuns
    site: Site
    fence: Callable[[str], None] = lambda what: None

    def site_of(self, service: str, environment: str) -> Site:
        site = copy(self.site)
        site.service, site.environment = service, environment
        return site

    def change(self, record: ChangeRecord) -> Change:
        return Change(self.ledger, record, self.runs, self.site_of, sleep=self.runs.work)

    def begin(self, held: Held, after: dict[str, tuple[str, ...]]) -> Change:
        members = [
            MemberRecord(0, name, position, needed, {"service_file": name})
            for position, (name, needed) in enumerate(after.items())
        ]
        record = self.ledger.open_change(
            *("checkout", "prod", members),
            token=held.token,
            version="2",
            file="stack.yaml",
            at_once=4,
            by="ada",
        )
        return self.change(record)

    def lead(self, after: dict[str, tuple[str, ...]] = AFTER) -> ChangeRecord:
        with held_change(self.ledger, "checkout", "prod", "change 2") as held:
            return self.begin(held, after).lead(held)

    def serves(self) -> dict[str, str]:
        return {s: r.removeprefix(f"{s}-prod-") for s, _, r, _ in self.ledger.stables()}


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return a_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def playing(tmp_path: Path, bare_site: Site) -> Iterator[Callable[..., Play]]:
    """A stage on which each of the services serves its first release already."""
    made: list[Ledger] = []

    def stage(*, first: str = "", **ends: str) -> Play:
        ledger = Ledger(str(tmp_path / f"{len(made)}.db"), Clock())
        site = copy(bare_site)
        site.ledger = ledger
        made.append(ledger)
        play = Play(ledger, PlayedRuns(ledger, dict.fromkeys(AFTER, "good") | ends), site)
        for service in AFTER:
            if service == first:
                continue
            token = ledger.take_lease(service, "prod", "test")
            rollout = ledger.open_rollout(
                *(service, "prod"), token=token, kind="release", version="1", strategy="canary"
            )
            ledger.add_release(a_release(service=service), rollout.id)
            ledger.promote(rollout.id, "test")
            ledger.set_phase(rollout.id, Phase.PROMOTED)
            ledger.free_lease(token)
        return play

    yield stage
    for ledger in made:
        ledger.close()


Playing = Callable[..., Play]
OLD, NEW = dict.fromkeys(AFTER, "1"), dict.fromkeys(AFTER, "2")


def test_all_of_it_serves(playing: Playing) -> None:
    play = playing()
    change = play.lead()
    assert (change.verdict, play.serves()) == ("promoted", NEW)
    assert what_is_true(play.ledger, change) == "checkout 2 promoted: all 3 serve"
    assert [row["wave"] for row in rows(play.ledger, change)] == [1, 2, 3]


@pytest.mark.parametrize("end", ["bad", "refused"])
def test_the_last_one_fails_and_the_others_go_back_in_reverse(playing: Playing, end: str) -> None:
    play = playing(web=end)
    change = play.lead()
    assert (change.verdict, play.serves()) == ("rolled back", OLD)
    back = [r.service for r in play.ledger.rollouts_of_change(change.id) if r.kind == "rollback"]
    assert back == ["db", "shop"], "newest first"


def test_one_fails_and_another_that_rolls_out_is_aborted(playing: Playing) -> None:
    play = playing(db="slow", shop="bad")
    change = play.lead({"db": (), "shop": (), "web": ("db",)})
    assert (change.verdict, play.serves()) == ("rolled back", OLD)
    db = next(r for r in play.ledger.rollouts_of_change(change.id) if r.service == "db")
    assert db.reason.startswith("the change checkout 2 is taken back: shop is not promoted")


def test_a_contract_migration_is_left_to_a_person_with_all_that_it_needs(playing: Playing) -> None:
    play = playing(shop="contract", web="bad")
    change = play.lead()
    assert change.verdict == "inconsistent"
    assert play.serves() == {"db": "2", "shop": "2", "web": "1"}
    assert what_is_true(play.ledger, change).splitlines() == [
        "checkout 2 inconsistent: web is not promoted: rolled back: its verdict",
        "  db serves db-prod-2",
        "  shop serves shop-prod-2",
        "  web serves web-prod-1",
        "To put it right, in this order:",
        "  dafnck rollback shop --env prod --to shop-prod-1 --even-unsafe --reason … "
        "(its contract migration lets nobody go back by themselves)",
        "  dafnck rollback db --env prod --to db-prod-1 (shop, which needs it, is kept)",
    ]


def test_a_first_release_stays_and_that_is_said(playing: Playing) -> None:
    play = playing(first="db", web="bad")
    change = play.lead()
    assert change.verdict == "rolled back"
    assert play.serves() == {"db": "1", "shop": "1", "web": "1"}
    assert what_is_true(play.ledger, change).splitlines()[1:] == [
        "db stays, its first release: there is nothing to go back to"
    ]


def test_what_a_first_release_needs_stays_with_it_and_a_person_is_told(playing: Playing) -> None:
    play = playing(first="shop", web="bad")
    change = play.lead()
    assert change.verdict == "inconsistent"
    assert play.serves() == {"db": "2", "shop": "1", "web": "1"}
    assert what_is_true(play.ledger, change).splitlines()[1:] == [
        "  db serves db-prod-2",
        "  shop serves shop-prod-1",
        "  web serves web-prod-1",
        "To put it right, in this order:",
        "  dafnck rollback db --env prod --to db-prod-1 (shop, which needs it, is kept)",
    ]


def test_prefect_is_away_for_a_while(playing: Playing) -> None:
    """Nothing is begun twice, nothing counts as failed."""
    play = playing(web="bad")
    asked, work, silent = list[str](), play.runs.work, 0

    def now_and_then(seconds: float) -> None:
        nonlocal silent
        silent += 1
        play.runs.away = silent % 3 != 0
        work(seconds)

    play.runs.asked = lambda what: asked.append(what) if not play.runs.away else None
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        change._sleep = now_and_then
        ended = change.lead(held)
    assert (ended.verdict, play.serves()) == ("rolled back", OLD)
    assert len(play.runs.runs) == 5
    assert all(m.back_attempts <= 1 for m in play.ledger.members(ended.id))


@contextmanager
def killed_at(play: Play, boundary: int) -> Iterator[list[str]]:
    """Kill the leader at the n-th write that a change makes, before or after it."""
    passed: list[str] = []
    ledger: Any = play.ledger

    def reached(what: str) -> None:
        passed.append(what)
        if len(passed) == boundary:
            raise Killed(what)

    def around(name: str) -> None:
        real = getattr(ledger, name)

        def call(*arguments: Any, **named: Any) -> Any:
            reached(f"before {name}")
            answer = real(*arguments, **named)
            reached(f"after {name}")
            return answer

        setattr(ledger, name, call)

    names = [
        *("ask_member", "run_of_member", "ask_back", "run_of_back", "keep_member"),
        *("cancel_member", "trouble_change", "close_change"),
    ]
    for name in names:
        around(name)
    play.runs.asked = reached
    try:
        yield passed
    finally:
        for name in names:
            delattr(ledger, name)
        play.runs.asked = lambda what: None


@pytest.mark.parametrize("ends", [{}, {"web": "bad"}, {"shop": "contract", "web": "bad"}])
@pytest.mark.timeout(120)
def test_killed_at_any_boundary_it_is_ended_as_one(playing: Playing, ends: dict[str, str]) -> None:
    boundary, verdicts = 0, set[str]()
    while True:
        boundary += 1
        play = playing(**ends)
        with (
            held_change(play.ledger, "checkout", "prod", "change 2") as held,
            killed_at(play, boundary) as passed,
        ):
            change = play.begin(held, AFTER)
            try:
                change.lead(held)
            except Killed:
                pass
            else:
                break
        with held_change(play.ledger, "checkout", "prod", "the guard") as held:
            play.ledger.trouble_change(change.id, "its process died")
            ended = play.change(play.ledger.change(change.id)).lead(held)
        verdicts.add(str(ended.verdict))
        serving = play.serves()
        if ended.verdict == "promoted":
            assert serving == NEW, passed[-1]
        elif ended.verdict == "rolled back":
            assert serving == OLD, passed[-1]
        else:
            assert serving == {"db": "2", "shop": "2", "web": "1"}, passed[-1]
        begun = [r.service for r in play.ledger.rollouts_of_change(change.id)]
        assert all(begun.count(service) <= 2 for service in begun), "one way there, one back"
        assert [r for r in play.ledger.unfinished() if r.change_id] == []
    assert boundary > 10
    assert "rolled back" in verdicts


def test_the_guard_sees_who_leads_a_change(playing: Playing) -> None:
    play = playing(db="slow")
    watch = Watch()
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        assert watch.look(play.ledger) == []
        with (
            pytest.raises(Refused, match=r"checkout in prod is being changed by change 2 \(pid"),
            held_change(play.ledger, "checkout", "prod", "another"),
        ):
            pass
        change.perform(change._next())
        play.runs.work()
        change.abandon("its process was told to stop")
        play.runs.work()
    db = play.ledger.rollouts_of_change(change.id)[0]
    assert db.phase is Phase.ROLLED_BACK, "also without anybody who leads the change"
    (unled,) = watch.look(play.ledger)
    assert unled.service == place_of("checkout")
    assert unled.why == "its process ended and left it unfinished"
    runs: Any = play.runs
    place = ("checkout", "prod")
    (ended,) = end_change(
        play.ledger, runs, play.site_of, place, unled.why, "the guard", unled.lease
    )
    assert (ended.verdict, ended.trouble) == ("rolled back", "its process was told to stop")
    assert watch.look(play.ledger) == []
    assert end_change(play.ledger, runs, play.site_of, place, "", "the guard", None) == []


def test_a_run_that_comes_late_changes_nothing(playing: Playing) -> None:
    play = playing()
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        change.perform(change._next())
        play.ledger.trouble_change(change.id, "ada cancelled it")
        play.runs.work()
        assert change.lead(held).verdict == "rolled back"
    assert play.ledger.rollouts_of_change(change.id) == []
    (run,) = play.runs.runs.values()
    assert run.words == "its change is taken back: ada cancelled it; nothing was changed"
    with pytest.raises(Refused, match="its change is over: rolled back"):
        goes_on(play.ledger, change.id, back=True)
    goes_on(play.ledger, None)


def released_by_ada(ledger: Ledger, service: str, version: str = "3") -> None:
    token = ledger.take_lease(service, "prod", "ada")
    rollout = ledger.open_rollout(
        *(service, "prod"), token=token, kind="release", version=version, strategy="canary"
    )
    ledger.add_release(a_release(service=service), rollout.id)
    ledger.promote(rollout.id, "ada's")
    ledger.set_phase(rollout.id, Phase.PROMOTED)
    ledger.free_lease(token)


def test_nothing_begins_on_one_that_somebody_released_anew(playing: Playing) -> None:
    play = playing()
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        while play.serves()["db"] == "1":
            change.perform(change._next())
            play.runs.work()
        released_by_ada(play.ledger, "db")
        ended = change.lead(held)
    assert (ended.verdict, ended.reason) == ("inconsistent", "db: db-prod-3 serves instead")
    assert play.serves() == {"db": "3", "shop": "1", "web": "1"}
    assert [run.flow for run in play.runs.runs.values()] == ["release"]


def test_a_way_back_that_comes_late_leaves_what_was_released_since(playing: Playing) -> None:
    """It waited for a worker while somebody fixed forward."""
    play = playing(shop="bad")
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        while not any(run.flow == "rollback" for run in play.runs.runs.values()):
            if isinstance(action := change._next(), Wait):
                play.runs.work()
            change.perform(action)
        released_by_ada(play.ledger, "db")
        ended = change.lead(held)
    assert ended.verdict == "inconsistent"
    assert play.serves() == {"db": "3", "shop": "1", "web": "1"}
    (back,) = (run for run in play.runs.runs.values() if run.flow == "rollback")
    assert back.words == "db-prod-3 serves by now, and not db-prod-2; nothing was changed"
    db = next(m for m in play.ledger.members(change.id) if m.service == "db")
    assert db.kept == "db-prod-3 serves instead by now"


def test_what_a_person_did_meanwhile_is_left_alone(playing: Playing) -> None:
    """One released anew, one taken back by hand: the first stays, the second is back already."""
    play = playing(web="slow")
    ledger = play.ledger
    with held_change(ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        while len(play.runs.runs) < 3:
            change.perform(change._next())
            play.runs.work()
        released_by_ada(ledger, "shop")
        ledger.trouble_change(change.id, "cancelled")
        ended = change.lead(held)
    assert ended.verdict == "inconsistent"
    assert play.serves() == {"db": "2", "shop": "3", "web": "1"}
    shop, db = (m.kept for m in ledger.members(change.id) if m.service in ("shop", "db"))
    assert {shop, db} == {"shop-prod-3 serves instead by now", "shop, which needs it, is kept"}


def test_status_tells_of_a_change_that_is_not_one(playing: Playing) -> None:
    play = playing(shop="contract", web="bad")
    play.lead()
    seen = look._changes(play.ledger)
    assert set(seen) == {("db", "prod"), ("shop", "prod"), ("web", "prod")}
    assert look._change_line(seen["db", "prod"]).startswith(
        "  part of the change checkout 2: incon"
    )
    play.runs.ends |= {"shop": "good", "web": "good"}
    play.lead()
    assert look._changes(play.ledger) == {}


def test_its_runs_are_of_the_deployments_that_its_own_run_is_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []
    api: Any = SimpleNamespace(start=lambda flow, deployment, *_: started.append(deployment))
    for name in ("", "cluster"):
        monkeypatch.setenv("DAFNCK_DEPLOYMENT", name)
        WorkerRuns(api).begin("release", {}, "shop 2 → prod", "key")
    assert started == ["local", "cluster"]


def asked_for(play: Play, held: Held) -> Change:
    """All three are, and none has begun."""
    change = play.begin(held, dict.fromkeys(AFTER, ()))
    for _ in AFTER:
        change.perform(change._next())
    return change


def passing(play: Play, seconds: float) -> Callable[[float], None]:
    clock: Any = play.ledger.clock

    def sleep(_: float) -> None:
        clock.sleep(seconds)
        play.runs.work()

    return sleep


def test_a_run_that_is_not_heard_of_again_is_cancelled_for_good(playing: Playing) -> None:
    play = playing(db="deaf")
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = asked_for(play, held)
        change._sleep = passing(play, 1.0)
        play.ledger.trouble_change(change.id, "ada cancelled it")
        assert change.lead(held).verdict == "rolled back"
    told = [force for run, force in play.runs.cancelled if "-db" in run]
    assert told[-1]
    assert not any(told[:-1])
    assert 4 <= len(told) <= 8, "again and again, but not at each look"
    with pytest.raises(Refused):
        goes_on(play.ledger, change.id)


def test_a_cancel_that_is_not_heard_is_asked_for_again_and_the_others_are(
    playing: Playing,
) -> None:
    play = playing()
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = asked_for(play, held)
        cancel, deaf = play.runs.cancel, ["-db"]

        def once_away(run_id: str, *, force: bool = False) -> None:
            if deaf and deaf[0] in run_id:
                deaf.clear()
                raise Unreachable("Prefect's API does not answer")
            cancel(run_id, force=force)

        play.runs.cancel = once_away  # type: ignore[method-assign]
        with pytest.raises(Unreachable):
            change.perform(Abort(tuple(AFTER), "ada cancelled it"))
        told = {m.service: m.cancelled for m in play.ledger.members(change.id)}
        assert told == {"db": False, "shop": True, "web": True}
        assert change.lead(held).verdict == "rolled back"
    assert play.serves() == OLD
    assert all(run.words == "cancelled" for run in play.runs.runs.values())


def test_one_that_no_worker_begins_is_given_up(playing: Playing) -> None:
    play = playing(db="deaf")
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        change._sleep = passing(play, 10.0)
        ended = change.lead(held)
    assert ended.verdict == "rolled back"
    assert ended.reason.startswith("db has not begun for 30 minutes")
    assert ended.finished_at
    assert 1800 < ended.finished_at - ended.started_at < 1900


@pytest.mark.parametrize("error", [NotAllowed, Refused])
def test_what_prefect_refuses_is_not_taken_for_another_leader(
    playing: Playing, error: type[Refused]
) -> None:
    play = playing()
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        change.perform(change._next())

    def refuses(run_id: str) -> str | None:
        raise error("refuses our credentials")

    runs: Any = play.runs
    runs.ended = refuses
    place = ("checkout", "prod")
    with pytest.raises(error, match="refuses our credentials"):
        end_change(play.ledger, runs, play.site_of, place, "it died", "the guard", None)
    assert play.ledger.lease(place_of("checkout"), "prod") is None


@pytest.mark.parametrize("begun", [1, 2, 3])
def test_cancelled_in_prefect_its_leader_takes_it_back(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """As in a Kubernetes job, where nobody but the run itself sees that it is to end."""
    play = playing(web="slow")

    class Watched:
        def __init__(self, on_cancel: Callable[[], None], on_resume: Callable[[], None]) -> None:
            self.on_cancel = on_cancel

        def __enter__(self) -> None:
            change._sleep = self.look

        def __exit__(self, *_: object) -> None: ...

        def look(self, _: float) -> None:
            play.runs.work()
            if len(play.runs.runs) == begun:
                self.on_cancel()

    monkeypatch.setattr("flows.release_stack.OwnRun", Watched)
    runs: Any = play.runs
    with held_change(play.ledger, "checkout", "prod", "change 2") as held:
        change = play.begin(held, AFTER)
        ended = _led(change, held, runs)
    assert (ended.verdict, ended.reason) == ("rolled back", "cancelled in Prefect")
    assert play.serves() == OLD
    released = [run for run in play.runs.runs.values() if run.flow == "release"]
    assert len(released) == begun


def test_cancelled_by_force_when_nobody_takes_it_up() -> None:
    sent: list[tuple[str, bool]] = []
    states = iter(["SCHEDULED", "RUNNING", "RUNNING", "CANCELLED"])
    state = {"type": ""}

    def set_state(run_id: str, kind: str, message: str, *, force: bool) -> None:
        sent.append((kind, force))

    api: Any = SimpleNamespace(state=lambda run_id: state, set_state=set_state)
    for force in (False, False, True, True):
        state["type"] = next(states)
        WorkerRuns(api).cancel("run", force=force)
    assert sent == [("CANCELLED", False), ("CANCELLING", False), ("CANCELLED", True)]
