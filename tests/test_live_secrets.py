"""Secrets of services that really run: given late, kept with a release, seen nowhere else; turned
over by the worker."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Dafnck, Released, wait_for
from docker_fixtures import own_name
from test_live_kills import restarted
from test_live_release import Service, alone
from test_rotate import postgres, url, user_of

from blocks.ledger import Ledger
from blocks.postgres import Server
from blocks.secret_files import SecretFiles
from blocks.stack import Stack
from blocks.supervisor import Supervisor
from policy.release import Phase

pytestmark = pytest.mark.live
VALUE, OTHER = "hunter2-Zx+9/äq", "another value"

__all__ = ["postgres"]  # a fixture


@pytest.fixture
def files(stack: Stack) -> Iterator[SecretFiles]:
    files = SecretFiles(stack)
    yield files
    for name in files.names():
        files.remove(name)


def environment(supervisor: Supervisor, name: str) -> dict[str, str]:
    pid = supervisor.programs()[name].pid
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def places_of(value: str, home: Path) -> list[str]:
    """Files of the home that hold it, and arguments of processes; but what a program wrote of it
    itself, which is its own log."""
    wanted, found = value.encode(), []
    for path in home.rglob("*"):
        if path.parent.name == "talks-local-1":
            continue
        if path.is_file() and wanted in path.read_bytes():
            found.append(str(path))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "cmdline").read_bytes():
                found.append(str(folder))
        except OSError:
            continue
    return found


def test_a_release_has_them_and_nobody_else(
    stack: Stack,
    supervisor: Supervisor,
    files: SecretFiles,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    tmp_path: Path,
) -> None:
    (tmp_path / "value").write_text(VALUE)
    dafnck("secret", "set", "sealed/token", "--file", tmp_path / "value")
    (tmp_path / "value").unlink()
    wanted = {"secrets": {"TOKEN": "secret://sealed/token"}}
    released(service("sealed", run=wanted), "1")
    assert environment(supervisor, "sealed-local-1.0")["TOKEN"] == VALUE
    pid = supervisor.programs()["sealed-local-1.0"].pid
    os.kill(pid, signal.SIGKILL)
    restarted(supervisor, "sealed-local-1.0", pid)
    assert environment(supervisor, "sealed-local-1.0")["TOKEN"] == VALUE

    files.put("sealed/token", OTHER)
    assert json.loads(dafnck("secret", "list", "--json").stdout)[0]["runs with older"] == (
        "sealed-local-1"
    )
    dafnck("renew", "sealed")
    alone(stack, dafnck, "sealed", "sealed-local-2")
    assert environment(supervisor, "sealed-local-2.0")["TOKEN"] == OTHER
    dafnck("rollback", "sealed", "--to", "sealed-local-1", "--here")
    assert environment(supervisor, "sealed-local-1.0")["TOKEN"] == VALUE, "what it had"
    assert places_of(VALUE, stack.home) == []
    refused = dafnck("secret", "remove", "sealed/token", check=1)
    assert "is used by sealed-local-1" in refused.stderr
    assert dafnck("secret", "get", "sealed/token").stdout == OTHER


def test_a_secret_that_is_missing_stops_the_release_alone(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service, files: SecretFiles
) -> None:
    released(service("lacks"), "1")
    wanted = {"secrets": {"TOKEN": "secret://lacks/token"}}
    rollout = released(service("lacks", run=wanted), "2")
    assert rollout.phase is Phase.FAILED
    assert "run.secrets: TOKEN: there is no secret lacks/token" in rollout.reason
    alone(stack, dafnck, "lacks", "lacks-local-1")


def test_what_a_program_says_of_its_secret_is_not_told(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service, files: SecretFiles
) -> None:
    """It dies with its password on its lips."""
    files.put("talks/token", VALUE)
    says = "sh -c 'echo cannot log in with $TOKEN >&2; exit 3' {port}"
    wanted = {"command": says, "secrets": {"TOKEN": "secret://talks/token"}, "start": "5s"}
    rollout = released(service("talks", run=wanted), "1")
    assert rollout.phase is Phase.FAILED
    assert "cannot log in with [secret]" in rollout.reason
    assert VALUE not in rollout.reason
    assert places_of(VALUE, stack.home) == []


def test_a_container_has_them(
    docker: Any, released: Released, image_service: Any, files: SecretFiles, stack: Stack
) -> None:
    name = own_name("sealed")
    number = files.put("sealed/token", VALUE)
    wanted = {"secrets": {"TOKEN": "secret://sealed/token"}, "replicas": 1}
    released(image_service(name, run=wanted), "1")
    assert f"TOKEN={VALUE}" in docker.inspect_container(f"{name}-local-1.0")["Config"]["Env"]
    files.put("sealed/token", OTHER)
    files.disable("sealed/token", number)
    released(image_service(name, run={"replicas": 1}), "2")
    from flows.rollback import rollback

    rollback(name, "local", to=f"{name}-local-1", return_state=True)
    now = docker.inspect_container(f"{name}-local-1.0")["Config"]["Env"]
    assert f"TOKEN={OTHER}" in now, "what it had opens nothing any more"
    assert places_of(VALUE, stack.home) == []


def test_a_database_password_turns_over_by_the_worker(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    postgres: Server,
    files: SecretFiles,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    with postgres.connect(autocommit=True) as connection:
        for user in ("shop_a", "shop_b"):
            connection.execute(f"DROP ROLE IF EXISTS {user}")
        connection.execute("CREATE ROLE shop_a LOGIN PASSWORD 'first-word' IN ROLE shop")
        connection.execute("ALTER ROLE shop_a SET role TO shop")
    host = postgres.parameters["host"]
    files.put("turns/admin", f"postgresql://shop_admin@/shop?host={host}&port=5432")
    old = url(postgres, "shop_a", "first-word")
    files.put("turns/url", old)
    logins = {"admin": "secret://turns/admin", "role": "shop", "users": ["shop_a", "shop_b"]}
    wanted = service(
        "turns",
        run={"secrets": {"DATABASE_URL": "secret://turns/url"}},
        rotate={"turns/url": {"postgres": logins, "grace": "1s"}},
    )
    released(wanted, "1")
    assert user_of(environment(supervisor, "turns-local-1.0")["DATABASE_URL"]) == "shop_a"
    told = json.loads(dafnck("secret", "show", "turns/url", "--json").stdout)
    assert told["used_by"] == {"turns-local-1": ["1"]}
    said = dafnck("secret", "rotate", "turns/url", "--now", "--patience", "10s")
    assert 'password authentication failed for user "shop_a"; it is 0.0 days old' in said.stdout
    backups = json.loads(dafnck("backup", "list", "dafnck", "--json").stdout)
    assert backups, "a recovery brings back what is current"
    alone(stack, dafnck, "turns", "turns-local-2")
    now = environment(supervisor, "turns-local-2.0")["DATABASE_URL"]
    assert user_of(now) == "shop_b"
    with pytest.raises(psycopg.OperationalError, match="FATAL"):
        psycopg.connect(old)
    word = now.partition("shop_b:")[2].partition("@")[0]
    wait_for(lambda: ledger.lease("turns", "local") is None, "its lease is free")
    assert places_of(word, stack.home) == []
    assert places_of("first-word", stack.home) == []
    unknown = dafnck("secret", "rotate", "turns/none", "--now", check=2)
    assert "no service that serves says how turns/none turns over" in unknown.stderr
