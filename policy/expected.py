"""What a restored database must be true of, derived from the facts of its backup: expectations of
Great Expectations, and queries that answer one true value.

Names go into SQL quoted, whatever they hold. What cannot be read with certainty is not asked: a
question that is wrong would call a good backup bad.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policy.backup import Expectation, Fresh
from policy.database_facts import DatabaseFacts, Table
from policy.quantities import in_words

LARGEST = 20
NOT_POPULATED = "not populated"  # a materialized view that nobody may read yet
PARTITIONED, FOREIGN = "partitioned table", "foreign table"


def default_suites(facts: DatabaseFacts, *, largest: int = LARGEST) -> dict[str, list[Expectation]]:
    """'schema.table' -> what it is held to, of those with the most rows: the numbers of rows of all
    tables are compared by the manifest anyway."""
    kinds, of = _kinds(facts), _parents(facts)
    parents = set(of.values())
    readable = [
        table
        for table in facts.tables
        if kinds.get(table.full_name) != FOREIGN and table.content_hash != NOT_POPULATED
    ]
    chosen = sorted(readable, key=lambda table: (-table.rows, table.full_name))[:largest]
    return {
        table.full_name: list(
            _of_table(
                table,
                kinds.get(table.full_name) == PARTITIONED,
                _key(table) in parents,
                _key(table) in of,
            )
        )
        for table in chosen
    }


def _of_table(
    table: Table, partitioned: bool, has_children: bool, is_child: bool
) -> Iterator[Expectation]:
    """Facts count the rows of a table itself, keys hold for them alone; a query sees those of its
    children too. Keys of a partitioned table hold for all of them. Rows of some partitions are
    counted with the whole."""
    yield _expected(
        "table_columns_to_match_ordered_list", column_list=[one.name for one in table.columns]
    )
    if not (partitioned or has_children or is_child):
        yield _expected("table_row_count_to_equal", value=table.rows)
    if partitioned or not has_children:
        yield from _unique(table)
    for column in table.columns:
        if column.not_null:
            yield _expected("column_values_to_not_be_null", column=column.name)


def _unique(table: Table) -> Iterator[Expectation]:
    """Not where Great Expectations 1.24 fails: by a quote in a name, and by two names of one table
    that are the same in small letters. PostgreSQL holds the keys themselves all the same."""
    alike = len({one.name.lower() for one in table.columns}) < len(table.columns)
    for key in table.keys:
        if any('"' in name for name in key):
            continue
        if len(key) == 1:
            yield _expected("column_values_to_be_unique", column=key[0])
        elif key and not alike:
            # In a unique constraint nulls differ from each other.
            yield _expected(
                "compound_columns_to_be_unique",
                column_list=list(key),
                ignore_row_if="any_value_is_missing",
            )


def _expected(name: str, **kwargs: object) -> Expectation:
    return Expectation(type=f"expect_{name}", kwargs=kwargs)


def referential(facts: DatabaseFacts) -> dict[str, str]:
    """Foreign key -> SQL that is true when every row has the one that it refers to. Not those that
    are NOT VALID, or that hold for a period."""
    keys = list(_foreign_keys(facts))
    parents = _parents(facts)
    kinds = _kinds(facts)
    asked = {(key.table, key.columns, key.other) for key in keys}
    return {
        key.name: _orphans(key, kinds)
        for key in keys
        # PostgreSQL writes a key to a partitioned table down for each of its partitions again; a
        # row needs to be in one of them only.
        if (key.table, key.columns, parents.get(key.other)) not in asked
    }


@dataclass(frozen=True)
class _ForeignKey:
    name: str
    table: tuple[str, str]  # schema, name
    columns: tuple[str, ...]
    other: tuple[str, str]
    other_columns: tuple[str, ...]
    match_full: bool


def _orphans(key: _ForeignKey, kinds: Mapping[str, str]) -> str:
    """A key holds for the rows of a table itself, without those that inherit from it."""
    same = " AND ".join(
        f"p.{quoted(theirs)} = c.{quoted(ours)}"
        for ours, theirs in zip(key.columns, key.other_columns, strict=True)
    )
    # MATCH SIMPLE: one null and it refers to nothing; MATCH FULL: all null.
    both = " OR " if key.match_full else " AND "
    refers = both.join(f"c.{quoted(column)} IS NOT NULL" for column in key.columns)
    return (
        f"SELECT NOT EXISTS (SELECT FROM {_rows_of(key.table, kinds)} c WHERE ({refers}) "  # noqa: S608
        f"AND NOT EXISTS (SELECT FROM {_rows_of(key.other, kinds)} p WHERE {same}))"
    )


def _rows_of(table: tuple[str, str], kinds: Mapping[str, str]) -> str:
    only = "ONLY " if kinds.get(".".join(table)) == "table" else ""
    return only + ".".join(map(quoted, table))


def fresh(
    wanted: Mapping[str, Fresh], snapshot_at: float, time_zone: str = "UTC"
) -> dict[str, str]:
    """What is asked -> SQL that is true when the newest row is young enough. `snapshot_at`: seconds
    since the epoch. `time_zone`: that times without one are meant in."""
    zone = "'" + time_zone.replace("'", "''") + "'"
    asked = {}
    for table, rule in wanted.items():
        since = f"to_timestamp({snapshot_at - rule.within!r})"
        asked[f"{table}.{rule.column} within {in_words(rule.within)}"] = (
            "SELECT CASE WHEN pg_typeof(m) IN ('timestamp'::regtype, 'date'::regtype) "  # noqa: S608
            f"THEN m::timestamp AT TIME ZONE {zone} ELSE m::timestamptz END >= {since} "
            f"FROM (SELECT max({quoted(rule.column)}) AS m FROM {_as_written(table)}) newest"
        )
    return asked


def quoted(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def _as_written(table: str) -> str:
    """'shop.Orders' or '"shop"."Orders"' -> SQL; without quotes it is the name as it is."""
    if '"' in table and (read := _Text(table).name()) and read[1] == len(table):
        return ".".join(map(quoted, read[0]))
    return ".".join(map(quoted, table.split(".", 1)))


def _key(table: Table) -> tuple[str, str]:
    return table.schema_name, table.name


def _kinds(facts: DatabaseFacts) -> dict[str, str]:
    return {table.full_name: table.kind for table in facts.tables}


def _parents(facts: DatabaseFacts) -> dict[tuple[str, str], tuple[str, str]]:
    """Partition or heir -> the table that it is of."""
    found = {}
    for table in facts.tables:
        text = facts.definitions.get(f"partition {table.full_name}", "").removeprefix("of ")
        text = text or facts.definitions.get(f"inheritance of {table.full_name}", "")
        if text and (read := _Text(text).name()):
            if parent := _resolved(read[0], table, facts):
                found[_key(table)] = parent
    return found


def _foreign_keys(facts: DatabaseFacts) -> Iterator[_ForeignKey]:
    mark = "constraint "
    tables = sorted(facts.tables, key=lambda table: -len(table.full_name))
    for name, text in facts.definitions.items():
        if not name.startswith(mark) or not text.startswith("FOREIGN KEY"):
            continue
        full = name.removeprefix(mark)
        own = [table for table in tables if full.startswith(f"{table.full_name}.")]
        if own and (key := _read(full, text, own[0], facts)):
            yield key


def _read(name: str, text: str, table: Table, facts: DatabaseFacts) -> _ForeignKey | None:
    """FOREIGN KEY (a, "B") REFERENCES other."Table"(x, y) MATCH FULL ON DELETE CASCADE"""
    at = _Text(text)
    if not (ours := at.columns(len("FOREIGN KEY"))):
        return None
    if not (there := re.compile(r"\s*REFERENCES\s+(ONLY\s+)?").match(text, ours[1])):
        return None
    if not (other := at.name(there.end())) or not (theirs := at.columns(other[1])):
        return None
    rest = text[theirs[1] :]
    if "NOT VALID" in rest or "NOT ENFORCED" in rest or len(ours[0]) != len(theirs[0]):
        return None
    if (to := _resolved(other[0], table, facts)) is None:
        return None
    known = {one.name for one in table.columns}
    if not known.issuperset(ours[0]):
        return None
    return _ForeignKey(name, _key(table), ours[0], to, theirs[0], "MATCH FULL" in rest)


def _resolved(name: tuple[str, ...], beside: Table, facts: DatabaseFacts) -> tuple[str, str] | None:
    """A name without a schema: where it can mean one table only, or the one beside."""
    if len(name) == 2:
        return name[0], name[1]
    same = [table for table in facts.tables if (table.name,) == name]
    near = [table for table in same if table.schema_name == beside.schema_name]
    return _key((near or same)[0]) if near or len(same) == 1 else None


_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_NAME = re.compile(rf"\s*({_IDENTIFIER}(?:\.{_IDENTIFIER})?)")
_COLUMNS = re.compile(rf"\s*\(\s*({_IDENTIFIER}(?:\s*,\s*{_IDENTIFIER})*)\s*\)")
_ONE = re.compile(_IDENTIFIER)


class _Text:
    """Names as PostgreSQL writes them: quoted where they need it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def name(self, at: int = 0) -> tuple[tuple[str, ...], int] | None:
        """-> (a name, with its schema if it is there, where it ends)"""
        return self._names(_NAME, at)

    def columns(self, at: int) -> tuple[tuple[str, ...], int] | None:
        return self._names(_COLUMNS, at)

    def _names(self, pattern: re.Pattern[str], at: int) -> tuple[tuple[str, ...], int] | None:
        if not (found := pattern.match(self._text, at)):
            return None
        return tuple(map(_plain, _ONE.findall(found[1]))), found.end()


def _plain(identifier: str) -> str:
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
