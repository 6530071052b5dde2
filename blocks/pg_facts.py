"""Counts and hashes everything that a PostgreSQL database holds, in the caller's transaction.

The content of a table is the sum of the 64-bit hashes of its rows' texts, modulo 2^64: no order, no
sort, one pass. Two contents with the same number of rows and the same sum are taken for equal: by
chance that happens once in 2^64; somebody who plants it on purpose is the signature's to stop.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from blocks import pg_catalogue
from blocks.pg_definitions import definitions_of, settled
from policy.database_facts import Column, DatabaseFacts, Sequence, Table, TableKind

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


def database_facts(connection: "Connection[Any]", *, hashes: bool = True) -> DatabaseFacts:
    """What this connection sees in its transaction, which should be REPEATABLE READ where others
    write. `hashes`: the content too; rows are counted in any case, which reads every table.

    Sequences are no part of any snapshot: they are read first, so a dump of the same snapshot that
    is begun later holds these values or later ones. Raises psycopg's errors, among them
    InsufficientPrivilege where row security hides rows."""
    from psycopg.rows import tuple_row
    from psycopg.sql import SQL, Literal

    with (
        connection.transaction(force_rollback=True),  # of our settings
        connection.cursor(row_factory=tuple_row) as cursor,
    ):
        time_zone = _one(cursor, pg_catalogue.TIME_ZONE)[0]
        for name, value in SETTINGS.items():
            words = SQL(value) if name == "search_path" else Literal(value)
            cursor.execute(SQL("SET LOCAL {} = {}").format(SQL(name), words))
        sequences, owners = _sequences(cursor)
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
    found = cursor.execute(pg_catalogue.TABLES).fetchall()
    for oid, schema, name, kind, size, inherits, unlogged, populated, gathers, below in found:
        of_table = columns[oid]
        if inherits:
            # A dump writes the inherited columns first, whenever the parent got them.
            of_table = sorted(of_table, key=lambda column: column.name)
        rows, content = 0, None
        if not below and (gathers or (kind in ("r", "m") and populated)):
            order = [column.name for column in of_table] if inherits else None
            which = SQL("{}" if gathers else "ONLY {}").format(Identifier(schema, name))
            rows, content = _content(cursor, which, order, hashes)
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
    order: Iterable[str] | None,
    hashes: bool,
) -> tuple[int, str | None]:
    """-> rows, and the sum of their hashes. `order`: of the columns in a row's text, where that of
    the table does not count."""
    from psycopg.sql import SQL, Identifier

    if not hashes:
        return _one(cursor, SQL("SELECT count(*) FROM {}").format(which))[0], None
    row: Composable = SQL(
        "t.*"
    )  # not `t`: that would be the column of this name, where there is one
    if order is not None:
        row = SQL("ROW({})").format(SQL(", ").join(Identifier("t", column) for column in order))
    query = SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(({})::text COLLATE {}, 0)), 0) FROM {} AS t"
    )
    rows, total = _one(cursor, query.format(row, Identifier("pg_catalog", "C"), which))
    return rows, _hex(total)


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
            digest.update(f"{column.model_dump_json()}\n".encode())
    for sequence in sequences:
        digest.update(f"{sequence.name}\0{sequence.definition}\n".encode())
    for name, text in definitions.items():
        digest.update(f"{name}\0{text}\n".encode())
    return digest.hexdigest()
