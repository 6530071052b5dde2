"""A copy is held against two snapshots around one place of the log."""

from typing import Any

import pytest

from policy.database_facts import Column, DatabaseFacts, Sequence, Table
from policy.wal_compare import differences
from policy.wal_facts import Churn, WalFacts

ID = Column(name="id", type="integer", not_null=True)


def table(name: str, rows: int, content: str = "0a", **parts: Any) -> Table:
    return Table(
        **{
            "schema_name": "shop",
            "name": name,
            "rows": rows,
            "content_hash": content,
            "columns": (ID,),
            **parts,
        }
    )


def sequence(value: int, increment: int = 1) -> Sequence:
    return Sequence(
        name="shop.numbers",
        last_value=value,
        is_called=True,
        increment=increment,
        definition=f"bigint START 1 INCREMENT {increment}",
    )


def facts(*tables: Table, **parts: Any) -> DatabaseFacts:
    return DatabaseFacts(
        **{
            "name": "shop",
            "server_version": "15.4",
            "encoding": "UTF8",
            "collation": "C",
            "time_zone": "UTC",
            "schema_hash": "5c",
            "tables": tables,
            "lsn": "0/1",
            **parts,
        }
    )


def wal(before: DatabaseFacts, after: DatabaseFacts, **parts: Any) -> WalFacts:
    return WalFacts(
        **{
            "system_identifier": "7",
            "timeline": 1,
            "start_lsn": "0/1",
            "stop_lsn": "0/2",
            "segments": ("000000010000000000000001",),
            "server_version": "15.4",
            "proved_lsn": "0/3",
            "at_start": (before,),
            "at_stop": (after,),
            **parts,
        }
    )


def told(of: WalFacts, found: DatabaseFacts) -> list[str]:
    return [one.what for one in differences(of, [found])]


def test_what_did_not_change_is_the_same_to_the_last_row() -> None:
    quiet = wal(facts(table("orders", 10)), facts(table("orders", 10)))
    assert told(quiet, facts(table("orders", 10), lsn="0/9")) == []
    assert told(quiet, facts(table("orders", 9)))
    assert told(quiet, facts(table("orders", 10, "0b")))
    assert told(quiet, facts())
    assert told(quiet, facts(table("orders", 10), table("more", 0)))


@pytest.mark.parametrize(("rows", "fits"), [(9, False), (10, True), (13, True), (14, False)])
def test_what_grew_lies_between(rows: int, fits: bool) -> None:
    grew = wal(facts(table("orders", 10)), facts(table("orders", 13, "0b")))
    assert (told(grew, facts(table("orders", rows, "0c"))) == []) is fits


@pytest.mark.parametrize(("rows", "fits"), [(6, False), (7, True), (18, True), (19, False)])
def test_what_came_and_went_widens_it(rows: int, fits: bool) -> None:
    churn = (Churn(database="shop", table="shop.orders", inserted=5, deleted=3),)
    grew = wal(facts(table("orders", 10)), facts(table("orders", 13, "0b")), churn=churn)
    assert (told(grew, facts(table("orders", rows, "0c"))) == []) is fits


def test_a_change_of_type_is_told_of_what_changed_too() -> None:
    text = ID.model_copy(update={"type": "text"})
    grew = wal(facts(table("orders", 10)), facts(table("orders", 13, "0b")))
    assert told(grew, facts(table("orders", 12, "0c", columns=(text,)), schema_hash="5d"))


@pytest.mark.parametrize(
    ("step", "before", "after", "found", "fits"),
    [
        (1, 10, 20, 10, True),
        (1, 10, 20, 52, True),  # the log is 32 ahead
        (1, 10, 20, 53, False),
        (1, 10, 20, 9, False),
        (-1, -10, -20, -52, True),
        (-1, -10, -20, -9, False),
        (1, 10, 3, 3, True),  # setval
    ],
)
def test_sequences_are_not_behind(
    step: int, before: int, after: int, found: int, fits: bool
) -> None:
    of = wal(facts(sequences=(sequence(before, step),)), facts(sequences=(sequence(after, step),)))
    assert (told(of, facts(sequences=(sequence(found, step),))) == []) is fits
    assert told(of, facts())  # and not lost


def test_what_was_made_or_dropped_meanwhile_may_be_there_or_not() -> None:
    made = wal(facts(), facts(table("new", 1), schema_hash="5d"))
    dropped = wal(facts(table("new", 1), schema_hash="5d"), facts())
    for of in (made, dropped):
        assert told(of, facts()) == []
        assert told(of, facts(table("new", 1), schema_hash="5d")) == []


def test_unlogged_tables_come_back_empty() -> None:
    cache = table("cache", 5, unlogged=True)
    of = wal(facts(cache), facts(cache))
    assert told(of, facts(table("cache", 0, None, unlogged=True))) == []
    of = wal(facts(cache), facts(table("cache", 6, unlogged=True)))
    assert told(of, facts(table("cache", 0, None, unlogged=True))) == []
    assert told(of, facts())  # and not lost


def test_databases_that_are_missing_or_too_many() -> None:
    of = wal(facts(), facts())
    assert [one.what for one in differences(of, [])] == ["database shop"]
    other = facts(name="other")
    assert [one.what for one in differences(of, [facts(), other])] == ["database other"]


def test_large_objects() -> None:
    of = wal(
        facts(large_objects=1, large_objects_hash="a"),
        facts(large_objects=3, large_objects_hash="b"),
    )
    assert told(of, facts(large_objects=2, large_objects_hash="c")) == []
    assert told(of, facts(large_objects=4, large_objects_hash="c"))
