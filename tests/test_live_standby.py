"""Business continuity: another environment takes over with the data of the newest backups, and the
first one takes over again, with what was written meanwhile."""

import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck
from recover_stage import ROWS, drop, fill, server, sql  # noqa: F401 - `server` is a fixture

from blocks.ledger import Ledger
from blocks.postgres import Server
from blocks.stack import Stack
from policy.release import Phase
from tasks.backup import take
from tasks.backup_wanted import wanted_sites

pytestmark = pytest.mark.live

VARIABLES = {"local": "DAFNCK_BACKUP_LOCAL", "standby": "DAFNCK_BACKUP_STANDBY"}
DATABASES = {"local": "shop", "standby": "shop_standby"}


def who_answers(stack: Stack, environment: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports.web}/",
        headers={"Host": f"continued.{environment}.localhost"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def rows(server: Server, environment: str) -> Any:  # noqa: F811
    with server.at(DATABASES[environment]).connect(autocommit=True) as connection:
        return connection.execute(ROWS).fetchone()


def backed_up(stack: Stack, environment: str) -> None:
    ledger = Ledger(stack.ledger_url)
    for site in wanted_sites(stack, ledger, "continued", environment):
        take(site)
    ledger.close()


@pytest.fixture
def file(
    stack: Stack,
    service: Any,
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    for environment, variable in VARIABLES.items():
        host = server.parameters["host"]
        url = f"postgresql://{server.user}@/{DATABASES[environment]}?host={host}"
        monkeypatch.setenv(variable, url)
        (tmp_path / environment).mkdir()
        (tmp_path / environment / "who").write_text(f"{environment}\n")

    def targets(environment: str) -> dict[str, Any]:
        return {
            "orders": {"postgres": f"env://{VARIABLES[environment]}"},
            "uploads": {"files": [environment]},
        }

    part = {"to": f"file://{tmp_path / 'vault'}", "targets": targets("local")}
    return Path(
        service(
            "continued",
            backup=part,
            environments={
                "local": {},
                "standby": {"backup": {"targets": targets("standby")}},
            },
        )
    )


@pytest.mark.timeout(240)
def test_another_environment_takes_over_and_gives_back(
    stack: Stack,
    ledger: Ledger,
    dafnck: Dafnck,
    server: Server,  # noqa: F811
    file: Path,
    tmp_path: Path,
) -> None:
    fill(server)
    with server.connect(autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS shop_standby")
    dafnck("release", file, "--env", "standby", "--version", "1", "--here")
    dafnck("release", file, "--env", "local", "--version", "2", "--here")
    backed_up(stack, "local")
    before = rows(server, "local")
    words = ("recover", "continued", "--env", "standby", "--of", "local", "--here")
    refused = dafnck(*words, check=2)
    assert "--confirm continued/standby" in refused.stderr
    done = dafnck(*words, "--confirm", "continued/standby")
    assert "continued-standby-2 serves. at most " in done.stdout
    assert who_answers(stack, "standby") == "continued-standby-2"
    assert who_answers(stack, "local") == "continued-local-1", "it was not touched"
    new = ledger.release("continued-standby-2")
    assert new.version == "2"
    assert new.artifact == ledger.release("continued-local-1").artifact
    assert new.backup
    assert new.backup.targets["orders"].postgres == "env://DAFNCK_BACKUP_STANDBY"
    assert rows(server, "standby") == before
    assert (tmp_path / "standby" / "who").read_text() == "local\n"
    (aside,) = tmp_path.glob("standby.before-*")
    assert (aside / "who").read_text() == "standby\n"

    with server.at("shop_standby").connect(autocommit=True) as connection:
        connection.execute("INSERT INTO shop.orders (what) VALUES ('while it stood in')")
    now = rows(server, "standby")
    assert now != before
    backed_up(stack, "standby")
    back = ("recover", "continued", "--env", "local", "--of", "standby", "--here")
    done = dafnck(*back, "--confirm", "continued/local")
    assert "continued-local-2 serves" in done.stdout
    assert who_answers(stack, "local") == "continued-local-2"
    assert rows(server, "local") == now
    with server.connect(autocommit=True) as connection:
        kept = connection.execute(
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'shop\\_before\\_%'"
        ).fetchone()
    assert kept == (1,), "what it held is kept aside"
    newest = ledger.history("continued", "local", limit=1)[0]
    assert (newest.phase, newest.version) == (Phase.PROMOTED, "2")
    assert any(act.act == "recover" for act in ledger.intents(newest.id))
    assert list(stack.reports.glob("recovery-*.html"))
