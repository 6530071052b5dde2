"""Of tests that lose a machine: a server of databases that outlives it, and what fills it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.ledger import Ledger
from blocks.pg_throwaway import throwaway
from blocks.postgres import Server
from blocks.stack import Stack
from tasks.backup import take
from tasks.backup_wanted import wanted_sites

VARIABLE = "DAFNCK_BACKUP_SHOP_URL"
ROWS = "SELECT count(*), sum(id), string_agg(what, '' ORDER BY id) FROM shop.orders"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The databases' server; with a machine its databases are gone."""
    room = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    room.chmod(0o711)  # the server's user gets to it
    try:
        with throwaway(room / "postgres", settings={"wal_level": "replica"}) as server:
            yield server
    finally:
        shutil.rmtree(room)


def url_of(server: Server) -> str:
    return f"postgresql://{server.user}@/shop?host={server.parameters['host']}"


def sql(server: Server, *statements: str) -> Any:
    with server.at("shop").connect(autocommit=True) as connection:
        for statement in statements:
            answer = connection.execute(statement)
        return answer.fetchone() if answer.description else None


def fill(server: Server) -> None:
    """A database with rows."""
    drop(server)
    with server.connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop")
    sql(
        server,
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.orders (id bigserial PRIMARY KEY, what text NOT NULL)",
        "INSERT INTO shop.orders (what) SELECT 'tea ' || n FROM generate_series(1, 500) n",
    )


def drop(server: Server) -> None:
    with server.connect(autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")


def backed_up(stack: Stack) -> dict[str, str]:
    """All that serves, and the state of dafnck itself last. -> target -> id of its backup"""
    ledger = Ledger(stack.ledger_url)
    sites = wanted_sites(stack, ledger)
    ledger.close()
    return {site.place.target: take(site).id for site in reversed(sites)}
