"""Some tables out of a dump of all: with what hangs on them, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from pg_fixtures import sql

from blocks.pg_dump import LogicalSource
from blocks.pg_facts import database_facts
from blocks.pg_restore import DatabaseRestore
from blocks.postgres import Server
from policy.backup_manifest import Manifest
from policy.errors import BadInput, NotApplied


class Taken:
    def __init__(self, server: Server, folder: Path) -> None:
        self.file = folder / "dump"
        with LogicalSource(server).begin() as copy:
            for _, stream in copy.streams():
                self.file.write_bytes(stream.read())
            facts = copy.facts()
        self.manifest = Manifest(
            id="20261125T021500123Z-3f9c21",
            service="shop",
            environment="prod",
            target="db",
            kind="postgres",
            started_at=0,
            snapshot_at=0,
            finished_at=0,
            streams=(),
            facts=facts,
            recipients=(),
        )

    @contextmanager
    def stream_of(self, name: str) -> Iterator[BinaryIO]:
        with self.file.open("rb") as file:
            yield file


@pytest.fixture(scope="module")
def taken(odd_shop: Server, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    return Taken(odd_shop, tmp_path_factory.mktemp("taken"))


def tables_of(server: Server) -> dict[str, int]:
    with server.connect() as connection:
        return {one.full_name: one.rows for one in database_facts(connection).tables}


def wanted_rows(taken: Taken) -> dict[str, int]:
    assert taken.manifest.facts.database
    return {one.full_name: one.rows for one in taken.manifest.facts.database.tables}


def test_each_table_alone(taken: Taken, fresh_database: Callable[..., Server]) -> None:
    """Whatever it is: equal to the manifest, with its indexes, keys, triggers and comments."""
    facts = taken.manifest.facts.database
    assert facts
    names = [one.full_name for one in facts.tables if one.kind in ("table", "partitioned table")]
    assert len(names) > 10
    for name in names:
        server = fresh_database()
        restore = DatabaseRestore(server, tables=(name,))
        restore.restore(taken.manifest, taken.stream_of)
        assert restore.differences(taken.manifest) == [], name
        found = tables_of(server)
        assert found[name] == wanted_rows(taken)[name]
        kept = {one for one in found if one.startswith(name) or name.startswith(one)}
        kept |= {one for one, rows in found.items() if rows == 0}
        assert found.keys() <= kept, "what it is a part of, without rows; and its partitions"


def test_what_is_lost_later_is_told(taken: Taken, fresh_database: Callable[..., Server]) -> None:
    facts = taken.manifest.facts.database
    assert facts
    largest = max(facts.tables, key=lambda one: one.rows if one.kind == "table" else -1)
    server = fresh_database()
    restore = DatabaseRestore(server, tables=(largest.full_name,))
    restore.restore(taken.manifest, taken.stream_of)
    quoted = f'"{largest.schema_name}"."{largest.name}"'
    sql(server, f"DELETE FROM {quoted} WHERE ctid = (SELECT min(ctid) FROM {quoted})")  # noqa: S608
    assert [one.what for one in restore.differences(taken.manifest)] == [
        f"table {largest.full_name}: rows"
    ]


def test_what_cannot_be(taken: Taken, fresh_database: Callable[..., Server]) -> None:
    server = fresh_database()
    with pytest.raises(BadInput, match="no table orders; nothing was restored"):
        DatabaseRestore(server, tables=("orders",)).restore(taken.manifest, taken.stream_of)
    assert tables_of(server) == {}
    whole = taken.file.read_bytes()
    taken.file.write_bytes(whole[: len(whole) // 2])
    try:
        name = max(wanted_rows(taken).items(), key=lambda one: one[1])[0]
        with pytest.raises(NotApplied, match="pg_restore"):
            DatabaseRestore(server, tables=(name,)).restore(taken.manifest, taken.stream_of)
    finally:
        taken.file.write_bytes(whole)
