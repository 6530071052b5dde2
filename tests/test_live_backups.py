"""Backups as people use them: by the command, by the worker, by the clock's flows."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import Dafnck, Released
from pg_fixtures import sql

from blocks.ledger import Ledger
from blocks.postgres import Server
from blocks.stack import Stack

pytestmark = pytest.mark.live

Service = Callable[..., Path]
ROWS = "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 100)"


@pytest.fixture
def kept(
    stack: Stack,
    service: Service,
    released: Released,
    tmp_path: Path,
    fresh_database: Callable[..., Server],
) -> tuple[str, Path]:
    """A service that serves, with a database and a folder that are backed up. -> its database's
    URL, the folder"""
    server = fresh_database()
    sql(server, *ROWS.split("; "))
    url = f"postgresql://{server.user}@/{server.dbname}?host={server.parameters['host']}"
    secret = tmp_path / "url"
    secret.write_text(url)
    secret.chmod(0o600)
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "a.txt").write_text("words")
    targets = {
        "db": {"postgres": f"file://{secret}", "smoke": ["SELECT count(*) = 100 FROM orders"]},
        "uploads": {"files": ["uploads"]},
    }
    released(service("kept", backup={"targets": targets}), "1")
    return url, tmp_path / "uploads"


def rows(dafnck: Dafnck, *words: str) -> list[dict[str, object]]:
    return list(json.loads(dafnck("backup", "list", "kept", *words, "--json").stdout))


@pytest.mark.timeout(400)
def test_a_night_and_a_drill_by_the_worker(
    stack: Stack, ledger: Ledger, dafnck: Dafnck, kept: tuple[str, Path], tmp_path: Path
) -> None:
    url, uploads = kept
    dafnck("backup", "key")
    secret = (stack.secrets / "recovery-key.txt").read_text().splitlines()[-1]
    assert secret.startswith("AGE-SECRET-KEY-")
    with nobody_tells(secret):
        assert "2 backed up" in dafnck("backup", "now", "kept").stdout
    assert {row["target"]: row["state"] for row in rows(dafnck)} == {
        "db of kept in local": "not tried",
        "uploads of kept in local": "not tried",
    }
    with nobody_tells(secret):
        assert "all is there" in dafnck("drill", "kept").stdout
    assert {row["state"] for row in rows(dafnck)} == {"proved"}
    shown = dafnck("backup", "show", "kept", "--target", "db").stdout
    assert "orders: 100 rows" in shown
    assert "pass   smoke queries" in shown
    assert dafnck("backup", "verify", "kept").stdout.count("kept in local") == 2

    # The state of dafnck itself, by the same flows.
    assert "1 backed up" in dafnck("backup", "now", "dafnck", "--here").stdout
    assert "all is there" in dafnck("drill", "dafnck", "--here").stdout

    said = dafnck("restore", "dafnck", "--here", "--to-folder", tmp_path / "home").stdout
    assert "equal to its manifest" in said
    copy = Ledger(str(tmp_path / "home" / "ledger.db"))
    assert copy.stable("kept", "local") == ledger.stable("kept", "local")
    copy.close()

    # Back: files to a folder, the database beside, then in its place.
    back = tmp_path / "back"
    words = ("restore", "kept", "--here", "--target")
    dafnck(*words, "uploads", "--to-folder", back)
    assert (back / str(uploads / "a.txt").lstrip("/")).read_text() == "words"
    name = json.loads(dafnck("backup", "list", "kept", "--target", "db", "--json").stdout)[0]["id"]
    asked = ("db", "--backup", str(name), "--to-database", f"beside{name[-6:]}")
    assert "equal to its manifest" in dafnck(*words, *asked).stdout
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM orders WHERE id > 7")
    refused = dafnck(*words, "db", "--into-place", check=2)
    assert "--confirm kept/local/db" in refused.stderr
    asked = ("db", "--backup", str(name), "--into-place", "--confirm", "kept/local/db")
    assert "is kept as database" in dafnck(*words, *asked).stdout
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)
    assert len(rows(dafnck, "--target", "db")) == 2, "the safety backup"

    # A failure is told to people and by the exit code.
    (tmp_path / "url").unlink()
    failed = dafnck("backup", "now", "kept", "--here", check=3)
    assert "1 of 2 failed: db of kept in local" in failed.stderr
    assert "backup failed" in (stack.logs / "notifications.log").read_text()
    kept_ones = json.loads(dafnck("backup", "prune", "kept", "--dry-run", "--json").stdout)
    assert all(one["kept"] for one in kept_ones)

    holders = [
        file.relative_to(stack.home)
        for file in stack.home.rglob("*")
        if file.is_file() and secret.encode() in file.read_bytes()
    ]
    assert holders == [Path("secrets/recovery-key.txt")], (
        "ledger, logs, reports, Prefect's database"
    )


@contextmanager
def nobody_tells(secret: str) -> Iterator[None]:
    """Meanwhile it is in no process's arguments, and in no environment."""
    over, told = threading.Event(), set[str]()

    def look() -> None:
        while not over.wait(0.05):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if secret in " ".join([*process.cmdline(), *process.environ().values()]):
                        told.add(process.name())

    thread = threading.Thread(target=look, name="looks at processes")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not told


def test_what_a_file_cannot_mean(dafnck: Dafnck, service: Service) -> None:
    bad = {"targets": {"db": {"postgres": "postgresql://u:pass@host/db"}}}
    refused = dafnck("validate", service("bad", backup=bad), check=2)
    assert "backup.targets.db.postgres: holds a password" in refused.stderr
    assert "pass@host" not in refused.stderr
    bad = {"targets": {"db": {"postgress": "env://X"}}}
    refused = dafnck("validate", service("bad", backup=bad), check=2)
    assert "did you mean postgres" in refused.stderr
    plain = service("plain")
    assert "nothing to back up" in dafnck("backup", "now", "--file", plain, check=2).stderr
    assert "nothing fits" in dafnck("backup", "list", "nobody", check=2).stderr
