"""What a restored database is held to without anybody writing it down: by its manifest, by its
foreign keys.

What is chosen stays small, so that a database of a thousand tables is asked in minutes: of the
tables with most rows all that is known, of the others nothing here: every table's rows, columns and
content are compared with the manifest anyway. And nothing is asked that a sound copy could fail.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil, floor

from policy.backup import Expectation, Fresh
from policy.database_facts import Column, DatabaseFacts, Table
from policy.foreign_keys import ancestors, as_written, foreign_keys, quoted
from policy.quantities import in_words

LARGEST = 20  # tables
MOST_COLUMNS = 100  # of a table, whose types and nulls are looked at
MOST_ROWS = 5_000_000  # of a table whose keys are sorted, whose foreign keys are followed
DAY_SECONDS = 86400.0

# As format_type says it -> as Great Expectations does. Of other types the manifest alone speaks.
_types = {
    **{
        name: name.upper() for name in ("smallint", "integer", "bigint", "real", "double precision")
    },
    **{name: name.upper() for name in ("numeric", "text", "boolean", "date", "uuid", "bytea")},
    **{name: name.upper() for name in ("json", "jsonb", "inet", "cidr", "interval")},
    "character varying": "VARCHAR",
    "timestamp with time zone": "TIMESTAMP WITH TIME ZONE",
    "timestamp without time zone": "TIMESTAMP WITHOUT TIME ZONE",
}
_label = re.compile(r"(E?)'((?:[^']|'')*)'")


def default_suites(
    facts: DatabaseFacts, *, largest: int = LARGEST, tolerance: float = 0.0
) -> dict[str, list[Expectation]]:
    """Full name of the table -> expectations: its columns in their order, their types, its rows,
    shares of nulls, values of enums, keys that are unique. `tolerance`: share of the rows, and
    difference of a share of nulls, that may differ."""
    above = ancestors(facts)
    parents = set[str]().union(*above.values())
    # Rows of a partitioned table lie in its leaves, those of a foreign one on a server that need
    # not be there, and a view that was never populated cannot be read.
    plain = (table for table in facts.tables if table.columns and table.kind == "table")
    return {
        table.full_name: [
            _columns_of(table, table.full_name in above),
            *_of_table(facts, table, table.full_name in parents, tolerance),
        ]
        for table in sorted(plain, key=lambda table: (-table.rows, table.full_name))[:largest]
    }


def _columns_of(table: Table, inherits: bool) -> Expectation:
    """A copy of an heir may have them in another order."""
    names = [column.name for column in table.columns]
    if inherits:
        return _expect("expect_table_columns_to_match_set", column_set=names, exact_match=True)
    return _expect("expect_table_columns_to_match_ordered_list", column_list=names)


def _of_table(
    facts: DatabaseFacts, table: Table, is_parent: bool, tolerance: float
) -> Iterator[Expectation]:
    columns = table.columns[:MOST_COLUMNS]
    for column in columns:
        if name := _type(column.type):
            yield _expect("expect_column_values_to_be_of_type", column=column.name, type_=name)
    if is_parent or table.content_hash is None:
        return  # a query sees the rows of its heirs too; or they were not counted
    least, most = floor(table.rows * (1 - tolerance)), ceil(table.rows * (1 + tolerance))
    yield _expect("expect_table_row_count_to_be_between", min_value=least, max_value=most)
    if table.rows > MOST_ROWS:
        return
    for column in columns:
        yield from _of_column(facts, table, column, tolerance)
    yield from _unique(table)


def _unique(table: Table) -> Iterator[Expectation]:
    """Not where Great Expectations 1.24 fails: by a quote in a name, and by two names of one table
    that are the same in small letters. PostgreSQL holds the keys themselves all the same."""
    alike = len({column.name.lower() for column in table.columns}) < len(table.columns)
    for key in table.keys:
        if any('"' in name for name in key):
            continue
        if len(key) == 1:
            yield _expect("expect_column_values_to_be_unique", column=key[0])
        elif key and not alike:  # a key with a null in it equals no other
            yield _expect(
                "expect_compound_columns_to_be_unique",
                column_list=list(key),
                ignore_row_if="any_value_is_missing",
            )


def _type(name: str) -> str | None:
    """As Great Expectations names it; None where the two could differ."""
    if found := re.fullmatch(r"character varying\((\d+)\)", name):
        return f"VARCHAR({found[1]})"
    if found := re.fullmatch(r"numeric\((\d+),(\d+)\)", name):
        return f"NUMERIC({found[1]}, {found[2]})"
    return _types.get(name)


def _of_column(
    facts: DatabaseFacts, table: Table, column: Column, tolerance: float
) -> Iterator[Expectation]:
    if column.not_null:
        yield _expect("expect_column_values_to_not_be_null", column=column.name)
    elif column.null_fraction is not None and table.rows:
        there, slack = 1 - column.null_fraction, max(tolerance, 1e-6)
        yield _expect(
            "expect_column_proportion_of_non_null_values_to_be_between",
            column=column.name,
            min_value=max(0.0, there - slack),
            max_value=min(1.0, there + slack),
        )
    if labels := _labels_of(facts, column.type):
        yield _expect("expect_column_values_to_be_in_set", column=column.name, value_set=labels)


def _labels_of(facts: DatabaseFacts, kind: str) -> list[str]:
    """Of an enum, whose definition has them as literals of SQL; empty for another type."""
    text = facts.definitions.get(f"type {kind.replace(chr(34), '')}", "")
    if not text.startswith("enum "):
        return []
    found = ((escaped, label.replace("''", "'")) for escaped, label in _label.findall(text))
    return [label.replace("\\\\", "\\") if escaped else label for escaped, label in found]


def _expect(kind: str, **kwargs: object) -> Expectation:
    return Expectation(type=kind, kwargs=kwargs)


def referential(facts: DatabaseFacts, *, most_rows: int = MOST_ROWS) -> dict[str, str]:
    """Name of each foreign key -> a query that answers true when no row is an orphan. A key with a
    null in it refers to nothing. Left out: those that were never validated, those whose columns are
    compared by operators of an extension, which a query may not find, and tables of more rows
    with their partitions."""
    above, found = ancestors(facts), {}
    rows = Counter({table.full_name: table.rows for table in facts.tables})
    for table in facts.tables:
        for parent in above.get(table.full_name, ()):
            rows[parent] += table.rows
    for key in foreign_keys(facts):
        if rows[key.table.full_name] > most_rows:
            continue
        joined = " AND ".join(
            f"o.{quoted(b)} = t.{quoted(a)}" for a, b in zip(key.own, key.others, strict=True)
        )
        there = " AND ".join(f"t.{quoted(a)} IS NOT NULL" for a in key.own)
        found[key.name] = (
            f"SELECT NOT EXISTS (SELECT FROM {key.from_table} t WHERE {there} "  # noqa: S608
            f"AND NOT EXISTS (SELECT FROM {key.from_other} o WHERE {joined}))"
        )
    return found


def fresh(
    wanted: Mapping[str, Fresh], snapshot_at: float, time_zone: str = "UTC"
) -> dict[str, str]:
    """Name -> a query that answers true when the newest row was young enough at the snapshot.
    `snapshot_at`: seconds since the epoch. `time_zone`: in which times without one are meant. A
    date is good until its end; what lies more than a day after the snapshot is no time of a row."""
    zone = "'" + time_zone.replace("'", "''") + "'"
    found = {}
    for table, one in wanted.items():
        column, where = quoted(one.column), as_written(table)
        oldest, newest = snapshot_at - one.within, snapshot_at + DAY_SECONDS
        found[f"{table}.{one.column} within {in_words(one.within)}"] = (
            "SELECT CASE pg_typeof(m) "  # noqa: S608
            f"WHEN 'date'::regtype THEN (m::date + 1)::timestamp AT TIME ZONE {zone} "
            f"WHEN 'timestamp'::regtype THEN m::timestamp AT TIME ZONE {zone} "
            f"ELSE m::timestamptz END >= to_timestamp({oldest:f}) "
            f"FROM (SELECT max({column}) AS m FROM {where} "
            f"WHERE {column} <= to_timestamp({newest:f})) newest"
        )
    return found
