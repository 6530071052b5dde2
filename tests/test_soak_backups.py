"""What takes long of backups: fifty drills in a row without a false alarm, SIGKILL at every step
and at fifty random moments, and a database that crashes in the middle of its dump."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from backup_stage import Stage, stage
from conftest import wait_for

from blocks.backup_catalogue import WRITING, Catalogue
from blocks.postgres import pg_tool
from blocks.processes import CHILD_OF
from policy.errors import NotApplied, Unreachable
from policy.release import Verdict
from tasks.backup import take
from tasks.backup_site import BackupSite, alone

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

SHOP = (Path(__file__).parent / "fixtures" / "odd_shop.sql").read_text()
DRILLS, MOMENTS, SEED = 50, 50, 20261125
ROWS = """
CREATE TABLE written (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), what text);
INSERT INTO written (what) SELECT repeat('tea ', 50) FROM generate_series(1, 20000);
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    room = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    room.chmod(0o711)
    try:
        with stage(tmp_path_factory.mktemp("backups"), room) as made:
            made.sql(SHOP, ROWS)
            yield made
    finally:
        shutil.rmtree(room)


@pytest.fixture
def fresh(shop: Stage) -> Stage:
    shutil.rmtree(shop.folder / "vault", ignore_errors=True)
    return shop


@contextmanager
def writes(there: Stage) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        with there.server.connect(autocommit=True) as connection:
            while not over.wait(0.005):
                connection.execute("INSERT INTO written (what) VALUES ('more')")
                connection.execute("DELETE FROM written WHERE id = (SELECT min(id) FROM written)")

    thread = threading.Thread(target=write, name="writes")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_fifty_drills_under_writes_without_a_false_alarm(fresh: Stage) -> None:
    site = fresh.with_target(smaller_by=0.9)
    with writes(fresh):
        for _ in range(DRILLS):
            manifest = take(site)
            done = fresh.drill(site, manifest.id)
            assert done.verdict is Verdict.PASS, done.reasons


class Dies:
    """A vault that takes the process with it, at its n-th call: before it, or after it."""

    def __init__(self, vault: Any, at: int, after: bool) -> None:
        self._vault, self._left, self._after = vault, at, after

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy in another process is asked before it has a vault
            raise AttributeError(name)
        method = getattr(self._vault, name)
        if name not in ("write", "delete", "sizes", "read", "tidy"):
            return method

        def call(*words: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = method(*words)
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call


def begun(site: BackupSite) -> Any:
    """A process that makes a backup. Not forked: locks of this one's threads would come along."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_take, args=(site.but(clock=time.time), there))
    process.start()
    there.close()
    assert here.recv() == "begins"
    return process


def _take(site: BackupSite, begins: Any) -> None:
    begins.send("begins")
    take(site)


def nothing_is_left(there: Stage, pid: int) -> None:
    """No program runs on, no session is held, and nothing half is taken for a backup."""
    host = there.server.parameters["host"]

    def running() -> list[str]:
        found = []
        for one in psutil.process_iter():
            try:
                environment = one.environ()
            except psutil.Error:
                continue
            ours = environment.get(CHILD_OF, "").startswith(f"{pid} ")
            if ours or (environment.get("PGHOST") == host and one.name().startswith("pg_")):
                found.append(" ".join(one.cmdline()))
        return found

    wait_for(lambda: not running(), f"all of {pid} has ended: {running()}", 20)
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND pid <> pg_backend_pid()"
    )
    with there.server.connect(autocommit=True) as connection:
        wait_for(lambda: connection.execute(sessions).fetchone() == (0,), "its sessions end", 20)
    with alone(there.site):
        pass
    for entry in there.site.catalogue.entries(there.site.place):
        assert (entry.good is not False) == entry.published, entry.trouble
        assert entry.published or entry.trouble in ("was never finished", "is being written")


def the_next_one_works(there: Stage) -> None:
    whole = take(there.site)
    entries = there.site.catalogue.entries(there.site.place)
    assert entries[0].id == whole.id
    assert all(entry.published and not entry.trouble for entry in entries)
    assert not [key for key in there.site.vault.sizes("") if key.endswith(WRITING)]
    halves = [path for path in (there.folder / "vault").rglob("*.half*") if path.is_file()]
    assert not halves
    assert there.drill(backup_id=whole.id).verdict is Verdict.PASS


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_step(fresh: Stage, after: bool) -> None:
    for step in range(50):
        shutil.rmtree(fresh.folder / "vault", ignore_errors=True)  # else each step has more calls
        take(fresh.site)
        dying = Dies(fresh.site.vault, step, after)
        catalogue = Catalogue(dying, fresh.site.catalogue._keys)
        process = begun(fresh.site.but(catalogue=catalogue))
        process.join()
        nothing_is_left(fresh, process.pid)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        the_next_one_works(fresh)
    assert 5 < step < 40, "all calls, and no more than there are"


def test_killed_at_fifty_random_moments(fresh: Stage) -> None:
    began = time.monotonic()
    take(fresh.site)
    longest = (time.monotonic() - began) * 1.2
    chance = random.Random(SEED)
    died = 0
    for _ in range(MOMENTS):
        process = begun(fresh.site)
        process.join(chance.uniform(0, longest))
        process.kill()
        process.join()
        died += process.exitcode != 0
        nothing_is_left(fresh, process.pid)
    assert died > MOMENTS // 2
    the_next_one_works(fresh)


def test_the_database_crashes_in_the_middle(fresh: Stage) -> None:
    """One of its processes is killed: the server ends all others and starts anew."""
    mine = (NotApplied, Unreachable, psycopg.OperationalError)
    for _ in range(3):
        crash = threading.Thread(target=_crash, args=(fresh,), name="crash")
        crash.start()
        with pytest.raises(mine):
            take(fresh.site)
        crash.join()
        wait_for(lambda: _answers(fresh), "it is back", 60)
        assert fresh.site.vault.sizes("") == {}
    the_next_one_works(fresh)


def _crash(there: Stage) -> None:
    dumps = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY %' AND state = 'active'"
    give_up = time.monotonic() + 30
    # Its own connection ends with all others.
    with (
        suppress(psycopg.OperationalError),
        there.server.at("template1").connect(autocommit=True) as connection,
    ):
        while not (row := connection.execute(dumps).fetchone()) and time.monotonic() < give_up:
            time.sleep(0.002)
        if row:
            os.kill(row[0], signal.SIGKILL)


def _answers(there: Stage) -> bool:
    try:
        there.server.connect().close()
    except Unreachable:
        return False
    return True


def test_pgbench_at_scale_fifty_under_writes(fresh: Stage) -> None:
    """Five million accounts, 750 MB, written to all the while."""
    tool = str(pg_tool("pgbench"))
    with fresh.server.tool_environment() as environment:
        subprocess.run([tool, "-i", "-q", "-s", "50"], env=environment, check=True)
        before = _balance(fresh)
        busy = subprocess.Popen([tool, "-n", "-c", "2", "-T", "600"], env=environment)
        try:
            manifest = take(fresh.site)
            assert busy.poll() is None
        finally:
            busy.kill()
            busy.wait()
    assert manifest.facts.database
    rows = {table.name: table.rows for table in manifest.facts.database.tables}
    assert rows["pgbench_accounts"] == 5_000_000
    assert _balance(fresh) != before, "nothing was written"
    done = fresh.drill(backup_id=manifest.id)
    assert done.verdict is Verdict.PASS, done.reasons


def _balance(there: Stage) -> int:
    with there.server.connect() as connection:
        row = connection.execute("SELECT sum(bbalance) FROM pgbench_branches").fetchone()
    return int(row[0])
