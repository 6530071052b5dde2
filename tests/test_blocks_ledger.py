"""The ledger over SQLite and PostgreSQL."""

import multiprocessing
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import time
import traceback
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import free_port, wait_for
from fakes import Clock, a_release

from blocks.ledger import Ledger
from policy.errors import LeaseLost, Refused, Unreachable
from policy.release import Phase, RolloutRecord
from policy.samples import Counters, Sample


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own; -> an SQLAlchemy URL."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = versions[-1] if versions else shutil.which("initdb")
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    binaries = Path(found).resolve().parent
    folder = tmp_path_factory.mktemp("pg")
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o055)
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    data, port = folder / "data", free_port()
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "dafnck", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **as_user,  # type: ignore[call-overload]
    )
    server = subprocess.Popen(
        [
            *(binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1"),
            *("-k", folder, "-F"),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_user,  # type: ignore[call-overload]
    )
    ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    try:
        wait_for(
            lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "ready"
        )
        yield f"postgresql+psycopg://dafnck@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.live)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    import sqlalchemy as sa

    server: str = request.getfixturevalue("postgres")
    name = f"ledger_{time.monotonic_ns()}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(url, clock, clock.monotonic, clock.sleep)
    yield ledger
    ledger.close()


def begin(ledger: Ledger, token: str, version: str = "1") -> RolloutRecord:
    return ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version=version, strategy="canary"
    )


def test_one_lease_at_a_time(ledger: Ledger, clock: Clock) -> None:
    token = ledger.take_lease("shop", "prod", "release 1")
    with pytest.raises(Refused, match=r"shop in prod is being changed by release 1 \(pid \d+"):
        ledger.take_lease("shop", "prod", "release 2")
    ledger.take_lease("shop", "staging", "release 2")
    ledger.free_lease(token)
    ledger.take_lease("shop", "prod", "release 2")


def test_a_lapsed_lease_is_taken_over_and_its_holder_hears_of_it(
    ledger: Ledger, clock: Clock
) -> None:
    token = ledger.take_lease("shop", "prod", "release 1")
    clock.at += 10
    ledger.renew_lease(token)
    clock.at += 10
    assert ledger.lease("shop", "prod") is not None
    clock.at += 10
    assert ledger.lease("shop", "prod") is None
    other = ledger.take_lease("shop", "prod", "release 2")
    with pytest.raises(LeaseLost):
        ledger.renew_lease(token)
    with pytest.raises(LeaseLost):
        begin(ledger, token)
    begin(ledger, other)


def test_a_rollout_from_begin_to_promotion(ledger: Ledger) -> None:
    token = ledger.take_lease("shop", "prod", "release 1")
    rollout = begin(ledger, token)
    assert (rollout.phase, rollout.stable_id, rollout.release_id) == (Phase.BUILDING, None, None)
    release = ledger.add_release(a_release(files={"a.toml": b"\x00\xff"}), rollout.id)
    assert release.id == "shop-prod-1"
    assert ledger.release("shop-prod-1") == release
    ledger.promote(rollout.id, "good")
    assert ledger.stable("shop", "prod") == "shop-prod-1"
    assert ledger.rollout(rollout.id).phase is Phase.DRAINING
    assert [r.id for r in ledger.unfinished("shop", "prod")] == [rollout.id]
    ledger.set_phase(rollout.id, Phase.PROMOTED)
    assert ledger.unfinished() == []
    second = begin(ledger, token, "2")
    assert second.stable_id == "shop-prod-1"
    assert ledger.add_release(a_release(), second.id).id == "shop-prod-2"
    assert ledger.releases("shop", "prod") == ["shop-prod-2", "shop-prod-1"]
    assert ledger.releases("shop", "prod", promoted=True) == ["shop-prod-1"]
    assert [r.version for r in ledger.history("shop")] == ["2", "1"]
    ledger.mark_removed("shop-prod-2")
    assert ledger.releases("shop", "prod") == ["shop-prod-1"]


def test_columns_that_an_older_ledger_lacks_are_added(url: str) -> None:
    """By six processes at once; what was written before stays."""
    import sqlalchemy as sa

    ledger = Ledger(url)
    begin(ledger, ledger.take_lease("shop", "prod", "x"))
    with ledger._engine.begin() as db:
        db.execute(sa.text("ALTER TABLE rollouts DROP COLUMN abort_reason"))
        db.execute(sa.text("ALTER TABLE rollouts DROP COLUMN approved_at"))
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_open, args=(url,)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * 6
    ledger.abort(1, "no")
    assert ledger.rollout(1).abort_reason == "no"
    ledger.close()


def test_an_unknown_release_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Refused, match="knows no release"):
        ledger.release("nobody-1")


def test_intents_have_outcomes(ledger: Ledger) -> None:
    rollout = begin(ledger, ledger.take_lease("shop", "prod", "x"))
    with ledger.act(rollout.id, "shift", share=10) as said:
        assert ledger.intents(rollout.id)[0].outcome is None
        said["took"] = "1 s"
    with pytest.raises(KeyError), ledger.act(rollout.id, "shift", share=50):
        raise KeyError("no")
    first, second = ledger.intents(rollout.id)
    assert (first.key, first.outcome) == ("shift:share=10", "done; took 1 s")
    assert second.outcome == "failed: KeyError: 'no'"


def test_samples_and_decisions_come_back(ledger: Ledger) -> None:
    rollout = begin(ledger, ledger.take_lease("shop", "prod", "x"))
    counted = Counters(10, 1, {0.1: 5.0, float("inf"): 10.0})
    samples = [Sample(1.0, counted, None, 10), Sample(2.0, None, counted, 50)]
    for sample in samples:
        ledger.add_sample(rollout.id, sample)
    assert ledger.samples(rollout.id) == samples
    ledger.decide(rollout.id, "Shift", 10, "pass", "good")
    assert ledger.decisions(rollout.id)[0]["reason"] == "good"


def test_traffic_moves_even_when_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    rollout = begin(ledger, ledger.take_lease("shop", "prod", "x"))
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("DROP TABLE intents")
    moved = []
    with (
        pytest.raises(Unreachable, match=r"ledger .* cannot be used"),
        ledger.act(rollout.id, "shift"),
    ):
        moved.append("shift")
    with ledger.act(rollout.id, "traffic to stable", even_unrecorded=True):
        moved.append("back")
    assert moved == ["back"]
    ledger.close()


def _open(url: str) -> None:
    Ledger(url).close()


def _grab(url: str, results: "multiprocessing.Queue[str]", over: Event) -> None:
    """The winner lives on until all have tried: a dead one's lease may be taken."""
    ledger = Ledger(url)
    try:
        ledger.take_lease("shop", "prod", "racer")
        results.put("held")
        over.wait(60)
    except Refused:
        results.put("refused")
    ledger.close()


def test_of_many_processes_one_gets_the_lease(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    over = context.Event()
    racers = [context.Process(target=_grab, args=(url, results, over)) for _ in range(6)]
    for racer in racers:
        racer.start()
    got = sorted(results.get(timeout=60) for _ in racers)
    over.set()
    for racer in racers:
        racer.join(30)
    assert got == ["held", *["refused"] * 5]


def test_a_locked_ledger_keeps_neither_a_look_nor_traffic_that_goes_back_waiting(
    tmp_path: Path,
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    token = ledger.take_lease("shop", "prod", "release 2")
    rollout = ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="2", strategy="canary"
    )
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began, moved = time.monotonic(), False
    with pytest.raises(Unreachable, match="database is locked"):
        ledger.add_sample(rollout.id, Sample(1.0, Counters(5), Counters(5)))
    with pytest.raises(Unreachable, match="database is locked"):
        ledger.decide(rollout.id, "Wait", 10, None, "bakes")
    with ledger.act(rollout.id, "traffic to stable", even_unrecorded=True):
        moved = True
    assert moved
    assert time.monotonic() - began < 8, "three times a second, and not ten"
    other.execute("ROLLBACK")
    other.close()
    with ledger.act(rollout.id, "traffic to stable", even_unrecorded=True):
        pass
    assert [intent.outcome for intent in ledger.intents(rollout.id)] == ["done"]
    ledger.close()


def test_no_failure_tells_what_was_to_be_written(tmp_path: Path) -> None:
    """A full disk, say: configuration files and environments may hold passwords."""
    ledger = Ledger(str(tmp_path / "ledger.db"))
    sa.event.listen(
        ledger._engine, "begin", lambda db: db.exec_driver_sql("PRAGMA query_only = ON")
    )
    run = a_release().run.model_copy(update={"env": {"DB": "postgres://u:hunter2@h/db"}})
    with pytest.raises(Unreachable) as failure:
        ledger.add_release(a_release(run=run), 1)
    chain = "".join(traceback.format_exception(failure.value))
    assert "SQL parameters hidden" in chain
    assert "hunter2" not in chain
    ledger.close()


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and never answers."""
    monkeypatch.setattr("blocks.ledger_store.SILENT_SECONDS", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql+psycopg://u:p@127.0.0.1:{silent.getsockname()[1]}/db"
        began = time.monotonic()
        with pytest.raises(Unreachable, match="cannot be used"):
            Ledger(url)
    assert time.monotonic() - began < 30


def test_a_statement_that_takes_for_ever_ends(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the URL says itself is obeyed."""
    monkeypatch.setattr("blocks.ledger_store.SILENT_SECONDS", 1)
    ledger = Ledger(postgres)
    with pytest.raises(Unreachable, match="timeout"), ledger._reading() as db:
        db.execute(sa.text("SELECT pg_sleep(60)"))
    ledger.close()
    patient = Ledger(f"{postgres}?options=-c%20statement_timeout%3D7000")
    with patient._reading() as db:
        assert db.execute(sa.text("SHOW statement_timeout")).scalar() == "7s"
    patient.close()
