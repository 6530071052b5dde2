"""In which way a restored database is not the one that was backed up, in plain words.

What a restored dump may do without being wrong is no difference:
- a materialized view holds what its query gives now; only whether it is filled is compared,
- a sequence is ahead: it was used between the look at it and the dump. Behind is a difference,
- another major version of the server, with other versions of its extensions, words its definitions
  anew: there they must be there, and only what it does not word itself is compared,
- the time zone and settings of a server are not those of the database: only its own count.
`exact` is for a copy of a database that nobody wrote to: then the first two count too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from policy.backup_manifest import Difference
from policy.database_facts import Column, DatabaseFacts, Sequence, Table

_T = TypeVar("_T")
ABSENT = "is not there"
TIME_ZONE = "TimeZone"
OF_LARGE_OBJECTS = "large objects of "
# Texts that every version writes in the same way, because people wrote them.
NOT_WORDED = ("comment on ", "owner of ", "inheritance of ", OF_LARGE_OBJECTS, "unlogged ")
# Of another version these are other ones by default.
OF_THE_VERSION = ("owner of schema public", "grants on schema public")


def differences(
    wanted: DatabaseFacts,
    found: DatabaseFacts,
    *,
    only: Collection[str] | None = None,
    exact: bool = False,
    crashed: bool = False,
) -> list[Difference]:
    """`only`: full names of the tables that were restored, which are compared with what hangs on
    them (foreign keys to other tables and partitions of other tables left out), and nothing else.
    `exact`: see above. `crashed`: unlogged tables are empty, as after a crash or in a physical
    copy."""
    return list(_differences(wanted, found, only, exact, crashed))


def _differences(
    wanted: DatabaseFacts,
    found: DatabaseFacts,
    only: Collection[str] | None,
    exact: bool,
    crashed: bool,
) -> Iterator[Difference]:
    same_major = _major(wanted) == _major(found)
    if only is None:
        yield from _database(wanted, found, same_major)
    before, after = (_chosen(facts, only) for facts in (wanted, found))
    yield from _each(
        "table",
        {table.full_name: table for table in before.tables},
        {table.full_name: table for table in after.tables},
        lambda table: f"{table.rows:,} rows",
        lambda what, a, b: _table(what, a, b, same_major, exact, crashed),
    )
    yield from _each(
        "sequence",
        {one.name: one for one in before.sequences},
        {one.name: one for one in after.sequences},
        _position,
        lambda what, a, b: _sequence(what, a, b, exact),
    )
    if only is None:
        yield from _large_objects(wanted, found)
    left_out: tuple[str, ...] = () if same_major else OF_THE_VERSION
    if wanted.large_objects != found.large_objects:
        left_out += (OF_LARGE_OBJECTS,)  # it counts them: told already
    yield from _each(
        "",
        {name: text for name, text in before.definitions.items() if not name.startswith(left_out)},
        {name: text for name, text in after.definitions.items() if not name.startswith(left_out)},
        str,
        lambda what, a, b: (
            _one(what, a, b) if same_major or what.startswith(NOT_WORDED) else iter(())
        ),
    )


def _major(facts: DatabaseFacts) -> str:
    return facts.server_version.partition(".")[0]


def _one(what: str, wanted: str, found: str) -> Iterator[Difference]:
    if wanted != found:
        yield Difference(what=what, wanted=wanted, found=found)


def _each(
    kind: str,
    wanted: Mapping[str, _T],
    found: Mapping[str, _T],
    worded: Callable[[_T], str],
    inside: Callable[[str, _T, _T], Iterator[Difference]],
) -> Iterator[Difference]:
    """What is there without being wanted is a difference too."""
    for name in sorted({*wanted, *found}):
        what = f"{kind} {name}".strip()
        if name not in found:
            yield Difference(what=what, wanted=worded(wanted[name]), found=ABSENT)
        elif name not in wanted:
            yield Difference(what=what, wanted=ABSENT, found=worded(found[name]))
        else:
            yield from inside(what, wanted[name], found[name])


def _database(
    wanted: DatabaseFacts, found: DatabaseFacts, same_major: bool
) -> Iterator[Difference]:
    yield from _one("encoding", wanted.encoding, found.encoding)
    if _locale(wanted.collation) != _locale(found.collation):
        yield from _one("collation", wanted.collation, found.collation)
    zones = [facts.settings.get(TIME_ZONE) for facts in (wanted, found)]
    if zones[0] != zones[1]:
        yield from _one("time zone", *(zone or "none of its own" for zone in zones))
    settings = [
        {name: value for name, value in facts.settings.items() if name != TIME_ZONE}
        for facts in (wanted, found)
    ]
    yield from _each("setting", settings[0], settings[1], str, _one)
    yield from _each(
        "extension",
        wanted.extensions,
        found.extensions,
        str,
        _one if same_major else lambda what, a, b: iter(()),
    )
    for role in wanted.roles:
        # It may be there and own nothing any more, which is then told of what it owned.
        if role not in found.roles:
            yield Difference(what=f"role {role}", wanted="owns or may something", found=ABSENT)


def _locale(name: str) -> str:
    """en_US.utf8 is en_US.UTF-8."""
    return name.lower().replace("utf-8", "utf8")


def _chosen(facts: DatabaseFacts, only: Collection[str] | None) -> DatabaseFacts:
    if only is None:
        return facts
    hangs_on = facts.hangs_on
    return facts.model_copy(
        update={
            "tables": tuple(table for table in facts.tables if table.full_name in only),
            "sequences": tuple(
                one for one in facts.sequences if hangs_on.get(f"sequence {one.name}") in only
            ),
            "definitions": {
                name: text
                for name, text in facts.definitions.items()
                if hangs_on.get(name) in only and not needs_others(facts.definitions, name, only)
            },
        }
    )


def needs_others(definitions: Mapping[str, str], name: str, only: Collection[str]) -> bool:
    """It cannot be restored without another table than these."""
    text = definitions[name]
    if name.startswith("constraint ") and text.startswith("FOREIGN KEY"):
        target = text.partition(" REFERENCES ")[2]
        return not any(_begins_with(target, other, "(") for other in only)
    if name.startswith("partition "):
        return not any(_begins_with(text.removeprefix("of "), other, " ") for other in only)
    return False


def _begins_with(text: str, table: str, end: str) -> bool:
    return text.replace('"', "").startswith(table.replace('"', "") + end)


def _table(
    what: str, wanted: Table, found: Table, same_major: bool, exact: bool, crashed: bool
) -> Iterator[Difference]:
    yield from _one(f"{what}: kind", wanted.kind, found.kind)
    filled = {True: "filled", False: "not filled"}
    yield from _one(f"{what}: content", filled[wanted.populated], filled[found.populated])
    if wanted.kind != "materialized view" or (exact and wanted.populated and found.populated):
        if not (crashed and wanted.unlogged and found.rows == 0):
            yield from _content(what, wanted, found)
    before = {column.name: column for column in wanted.columns}
    after = {column.name: column for column in found.columns}
    columns = list(
        _each(
            f"{what}: column",
            before,
            after,
            _worded,
            lambda what, a, b: _column(what, a, b, same_major),
        )
    )
    yield from columns
    if not columns and list(before) != list(after):
        yield Difference(
            what=f"{what}: order of columns", wanted=", ".join(before), found=", ".join(after)
        )


def _content(what: str, wanted: Table, found: Table) -> Iterator[Difference]:
    if wanted.rows != found.rows:
        yield Difference(
            what=f"{what}: rows", wanted=f"{wanted.rows:,} rows", found=f"{found.rows:,} rows"
        )
    elif wanted.content_hash and found.content_hash and wanted.content_hash != found.content_hash:
        yield Difference(
            what=f"{what}: content",
            wanted=f"{wanted.rows:,} rows with hash {wanted.content_hash}",
            found=f"as many rows with hash {found.content_hash}",
        )


def _column(what: str, wanted: Column, found: Column, same_major: bool) -> Iterator[Difference]:
    null = {True: "not null", False: "may be null"}
    yield from _one(f"{what}: type", wanted.type, found.type)
    yield from _one(f"{what}: not null", null[wanted.not_null], null[found.not_null])
    for aspect in ("default", "generated"):
        before, after = getattr(wanted, aspect), getattr(found, aspect)
        if same_major or (before is None) != (after is None):
            yield from _one(f"{what}: {aspect}", before or "none", after or "none")
    yield from _one(
        f"{what}: collation",
        wanted.collation or "that of its type",
        found.collation or "that of its type",
    )


def _worded(column: Column) -> str:
    return column.type + (" not null" if column.not_null else "")


def _sequence(what: str, wanted: Sequence, found: Sequence, exact: bool) -> Iterator[Difference]:
    yield from _one(f"{what}: definition", wanted.definition, found.definition)
    before, after = (wanted.last_value, wanted.is_called), (found.last_value, found.is_called)
    if before == after:
        return
    up = found.increment > 0
    behind = (before[0] > after[0]) == up if before[0] != after[0] else before[1]
    if wanted.cycles and not exact:
        return  # it may have begun anew
    if behind:
        yield Difference(what=f"{what}: behind", wanted=_position(wanted), found=_position(found))
    elif exact:
        yield Difference(what=f"{what}: ahead", wanted=_position(wanted), found=_position(found))


def _position(one: Sequence) -> str:
    return f"at {one.last_value}{'' if one.is_called else ', which was not given yet'}"


def _large_objects(wanted: DatabaseFacts, found: DatabaseFacts) -> Iterator[Difference]:
    if wanted.large_objects != found.large_objects:
        yield from _one("large objects", f"{wanted.large_objects:,}", f"{found.large_objects:,}")
    elif wanted.large_objects_hash and found.large_objects_hash:
        yield from _one(
            "large objects: content", wanted.large_objects_hash, found.large_objects_hash
        )
