"""A PostgreSQL of the tests' own, and fresh databases in it."""

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from blocks.pg_throwaway import throwaway
from blocks.postgres import Server, pg_tool

ODD_SHOP = Path(__file__).with_name("fixtures") / "odd_shop.sql"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One for each worker, stopped at its end."""
    with TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with throwaway(Path(folder) / "server", settings={"wal_level": "logical"}) as server:
            yield server


def sql(server: Server, *statements: str) -> None:
    with server.connect(autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def fresh_database(postgres: Server) -> Iterator[Callable[..., Server]]:
    """Makes an empty database (or a copy of `template`), gone after the test."""
    made = []

    def make(template: str = "template0") -> Server:
        name = f"test_{next(_numbers)}"
        sql(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return postgres.at(name)

    yield make
    for name in made:
        sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def _run(server: Server, *argv: str | Path, **more: object) -> bytes:
    with server.tool_environment() as environment:
        done = subprocess.run(
            [*map(str, argv)], env=environment, capture_output=True, check=False, **more
        )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr.decode()
    return bytes(done.stdout)


def dumped_and_restored(source: Server, target: Server) -> None:
    """As people do it; settings of the database are no part of that."""
    dump = _run(source, pg_tool("pg_dump"), "-Fc", "--compress=0")
    _run(target, pg_tool("pg_restore"), "--exit-on-error", "-d", target.dbname, input=dump)


@pytest.fixture(scope="session")
def odd_shop(postgres: Server) -> Server:
    """Not to be changed."""
    sql(postgres, "CREATE DATABASE odd_shop TEMPLATE template0")
    server = postgres.at("odd_shop")
    _run(server, pg_tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-f", str(ODD_SHOP))
    sql(
        server,
        "ALTER DATABASE odd_shop SET timezone = 'Europe/Berlin'",
        "ALTER DATABASE odd_shop SET work_mem = '5MB'",
    )
    return server


@pytest.fixture(scope="session")
def odd_copy(postgres: Server, odd_shop: Server) -> Server:
    """Of the odd shop, by pg_dump and pg_restore. Not to be changed."""
    sql(postgres, "CREATE DATABASE odd_copy TEMPLATE template0")
    server = postgres.at("odd_copy")
    dumped_and_restored(odd_shop, server)
    sql(
        server,
        "ALTER DATABASE odd_copy SET timezone = 'Europe/Berlin'",
        "ALTER DATABASE odd_copy SET work_mem = '5MB'",
    )
    return server
