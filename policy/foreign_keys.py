"""Reads foreign keys out of the definitions that PostgreSQL itself writes.

constraint shop.orders.orders_customer_fkey
FOREIGN KEY (customer) REFERENCES shop.customers(id) ON DELETE CASCADE
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policy.database_facts import Column, DatabaseFacts, Table

_identifier = r'(?:"(?:[^"]|"")+"|[^\s".,()]+)'
_list = rf"{_identifier}(?:, {_identifier})*"
_foreign = re.compile(
    rf"FOREIGN KEY \((?P<own>{_list})\) "
    rf"REFERENCES (?P<schema>{_identifier})\.(?P<table>{_identifier})\((?P<others>{_list})\)"
    rf"(?P<rest>.*)"
)
# Rows that were there before are not held to it.
_not_held = re.compile(r"\bNOT (VALID|ENFORCED)\b")


@dataclass(frozen=True)
class ForeignKey:
    name: str  # as the definitions have it
    table: Table
    own: tuple[str, ...]  # columns
    other: Table
    others: tuple[str, ...]
    from_table: str  # in SQL: ONLY where rows of children are not held to it
    from_other: str


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def as_written(table: str) -> str:
    """'shop.Orders', as it is, or '"shop"."Orders"' -> SQL"""
    if '"' in table and re.fullmatch(rf"{_identifier}(\.{_identifier})?", table):
        return ".".join(quoted(_plain(one)) for one in re.findall(_identifier, table))
    return ".".join(map(quoted, table.split(".", 1)))


def foreign_keys(facts: DatabaseFacts) -> Iterator[ForeignKey]:
    """Those that hold for every row and can be followed by plain `=`."""
    tables = {table.full_name: table for table in facts.tables}
    for name, text in facts.definitions.items():
        if not name.startswith("constraint "):
            continue
        match, table = _foreign.fullmatch(text), _table_of(name, tables)
        if match is None or table is None or _not_held.search(match["rest"]):
            continue
        other = tables.get(f"{_plain(match['schema'])}.{_plain(match['table'])}")
        own, others = _names(match["own"]), _names(match["others"])
        if other and len(own) == len(others) and _comparable(facts, table, own, other, others):
            yield ForeignKey(name, table, own, other, others, _from(table), _from(other))


def _comparable(
    facts: DatabaseFacts,
    table: Table,
    own: tuple[str, ...],
    other: Table,
    others: tuple[str, ...],
) -> bool:
    mine = {column.name: column for column in table.columns}
    theirs = {column.name: column for column in other.columns}
    return all(
        a in mine
        and b in theirs
        and mine[a].collation == theirs[b].collation
        and _has_plain_equals(facts, mine[a])
        and _has_plain_equals(facts, theirs[b])
        for a, b in zip(own, others, strict=True)
    )


def _has_plain_equals(facts: DatabaseFacts, column: Column) -> bool:
    """A type that is not PostgreSQL's own is named with its schema; enums and domains of its own
    types are compared as its own."""
    own = re.sub(r"(\(.*\))?(\[\])*$", "", column.type)
    if "." not in own:
        return True
    text = facts.definitions.get(f"type {own.replace(chr(34), '')}", "")
    base = text.removeprefix("domain of ")
    return text.startswith("enum ") or (base != text and "." not in base.partition(" ")[0])


def _from(table: Table) -> str:
    only = "ONLY " if table.kind == "table" else ""
    return f"{only}{quoted(table.schema_name)}.{quoted(table.name)}"


def ancestors(facts: DatabaseFacts) -> dict[str, set[str]]:
    """Full name of a partition or an heir -> those of its parents, near and far."""
    near: dict[str, set[str]] = {}
    for name, text in facts.definitions.items():
        if name.startswith("partition ") and text.startswith("of "):
            child = name.removeprefix("partition ")  # 'of shop.orders FOR VALUES …'
            parents = re.findall(rf"^of ({_identifier})\.({_identifier})", text)
        elif name.startswith("inheritance of "):
            child = name.removeprefix("inheritance of ")  # 'shop.base, shop.other'
            parents = re.findall(rf"({_identifier})\.({_identifier})", text)
        else:
            continue
        near[child] = {f"{_plain(schema)}.{_plain(table)}" for schema, table in parents}
    found: dict[str, set[str]] = {}
    for name in near:
        left, found[name] = set(near[name]), set()
        while left:
            parent = left.pop()
            found[name].add(parent)
            left |= near.get(parent, set()) - found[name]
    return found


def _table_of(name: str, tables: Mapping[str, Table]) -> Table | None:
    """'constraint shop.orders.orders_fkey' -> the table; its own names may hold dots."""
    words = name.removeprefix("constraint ").split(".")
    for count in range(2, len(words)):
        if table := tables.get(".".join(words[:count])):
            return table
    return None


def _names(listed: str) -> tuple[str, ...]:
    return tuple(_plain(one) for one in re.findall(_identifier, listed))


def _plain(identifier: str) -> str:
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
