"""Counts and hashes everything that a PostgreSQL database holds, in the caller's transaction.

The content of a table is the sum of the 64-bit hashes of its rows' texts, modulo 2^64: no order, no
sort, one pass. Two contents with the same number of rows and the same sum are taken for equal: by
chance that happens once in 2^64; somebody who plants it on purpose is the signature's to stop.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blocks import pg_catalogue
from blocks.pg_definitions import definitions_of, settled
from policy.database_facts import Column, DatabaseFacts, Sequence, Table, TableKind
from policy.errors import NotApplied

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg.sql import Composable, Composed

# What a row's text and a definition's text depend on, so that two sessions write the same.
SETTINGS = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "pg_catalog, pg_temp",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",  # compiles longer than it saves, once for each table
}
MODULUS = 2**64
KINDS: dict[str, TableKind] = {
    "r": "table",
    "p": "partitioned table",
    "m": "materialized view",
    "f": "foreign table",
}
SEQUENCES_A_QUERY = 500
TABLES_A_LOCK = 500


def database_facts(
    connection: "Connection[Any]",
    *,
    hashes: bool = True,
    sequences: tuple[Sequence, ...] | None = None,
) -> DatabaseFacts:
    """What this connection sees in its transaction, which should be REPEATABLE READ where others
    write. `hashes`: the content too; rows are counted in any case, which reads every table.
    `sequences`: as `read_sequences` found them earlier.

    Sequences are no part of any snapshot: they are read first, so a dump of the same snapshot that
    is begun later holds these values or later ones. Raises psycopg's errors, among them
    InsufficientPrivilege where row security hides rows."""
    with _session(connection) as (cursor, time_zone):
        now, owners = _sequences(cursor)
        sequences = now if sequences is None else sequences
        version = connection.info.server_version // 10000
        head = _one(cursor, pg_catalogue.head(version))
        tables = tuple(_tables(cursor, hashes))
        definitions, hangs_on = definitions_of(cursor, version)
        objects, pages = _large_objects(cursor, hashes)
        return DatabaseFacts(
            name=head[0],
            server_version=head[1],
            encoding=head[2],
            collation=head[3],
            time_zone=time_zone,
            settings=dict(sorted(_settings(cursor))),
            extensions=dict(cursor.execute(pg_catalogue.EXTENSIONS).fetchall()),
            roles=tuple(row[0] for row in cursor.execute(pg_catalogue.ROLES)),
            definitions=definitions,
            hangs_on=hangs_on | owners,
            schema_hash=_schema_hash(tables, sequences, definitions),
            tables=tables,
            sequences=sequences,
            large_objects=objects,
            large_objects_hash=pages,
            size_bytes=head[4],
            lsn=head[5],
        )


@contextmanager
def _session(
    connection: "Connection[Any]",
) -> Iterator[tuple["Cursor[tuple[Any, ...]]", str]]:
    """-> (a cursor with settings of ours, taken back afterwards; the time zone without them)."""
    from psycopg.rows import tuple_row
    from psycopg.sql import SQL, Literal

    with (
        connection.transaction(force_rollback=True),
        connection.cursor(row_factory=tuple_row) as cursor,
    ):
        time_zone = _one(cursor, pg_catalogue.TIME_ZONE)[0]
        for name, value in SETTINGS.items():
            words = SQL(value) if name == "search_path" else Literal(value)
            cursor.execute(SQL("SET LOCAL {} = {}").format(SQL(name), words))
        yield cursor, time_zone


def read_sequences(connection: "Connection[Any]") -> tuple[Sequence, ...]:
    """As they are now: they are in no snapshot."""
    with _session(connection) as (cursor, _):
        return _sequences(cursor)[0]


def lock_tables(connection: "Connection[Any]", wait_seconds: float) -> None:
    """Nobody may change, empty or drop a table until the transaction ends: rewriting one is not
    hidden from older snapshots. People read and write on. As pg_dump does. Raises NotApplied when
    somebody changes one for longer than that."""
    from psycopg.errors import LockNotAvailable
    from psycopg.sql import SQL, Identifier

    with _session(connection) as (cursor, _):
        found = cursor.execute(pg_catalogue.TABLES).fetchall()
    names = [Identifier(row[1], row[2]) for row in found if row[3] in ("r", "p")]
    connection.execute(
        "SELECT set_config('lock_timeout', %s, true)", (f"{int(wait_seconds * 1000)}",)
    )
    try:
        for start in range(0, len(names), TABLES_A_LOCK):
            some = SQL(", ").join(
                SQL("ONLY {}").format(name) for name in names[start : start + TABLES_A_LOCK]
            )
            connection.execute(SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(some))
    except LockNotAvailable as error:
        raise NotApplied(
            f"a table is locked by somebody else: {' '.join(str(error).split())}. Nothing was "
            "backed up. Look in pg_locks, or start again when no ALTER TABLE runs"
        ) from None


def _one(cursor: "Cursor[tuple[Any, ...]]", query: Any) -> tuple[Any, ...]:
    row = cursor.execute(query).fetchone()
    assert row is not None
    return row


def _hex(total: Any) -> str:
    return f"{int(total) % MODULUS:016x}"


def _tables(cursor: "Cursor[tuple[Any, ...]]", hashes: bool) -> Iterator[Table]:
    from psycopg.sql import SQL, Identifier

    columns: dict[int, list[Column]] = defaultdict(list)
    for oid, name, kind, not_null, default, generated, collation in cursor.execute(
        pg_catalogue.COLUMNS
    ):
        columns[oid].append(
            Column(
                name=name,
                type=kind,
                not_null=not_null,
                default=default and settled(default),
                generated=generated and settled(generated),
                collation=collation,
            )
        )
    keys: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for oid, names in cursor.execute(pg_catalogue.KEYS):
        keys[oid].append(tuple(names))
    recovers = _one(cursor, "SELECT pg_is_in_recovery()")[0]
    found = cursor.execute(pg_catalogue.TABLES).fetchall()
    for oid, schema, name, kind, size, inherits, unlogged, populated, gathers, below in found:
        of_table = columns[oid]
        if inherits:
            # A dump writes the inherited columns first, whenever the parent got them.
            of_table = sorted(of_table, key=lambda column: column.name)
        rows, content = 0, None
        unread = below or (unlogged and recovers)  # which cannot be read then
        if not unread and (gathers or (kind in ("r", "m") and populated)):
            which = SQL("{}" if gathers else "ONLY {}").format(Identifier(schema, name))
            rows, content, of_table = _content(cursor, which, of_table, inherits, hashes)
        yield Table(
            schema_name=schema,
            name=name,
            rows=rows,
            content_hash=content,
            columns=tuple(of_table),
            keys=tuple(keys[oid]),
            size_bytes=size,
            kind=KINDS[kind],
            unlogged=unlogged,
            populated=populated,
        )


def _content(
    cursor: "Cursor[tuple[Any, ...]]",
    which: "Composed",
    columns: list[Column],
    in_this_order: bool,
    hashes: bool,
) -> tuple[int, str | None, list[Column]]:
    """-> (rows, the sum of their hashes, columns with their shares of nulls). `in_this_order`: the
    columns in a row's text, where the order of the table does not count."""
    from psycopg.sql import SQL, Identifier

    if not hashes:
        return _one(cursor, SQL("SELECT count(*) FROM {}").format(which))[0], None, columns
    row: Composable = SQL(
        "t.*"
    )  # not `t`: that would be the column of this name, where there is one
    if in_this_order:
        row = SQL("ROW({})").format(SQL(", ").join(Identifier("t", one.name) for one in columns))
    nullable = [column for column in columns if not column.not_null]
    there = SQL("").join(SQL(", count({})").format(Identifier("t", one.name)) for one in nullable)
    query = SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(({})::text COLLATE {}, 0)), 0){} "
        "FROM {} AS t"
    )
    collation = Identifier("pg_catalog", "C")
    rows, total, *filled = _one(cursor, query.format(row, collation, there, which))
    if not rows:
        return 0, _hex(total), columns
    of_nulls = {
        column.name: 1 - count / rows for column, count in zip(nullable, filled, strict=True)
    }
    counted = [
        one.model_copy(update={"null_fraction": of_nulls[one.name]})
        if one.name in of_nulls
        else one
        for one in columns
    ]
    return rows, _hex(total), counted


def _sequences(
    cursor: "Cursor[tuple[Any, ...]]",
) -> tuple[tuple[Sequence, ...], dict[str, str]]:
    """-> they, and on which table those hang that have one."""
    from psycopg.sql import SQL, Identifier, Literal

    listed = cursor.execute(pg_catalogue.SEQUENCES).fetchall()
    values: dict[int, tuple[int, bool]] = {}
    for start in range(0, len(listed), SEQUENCES_A_QUERY):
        parts = [
            SQL("SELECT {}, last_value, is_called FROM {}").format(
                Literal(index), Identifier(*row[:2])
            )
            for index, row in enumerate(listed[start : start + SEQUENCES_A_QUERY], start)
        ]
        for index, last, called in cursor.execute(SQL(" UNION ALL ").join(parts)):
            values[index] = last, called
    found, owners = [], {}
    for index, (schema, name, definition, increment, cycles, table) in enumerate(listed):
        last, called = values[index]
        found.append(
            Sequence(
                name=f"{schema}.{name}",
                last_value=last,
                is_called=called,
                definition=definition,
                increment=increment,
                cycles=cycles,
            )
        )
        if table:
            owners[f"sequence {schema}.{name}"] = table
    return tuple(found), owners


def _large_objects(cursor: "Cursor[tuple[Any, ...]]", hashes: bool) -> tuple[int, str | None]:
    """-> how many, and the hash of their content where the role may read it at once."""
    count, readable = _one(cursor, pg_catalogue.LARGE_OBJECTS)
    if not hashes or not readable:
        return count, None
    return count, _hex(_one(cursor, pg_catalogue.LARGE_OBJECT_PAGES)[0])


def _settings(cursor: "Cursor[tuple[Any, ...]]") -> Iterator[tuple[str, str]]:
    """'work_mem', '64MB'; of a role in this database 'role:work_mem'."""
    for role, text in cursor.execute(pg_catalogue.OWN_SETTINGS):
        name, _, value = text.partition("=")
        yield (f"{role}:{name}" if role else name), value


def _schema_hash(
    tables: Iterable[Table], sequences: Iterable[Sequence], definitions: dict[str, str]
) -> str:
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.full_name}\0{table.kind}\n".encode())
        for column in table.columns:
            digest.update(f"{column.model_dump_json(exclude={'null_fraction'})}\n".encode())
    for sequence in sequences:
        digest.update(f"{sequence.name}\0{sequence.definition}\n".encode())
    for name, text in definitions.items():
        digest.update(f"{name}\0{text}\n".encode())
    return digest.hexdigest()
