"""The day of the disaster: a machine is wiped, and one command brings everything back from the
store and the key file alone, however often it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, free_port, wait_for
from recover_stage import ROWS, VARIABLE, backed_up, drop, fill, server, sql, url_of  # noqa: F401
from wal_fixtures import a_primary

from bench.stage import PROBE, brought_down_if_we_die, probe_file
from blocks.ledger import Ledger
from blocks.postgres import Server
from blocks.stack import Stack, open_stack
from deployments import local_stack
from policy.release import Phase

pytestmark = pytest.mark.live


class Machine:
    """What a person does on one, in a home of it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def begin(self, *words: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "DAFNCK_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dafnck(self, *words: object) -> str:
        return self._run(0, *words)[0]

    def failed(self, code: int, *words: object) -> str:
        """-> what it said"""
        return self._run(code, *words)[1]

    def _run(self, code: int, *words: object) -> tuple[str, str]:
        with self.begin(*words) as process:
            out, err = process.communicate(timeout=200)
        assert process.returncode == code, f"{words}: {out}\n{err}"
        return out, err

    def killed_at(self, line: str, *words: object) -> None:
        """Run it, and kill it when it says that."""
        with self.begin(*words) as process:
            assert process.stderr
            said = []
            for said_now in process.stderr:
                said.append(said_now)
                if said_now.strip() == line:
                    process.kill()
                    break
            process.communicate()
        assert process.returncode == -9, said


@pytest.fixture
def store(
    tmp_path: Path,
    server: Server,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """All that is known besides the key file."""
    store = f"file://{tmp_path / 'store'}"
    monkeypatch.setenv(VARIABLE, url_of(server))
    monkeypatch.setenv("DAFNCK_OBJECT_STORE_URL", store)
    return store


@pytest.fixture
def old(tmp_path: Path, store: str) -> Iterator[Machine]:
    machine = Machine(tmp_path / "old")
    ports = {"web": free_port(), "router-api": free_port(), "prefect": free_port()}
    with brought_down_if_we_die(machine.home):
        machine.dafnck("up", *(f"--{name}-port={port}" for name, port in ports.items()))
        yield machine


def who_answers(stack: Stack) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports.web}/", headers={"Host": "shop.local.localhost"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def lose(machine: Machine, uploads: Path, server: Server) -> None:  # noqa: F811 - the fixture
    machine.dafnck("down")
    shutil.rmtree(machine.home)
    shutil.rmtree(uploads)
    drop(server)


@pytest.mark.timeout(300)
def test_a_machine_is_lost(
    old: Machine,
    store: str,
    server: Server,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    source, uploads, key = tmp_path / "source", tmp_path / "uploads", tmp_path / "key.txt"
    source.mkdir()
    uploads.mkdir()
    (uploads / "menu.txt").write_text("tea\n")
    shutil.copy(PROBE, source / "probe.py")
    targets = {"orders": {"postgres": f"env://{VARIABLE}"}, "uploads": {"files": [str(uploads)]}}
    file = probe_file(
        source / "dafnck.yaml",
        "shop",
        {"backup": {"targets": targets}, "smoke": [{"get": "/"}], "rollout": {"bake": "1s"}},
    )
    fill(server)
    old.dafnck("release", file, "--version", "7", "--here")
    ids = backed_up(open_stack(old.home))
    old.dafnck("backup", "key", "--copy-to", key)
    rows = sql(server, ROWS)
    sql(server, "INSERT INTO shop.orders (what) VALUES ('after the backup')")
    lose(old, uploads, server)
    shutil.rmtree(source)

    new = Machine(tmp_path / "new")
    words = ("recover", "--from", store, "--key", key)
    with brought_down_if_we_die(new.home):
        new.killed_at("shop/local/orders (database)", *words)
        new.killed_at("services", *words)
        told = json.loads(new.dafnck(*words, "--json"))
        stack = open_stack(new.home)
        assert who_answers(stack) == "shop-local-1"
        assert sql(server, ROWS) == rows
        assert (uploads / "menu.txt").read_text() == "tea\n"
        ledger = Ledger(stack.ledger_url)
        (rollout,) = ledger.history()
        assert (rollout.version, rollout.phase) == ("7", Phase.PROMOTED)
        assert ledger.intents(rollout.id)
        ledger.close()
        assert told["attempts"] == 3
        assert told["own_backup"] == ids["state"]
        assert [(one["release"], one["trouble"]) for one in told["served"]] == [
            ("shop-local-1", "")
        ]
        assert {one["key"]: one["backup_id"] for one in told["came"]} == {
            "shop/local/orders": ids["orders"],
            "shop/local/uploads": ids["uploads"],
        }
        (page,) = stack.reports.glob("recovery-*.html")
        assert "lost at most (RPO)" in page.read_text()
        secret = next(
            line for line in key.read_bytes().splitlines() if line.startswith(b"AGE-SECRET-KEY")
        )
        holders = [
            path for path in new.home.rglob("*") if path.is_file() and secret in path.read_bytes()
        ]
        assert holders == [new.home / "secrets" / "recovery-key.txt"]
        assert set(backed_up(stack)) == set(ids), "it goes on"
        local_stack.down(stack, lambda words: None)


@pytest.mark.timeout(300)
def test_a_machine_is_lost_with_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Physical backups: what was committed after the last of them is there as well, up to the last
    segment of the log that was archived."""
    with a_primary() as primary:
        url = f"postgresql://postgres@/postgres?host={primary.folder}&port={primary.port}"
        store = f"file://{primary.folder / 'vault'}"
        monkeypatch.setenv(VARIABLE, url)
        monkeypatch.setenv("DAFNCK_OBJECT_STORE_URL", store)
        old, key = Machine(tmp_path / "old"), tmp_path / "key.txt"
        (source := tmp_path / "source").mkdir()
        shutil.copy(PROBE, source / "probe.py")
        targets = {"orders": {"postgres": f"env://{VARIABLE}", "method": "physical"}}
        file = probe_file(source / "dafnck.yaml", "shop", {"backup": {"targets": targets}})
        ports = {"web": free_port(), "router-api": free_port(), "prefect": free_port()}
        with brought_down_if_we_die(old.home):
            old.dafnck("up", *(f"--{name}-port={port}" for name, port in ports.items()))
            old.dafnck("release", file, "--version", "7", "--here")
            old.dafnck("wal", "setup", "shop", "--folder", primary.folder / "archive")
            shutil.copy(primary.folder / "archive" / "archive.json", primary.settings)
            primary.run(
                "CREATE TABLE orders (id bigserial PRIMARY KEY, what text)",
                "INSERT INTO orders (what) SELECT 'tea' FROM generate_series(1, 500)",
            )
            backed_up(open_stack(old.home))
            old.dafnck("backup", "key", "--copy-to", key)
            primary.run("INSERT INTO orders (what) VALUES ('after the backup')")
            primary.archive_all("backups/shop/local/orders")
            old.dafnck("down")
        primary.stop(signal.SIGKILL)
        shutil.rmtree(primary.data)
        shutil.rmtree(old.home)
        (primary.folder / ".s.PGSQL.5432").unlink(missing_ok=True)

        new = Machine(tmp_path / "new")
        words = ("recover", "--from", store, "--key", key, "--json")
        with brought_down_if_we_die(new.home):
            assert "--data shop/local/orders=DIR" in new.failed(2, *words)
            told = json.loads(new.dafnck(*words, "--data", f"shop/local/orders={primary.data}"))
            stack = open_stack(new.home)
            try:
                assert who_answers(stack) == "shop-local-1"
                assert primary.run("SELECT count(*), max(what) FROM orders") == [(501, "tea")]
                assert primary.run("SELECT count(*) FROM orders WHERE what LIKE 'after%'") == [(1,)]
                assert [one["release"] for one in told["served"]] == ["shop-local-1"]
            finally:
                local_stack.down(stack, lambda words: None)
                os.kill(
                    int((primary.data / "postmaster.pid").read_text().split()[0]), signal.SIGINT
                )
                wait_for(lambda: not (primary.data / "postmaster.pid").exists(), "it stops")
