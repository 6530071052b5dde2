"""Whether a server that was recovered to the proved place of its log holds what was there then.

What is the same in both snapshots around that place must be the same in the copy, to the last row.
What differs lies between: a table may have the rows of either, less what was deleted and more than
what was inserted meanwhile; a sequence is not behind the earlier one.
"""

from collections.abc import Iterable, Iterator, Mapping

from policy.backup_manifest import Difference
from policy.database_compare import differences as database_differences
from policy.database_facts import Column, DatabaseFacts, Sequence, Table
from policy.wal_facts import WalFacts

# The log runs ahead of a sequence: a server that recovers goes on behind what it logged
# (SEQ_LOG_VALS in src/backend/commands/sequence.c).
LOGGED_AHEAD = 32


def differences(wal: WalFacts, found: Iterable[DatabaseFacts]) -> list[Difference]:
    """`found`: the facts of each database, at `wal.proved_lsn`. Empty: nothing differs."""
    by_name = {one.name: one for one in found}
    before = {one.name: one for one in wal.at_start}
    told: list[Difference] = []
    for after in wal.at_stop:
        name = after.name
        if name not in by_name:
            told.append(Difference(what=f"database {name}", wanted="there", found="missing"))
            continue
        if name not in before:
            continue  # made or renamed between the snapshots: nothing is known of it
        mine = _differences(wal, before[name], after, by_name[name])
        told += [one.model_copy(update={"what": f"{name}: {one.what}"}) for one in mine]
    told += [
        Difference(what=f"database {name}", wanted="none", found="there")
        for name in sorted(by_name.keys() - before.keys() - {one.name for one in wal.at_stop})
    ]
    return told


def _differences(
    wal: WalFacts, before: DatabaseFacts, after: DatabaseFacts, found: DatabaseFacts
) -> list[Difference]:
    told: list[Difference] = []
    earlier, later = ({table.full_name: table for table in one.tables} for one in (before, after))
    churn = {
        one.table: (one.inserted, one.deleted) for one in wal.churn if one.database == after.name
    }
    held: list[Table] = []  # what is held against the wanted
    for table in found.tables:
        name = table.full_name
        old, new = earlier.get(name), later.get(name)
        if (old is None) != (new is None):
            continue  # made or dropped between the snapshots
        if old and new and not _same_content(old, new):
            if not table.unlogged:  # which a copy has empty
                told += _rows(table, old, new, churn.get(name, (0, 0)))
            table = _with_content_of(new, table)
        held.append(table)
    told += _sequences(before, after, found)
    wanted = after.model_copy(
        update={
            "tables": tuple(table for table in after.tables if table.full_name in earlier),
            "sequences": (),
        }
    )
    copy = found.model_copy(update={"tables": tuple(held), "sequences": ()})
    if _large_objects(before) != _large_objects(after):
        least, most = sorted((before.large_objects, after.large_objects))
        told += _range("large objects", found.large_objects, least, most)
        kept = {
            "large_objects": after.large_objects,
            "large_objects_hash": after.large_objects_hash,
        }
        copy = copy.model_copy(update=kept)
    if before.schema_hash != after.schema_hash:
        wanted, copy = _without_changed_schema(before, wanted, copy)
    return [*told, *database_differences(wanted, copy, exact=True, crashed=True)]


def _rows(table: Table, old: Table, new: Table, churn: tuple[int, int]) -> list[Difference]:
    inserted, deleted = churn
    least, most = sorted((old.rows, new.rows))
    what = f"table {table.full_name}: rows"
    return _range(what, table.rows, max(0, least - deleted), most + inserted)


def _sequences(
    before: DatabaseFacts, after: DatabaseFacts, found: DatabaseFacts
) -> Iterator[Difference]:
    """Each from where it was first to where it was then, and what the log runs ahead."""
    later, there = ({one.name: one for one in facts.sequences} for facts in (after, found))
    steady = [(one, later[one.name]) for one in before.sequences if one.name in later]
    for first, last in steady:
        what = f"sequence {first.name}"
        if (copy := there.get(first.name)) is None:
            yield Difference(what=what, wanted="there", found="missing")
            continue
        if first.definition == last.definition and copy.definition != first.definition:
            yield Difference(what=what, wanted=first.definition, found=copy.definition)
        yield from _position(what, first, last, copy)
    known = {one.name for one in (*before.sequences, *after.sequences)}
    for name in sorted(there.keys() - known):
        yield Difference(what=f"sequence {name}", wanted="none", found="there")


def _position(what: str, first: Sequence, last: Sequence, found: Sequence) -> Iterator[Difference]:
    step = last.increment
    if first == last and not first.is_called:  # nobody took a number: nothing runs ahead
        most = last.last_value
    else:
        most = last.last_value + LOGGED_AHEAD * step
    if (last.last_value - first.last_value) * step < 0:
        most = max(first.last_value, most, key=lambda one: one * step)  # set back, or begun anew
        least = last.last_value
    else:
        least = first.last_value
    if found.last_value * step < least * step:
        yield Difference(
            what=f"{what}: behind", wanted=f"at {least}", found=f"at {found.last_value}"
        )
    elif found.last_value * step > most * step:
        yield Difference(what=f"{what}: ahead", wanted=f"at {most}", found=f"at {found.last_value}")


def _same_content(one: Table, other: Table) -> bool:
    return (one.rows, one.content_hash) == (other.rows, other.content_hash)


def _with_content_of(wanted: Table, found: Table) -> Table:
    """The shape of what was found, with the content that is wanted: it was held against bounds."""
    return found.model_copy(update={"rows": wanted.rows, "content_hash": wanted.content_hash})


def _range(what: str, found: int, least: int, most: int) -> list[Difference]:
    if least <= found <= most:
        return []
    wanted = str(least) if least == most else f"{least} to {most}"
    return [Difference(what=what, wanted=wanted, found=str(found))]


def _large_objects(facts: DatabaseFacts) -> tuple[int, str | None]:
    return facts.large_objects, facts.large_objects_hash


def _without_changed_schema(
    before: DatabaseFacts, wanted: DatabaseFacts, found: DatabaseFacts
) -> tuple[DatabaseFacts, DatabaseFacts]:
    """Somebody changed the schema between the snapshots: only what is the same in both counts."""
    columns = {table.full_name: table.columns for table in before.tables}
    steady = {
        table.full_name
        for table in wanted.tables
        if _shape(table.columns) == _shape(columns.get(table.full_name, ()))
    }
    definitions = dict(before.definitions.items() & wanted.definitions.items())

    def reduced(facts: DatabaseFacts, definitions: Mapping[str, str]) -> DatabaseFacts:
        return facts.model_copy(
            update={
                "schema_hash": "",
                "definitions": dict(definitions),
                "tables": tuple(one for one in facts.tables if one.full_name in steady),
                "extensions": {},
                "roles": (),
            }
        )

    here = {name: text for name, text in found.definitions.items() if name in definitions}
    return reduced(wanted, definitions), reduced(found, here)


def _shape(columns: Iterable[Column]) -> list[Column]:
    return [column.model_copy(update={"null_fraction": None}) for column in columns]
