"""Each fault of the surroundings ends in a stated state: docs/how-a-release-works.md has the table.

What a killed part ends in is in test_live_kills.py. Here parts live and do not do their work, or do
it while another one is away.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, Dafnck, Released, free_port, wait_for
from test_live_kills import begin_here, pid_of, restarted, sees_traffic
from test_live_release import (
    CANARY,
    JUDGED,
    Service,
    alone,
    at_share,
    begin,
    ended,
    no_request_failed,
    state_of,
    under_load,
    who_answers,
)

from bench.stage import brought_down_if_we_die
from blocks.ledger import Ledger
from blocks.ledger_leases import LEASE_SECONDS
from blocks.prefect_api import stack_api
from blocks.stack import Ports, Stack
from blocks.supervisor import Supervisor
from deployments import local_stack
from policy.release import Phase, RolloutRecord

pytestmark = pytest.mark.live
LONG = CANARY | {"bake": "60s"}


def serves_alone(stack: Stack, name: str, release_id: str, seconds: float) -> None:
    def look() -> bool:
        return {who_answers(stack, name) for _ in range(10)} == {release_id}

    wait_for(look, f"all requests to {release_id}", seconds)


def processes_of(release_id: str) -> list[int]:
    """Pids of whatever belongs to this release, supervised or not."""
    return [
        process.pid
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("DAFNCK_RELEASE") == release_id
    ]


# -- metrics ----------------------------------------------------------------------------------


class Doorway(ThreadingHTTPServer):
    """Traefik's API at another address; `cut` has its metrics answer no more, and nothing else."""

    daemon_threads = True

    def __init__(self, api_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.api_url = api_url
        self.cut = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Forward(BaseHTTPRequestHandler):
    server: Doorway

    def do_GET(self) -> None:
        if self.path == "/metrics" and self.server.cut.is_set():
            self.close_connection = True  # without an answer
            return
        try:
            with urllib.request.urlopen(self.server.api_url + self.path, timeout=5) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Into no log."""


@pytest.fixture
def doorway(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Doorway]:
    """From here on releases know the same stack by a home in which its API has another address."""
    doorway = Doorway(stack.router_api_url)
    beside = tmp_path_factory.mktemp("beside")
    for entry in stack.home.iterdir():
        if entry.name != "stack.json":
            (beside / entry.name).symlink_to(entry)
    ports = stack.ports.model_copy(update={"router_api": doorway.server_port})
    (beside / "stack.json").write_text(ports.model_dump_json())
    monkeypatch.setenv("DAFNCK_HOME", str(beside))
    yield doorway
    doorway.shutdown()
    doorway.server_close()


def test_without_metrics_nothing_is_promoted_and_traffic_goes_back_in_time(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    doorway: Doorway,
) -> None:
    released(service("blind"), "1")
    doorway.cut.set()
    with under_load(stack, "blind") as load:
        rollout = released(service("blind", rollout=JUDGED | {"within": "8s"}), "2")
    no_request_failed(load)
    assert rollout.phase is Phase.ROLLED_BACK
    assert rollout.reason == "still unsure at the deadline: the metrics source did not answer"
    decided = ledger.decisions(rollout.id)
    assert max(row["share"] for row in decided) == 20
    assert {row["verdict"] for row in decided} <= {None, "unsure"}
    alone(stack, dafnck, "blind", "blind-local-1")


@pytest.mark.soak
def test_without_metrics_a_release_is_held_where_the_file_says_so(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    doorway: Doorway,
) -> None:
    released(service("held"), "1")
    holding = JUDGED | {"within": "6s", "judge": {**JUDGED["judge"], "unsure": "hold"}}  # type: ignore[dict-item]
    with under_load(stack, "held") as load:
        doorway.cut.set()
        process = begin_here(service("held", rollout=holding), "2")

        def held() -> RolloutRecord | None:
            rollout = ledger.history("held", limit=1)[0]
            told = [row["reason"] for row in ledger.decisions(rollout.id)]
            return rollout if any(words.startswith("held until") for words in told) else None

        rollout = wait_for(held, "it is held", 40)
        assert rollout.phase is Phase.SHIFTING
        both = {"held-local-1", "held-local-2"}
        assert {who_answers(stack, "held") for _ in range(40)} == both, "traffic stays"
        dafnck("approve", "held")  # takes this step on themselves; the next one is judged again

        def at_100() -> bool:
            return ledger.decisions(rollout.id)[-1]["share"] == 100

        wait_for(at_100, "all requests to the new release", 30)
        assert ledger.rollout(rollout.id).phase is Phase.SHIFTING
        doorway.cut.clear()
        assert process.wait(60) == 0
    no_request_failed(load)
    alone(stack, dafnck, "held", "held-local-2")


# -- Traefik, Prefect ---------------------------------------------------------------------------


def test_counters_that_begin_at_zero_are_no_verdict_and_hide_none(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    """Traefik is killed while a good and a bad release are being judged."""
    released(service("sound"), "1")
    released(service("faulty"), "1")
    judge = {"errors": "at most 3%", "early": False}
    steps = {"strategy": "canary", "steps": ["40%", "100%"], "bake": "20s"}
    with under_load(stack, "sound"), under_load(stack, "faulty"):
        sound = service("sound", rollout=steps | {"judge": judge})
        bad = service(
            "faulty",
            "faulty.yaml",
            run={"env": {"EVERY": "8"}},
            rollout=steps | {"judge": judge},
        )
        runs = [begin(dafnck, sound, "2"), begin(dafnck, bad, "2")]
        for run in runs:
            at_share(stack, ledger, run, 40, 90)
        pid = pid_of(supervisor, local_stack.TRAEFIK)
        os.kill(pid, signal.SIGKILL)
        killed_at = time.time()
        restarted(supervisor, local_stack.TRAEFIK, pid)
        promoted, rolled_back = (ended(ledger, run, 90) for run in runs)
    assert promoted.phase is Phase.PROMOTED, promoted.reason
    assert rolled_back.phase is Phase.ROLLED_BACK
    assert re.match(r"errors \d", rolled_back.reason)
    fell = [r["at"] for r in ledger.decisions(rolled_back.id) if r["action"] == "RollBack"]
    assert fell[0] > killed_at
    alone(stack, dafnck, "sound", "sound-local-2")
    alone(stack, dafnck, "faulty", "faulty-local-1")


def test_a_killed_prefect_server_comes_back_and_shows_how_the_release_ended(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    released(service("ui"), "1")
    with under_load(stack, "ui") as load:
        run = begin(dafnck, service("ui", rollout=CANARY | {"bake": "3s"}), "2")
        at_share(stack, ledger, run, 20)
        pid = pid_of(supervisor, local_stack.SERVER)
        os.kill(pid, signal.SIGKILL)
        rollout = ended(ledger, run)
    no_request_failed(load)
    assert rollout.phase is Phase.PROMOTED, rollout.reason
    alone(stack, dafnck, "ui", "ui-local-2")
    restarted(supervisor, local_stack.SERVER, pid)
    with stack_api(stack) as api:
        wait_for(api.answers, "Prefect's server", 60)
        wait_for(lambda: state_of(api, run) == "COMPLETED", "completed in Prefect", 60)


# -- the ledger -------------------------------------------------------------------------------


@contextmanager
def locked(stack: Stack) -> Iterator[None]:
    """Another process (this one) is writing to the ledger and does not come to an end."""
    db = sqlite3.connect(stack.ledger_url, isolation_level=None, timeout=20)
    try:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")
    finally:
        db.close()


def renewed(ledger: Ledger, name: str) -> None:
    """Wait for the moment after a renewal of the lease."""

    def renewals() -> int | None:
        lease = ledger.lease(name, "local")
        assert lease
        return lease.renewals

    before = renewals()
    wait_for(lambda: renewals() != before, "the lease is renewed")


@pytest.mark.soak
def test_a_ledger_locked_for_less_than_a_lease_delays_a_release_and_no_more(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("locked"), "1")
    with under_load(stack, "locked") as load:
        process = begin_here(service("locked", rollout=CANARY | {"bake": "8s"}), "2")
        sees_traffic(stack, "locked", "locked-local-2")
        renewed(ledger, "locked")
        with locked(stack):
            time.sleep(12)  # the fault itself: the next step falls into it
        assert process.wait(60) == 0
    no_request_failed(load)
    assert ledger.history("locked")[0].phase is Phase.PROMOTED
    alone(stack, dafnck, "locked", "locked-local-2")


@pytest.mark.soak
def test_a_ledger_locked_for_longer_than_a_lease_gives_traffic_back(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("stuck"), "1")
    with under_load(stack, "stuck") as load:
        process = begin_here(service("stuck", rollout=LONG), "2")
        sees_traffic(stack, "stuck", "stuck-local-2")
        began = time.monotonic()
        with locked(stack):
            serves_alone(stack, "stuck", "stuck-local-1", LEASE_SECONDS + 8)
            time.sleep(max(0.0, began + 25 - time.monotonic()))  # the fault itself
        assert process.wait(60) != 0
        wait_for(lambda: not ledger.unfinished("stuck"), "it is ended", 30)
    no_request_failed(load)
    rollout = ledger.history("stuck")[0]
    assert rollout.phase is Phase.ROLLED_BACK
    assert re.search("lease|its process (died|ended)", rollout.reason), rollout.reason
    alone(stack, dafnck, "stuck", "stuck-local-1")
    assert released(service("stuck"), "3").phase is Phase.PROMOTED


def test_a_locked_ledger_keeps_no_bad_release_in_traffic(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    """The verdict falls while nothing can be written down."""
    released(service("mute"), "1")
    judge = {**JUDGED["judge"], "interval": "4s"}  # type: ignore[dict-item]
    with under_load(stack, "mute"):
        bad = service("mute", run={"env": {"EVERY": "3"}}, rollout=LONG | {"judge": judge})
        process = begin_here(bad, "2")
        sees_traffic(stack, "mute", "mute-local-2")

        def shifted() -> bool:
            """And written down: else that waits for the lock, as long as any write does."""
            acts = ledger.intents(ledger.history("mute")[0].id)
            return any(one.act == "shift" and one.outcome for one in acts)

        wait_for(shifted, "its share is in the ledger")
        with locked(stack):
            serves_alone(stack, "mute", "mute-local-1", 10)
        assert process.wait(60) == 1
        wait_for(lambda: not ledger.unfinished("mute"), "it is ended", 30)
    rollout = ledger.history("mute")[0]
    assert rollout.phase is Phase.ROLLED_BACK
    assert rollout.reason.startswith("errors ")
    alone(stack, dafnck, "mute", "mute-local-1")


@pytest.mark.soak
@pytest.mark.timeout(300)  # it brings up a stack of its own
class TestLedgerOnASmallDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)

    @pytest.fixture
    def stack(
        self,
        disk: Path,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[Stack]:
        """A stack of its own, which has nothing but its ledger on that disk."""
        home = tmp_path_factory.mktemp("other")
        monkeypatch.setenv("DAFNCK_HOME", str(home))
        monkeypatch.setenv("DAFNCK_LEDGER_URL", str(disk / "ledger.db"))
        ports = Ports(
            web=free_port(),
            router_api=free_port(),
            prefect=free_port(),
            object_store=free_port(),
        )
        with brought_down_if_we_die(home):
            stack = local_stack.up(home, ports, lambda part: None)
            for name, value in local_stack.prefect_environment(stack).items():
                monkeypatch.setenv(name, value)
            yield stack
            local_stack.down(stack, lambda part: None)

    def test_when_it_is_full_traffic_goes_back_and_the_message_says_so(
        self,
        disk: Path,
        stack: Stack,
        ledger: Ledger,
        released: Released,
        dafnck: Dafnck,
        service: Service,
    ) -> None:
        released(service("full"), "1")
        with under_load(stack, "full") as load:
            file = service("full", rollout=LONG)
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.cli", "release", file, "--here"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            sees_traffic(stack, "full", "full-local-2")
            fill(disk / "ballast")
            serves_alone(stack, "full", "full-local-1", LEASE_SECONDS + 8)
            _, said = process.communicate(timeout=60)
            assert process.returncode != 0
            assert "database or disk is full" in said.splitlines()[-2] + said.splitlines()[-1]
            refused = dafnck("release", service("full"), "--here", check=None)
            assert refused.returncode != 0
            assert "database or disk is full" in refused.stderr
            (disk / "ballast").unlink()
            wait_for(lambda: not ledger.unfinished("full"), "the guard ends it", 40)
        no_request_failed(load)
        assert ledger.history("full")[0].phase is Phase.ROLLED_BACK
        alone(stack, dafnck, "full", "full-local-1")
        assert released(service("full"), "3").phase is Phase.PROMOTED


def fill(ballast: Path) -> None:
    """Until not a byte is left."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    assert shutil.disk_usage(ballast.parent).free == 0


# -- the application ----------------------------------------------------------------------------


def test_replicas_that_are_deaf_to_sigterm_end_within_their_grace(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    """Those of a release that is rolled back, and those of one that is replaced."""
    deaf = {"env": {"DEAF": "1"}, "grace": "2s"}
    released(service("deaf", run=deaf), "1")
    with under_load(stack, "deaf") as load:
        bad = service("deaf", run=deaf | {"env": {"DEAF": "1", "EVERY": "2"}}, rollout=JUDGED)
        back = released(bad, "2")
        assert back.phase is Phase.ROLLED_BACK
        assert processes_of("deaf-local-2") == []
        load.answers.failed_else.pop("500")
        over = released(service("deaf"), "3")
        assert over.phase is Phase.PROMOTED
        assert processes_of("deaf-local-1") == []
    no_request_failed(load)
    for rollout, act in ((back, "remove"), (over, "retire")):
        took = next(i for i in ledger.intents(rollout.id) if i.act == act)
        assert took.outcome
        assert took.outcome_at
        # SIGTERM did nothing, SIGKILL came after the grace time; the rest is the drain's.
        assert 2 <= took.outcome_at - took.at < 12, took
    alone(stack, dafnck, "deaf", "deaf-local-3")


@pytest.mark.soak
def test_a_release_that_leaks_until_it_is_out_of_memory_is_rolled_back_and_says_so(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("leaks"), "1")
    leaky = service(
        "leaks",
        run={"env": {"LEAK": "8"}, "limits": {"memory": "200M"}},
        rollout=CANARY | {"bake": "60s", "steps": ["40%", "100%"]},
    )
    with under_load(stack, "leaks"):
        rollout = released(leaky, "2")
    assert rollout.phase is Phase.ROLLED_BACK
    assert re.search("ended [3-9] times|no replica .* is ready", rollout.reason)
    assert "out of memory" in rollout.reason
    alone(stack, dafnck, "leaks", "leaks-local-1")


# -- many at once ---------------------------------------------------------------------------------


@pytest.mark.soak
def test_six_services_at_once_are_all_promoted(
    stack: Stack, ledger: Ledger, dafnck: Dafnck, service: Service
) -> None:
    parts = {"run": {"replicas": 1, "start": "90s"}}
    names = [f"crowd{number}" for number in range(6)]
    runs = {name: begin(dafnck, service(name, f"{name}.yaml", **parts), "1") for name in names}
    ends = {name: ended(ledger, run, 150) for name, run in runs.items()}
    assert {end.phase for end in ends.values()} == {Phase.PROMOTED}, ends
    for name in names:
        assert {who_answers(stack, name) for _ in range(5)} == {f"{name}-local-1"}
