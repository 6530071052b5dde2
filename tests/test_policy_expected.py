"""What follows from a manifest, without a database."""

from typing import Any

import pytest

from policy.backup import Expectation, Fresh
from policy.database_facts import Column, DatabaseFacts, Table
from policy.expected import LARGEST, MOST_ROWS, default_suites, fresh, referential


def column(name: str, kind: str = "integer", **more: Any) -> Column:
    return Column(name=name, type=kind, not_null=more.pop("not_null", False), **more)


def table(name: str, *columns: Column, rows: int = 10, **more: Any) -> Table:
    schema, _, short = name.rpartition(".")
    hashed = more.pop("content_hash", "00")
    return Table(
        schema_name=schema or "public",
        name=short,
        rows=rows,
        content_hash=hashed,
        columns=columns or (column("id"),),
        **more,
    )


def facts(*tables: Table, **definitions: str) -> DatabaseFacts:
    return DatabaseFacts(
        name="shop",
        server_version="15.1",
        encoding="UTF8",
        collation="C",
        time_zone="Europe/Berlin",
        definitions={name.replace("__", " "): text for name, text in definitions.items()},
        schema_hash="",
        tables=tables,
        lsn="0/1",
    )


def asked(suite: list[Expectation], kind: str) -> list[dict[str, Any]]:
    return [one.kwargs for one in suite if one.type == f"expect_{kind}"]


def test_a_thousand_tables_are_asked_in_minutes() -> None:
    many = facts(*(table(f"t{n}", rows=n) for n in range(1000)))
    suites = default_suites(many)
    assert list(suites) == [f"public.t{n}" for n in range(999, 999 - LARGEST, -1)]


def test_a_table() -> None:
    orders = table(
        "orders",
        column("id", not_null=True),
        column("note", "character varying(40)", null_fraction=0.25),
        column("state", "public.state"),
        column("place", "public.geometry"),
        keys=(("id",), ("note", "state")),
    )
    label = "enum 'new', 'sent, ''late''', E'back\\\\slash'"
    suite = default_suites(facts(orders, **{"type public.state": label}))["public.orders"]
    assert asked(suite, "table_columns_to_match_ordered_list") == [
        {"column_list": ["id", "note", "state", "place"]}
    ]
    assert asked(suite, "column_values_to_be_of_type") == [
        {"column": "id", "type_": "INTEGER"},
        {"column": "note", "type_": "VARCHAR(40)"},
    ]
    assert asked(suite, "table_row_count_to_be_between") == [{"min_value": 10, "max_value": 10}]
    assert asked(suite, "column_values_to_not_be_null") == [{"column": "id"}]
    share = asked(suite, "column_proportion_of_non_null_values_to_be_between")[0]
    assert share["min_value"] < 0.75 < share["max_value"]
    assert asked(suite, "column_values_to_be_in_set") == [
        {"column": "state", "value_set": ["new", "sent, 'late'", "back\\slash"]}
    ]
    assert asked(suite, "column_values_to_be_unique") == [{"column": "id"}]
    assert asked(suite, "compound_columns_to_be_unique")[0]["column_list"] == ["note", "state"]


def test_bounds_that_are_wider() -> None:
    suite = default_suites(facts(table("a", rows=99)), tolerance=0.1)["public.a"]
    assert asked(suite, "table_row_count_to_be_between") == [{"min_value": 89, "max_value": 109}]


def test_keys_of_a_very_large_table_are_not_sorted() -> None:
    large = table("a", rows=MOST_ROWS + 1, keys=(("id",),))
    suite = default_suites(facts(large))["public.a"]
    assert not asked(suite, "column_values_to_be_unique")
    assert asked(suite, "table_row_count_to_be_between")


def test_what_cannot_be_asked_of_a_sound_copy() -> None:
    """Partitioned and foreign tables and views are left out; of a parent no rows are counted; an
    heir may have its columns in another order."""
    found = default_suites(
        facts(
            table("whole", kind="partitioned table"),
            table("far", kind="foreign table"),
            table("view", kind="materialized view", populated=False),
            *(table(name) for name in ("parent", "heir", "part")),
            **{
                "inheritance of public.heir": "public.parent",
                "partition public.part": "of public.whole FOR VALUES IN ('a.b')",
            },
        )
    )
    assert set(found) == {"public.parent", "public.heir", "public.part"}
    assert not asked(found["public.parent"], "table_row_count_to_be_between")
    for name in ("public.heir", "public.part"):
        assert asked(found[name], "table_row_count_to_be_between")
        assert asked(found[name], "table_columns_to_match_set")
        assert not asked(found[name], "table_columns_to_match_ordered_list")


def test_a_foreign_key_as_a_query() -> None:
    there = facts(
        table("a.customers", column("Id"), column("b"), kind="partitioned table"),
        table("Größe.order", column("c u"), column("b")),
        **{
            "constraint Größe.order.fk": 'FOREIGN KEY ("c u", b) REFERENCES a.customers("Id", b) '
            "MATCH FULL ON DELETE SET NULL",
        },
    )
    assert referential(there) == {
        "constraint Größe.order.fk": 'SELECT NOT EXISTS (SELECT FROM ONLY "Größe"."order" t WHERE '
        't."c u" IS NOT NULL AND t."b" IS NOT NULL AND NOT EXISTS (SELECT FROM "a"."customers" o '
        'WHERE o."Id" = t."c u" AND o."b" = t."b"))'
    }


@pytest.mark.parametrize(
    ("text", "kind", "rows"),
    [
        ("FOREIGN KEY (a) REFERENCES public.b(id) NOT VALID", "integer", 1),
        ("FOREIGN KEY (a) REFERENCES public.b(id)", "public.citext", 1),
        ("FOREIGN KEY (a) REFERENCES public.b(id)", "integer", MOST_ROWS + 1),
        ("FOREIGN KEY (a) REFERENCES public.gone(id)", "integer", 1),
        ("FOREIGN KEY (a, PERIOD p) REFERENCES public.b(id, PERIOD p)", "integer", 1),
        ("CHECK ((a > 0))", "integer", 1),
    ],
)
def test_foreign_keys_that_are_not_followed(text: str, kind: str, rows: int) -> None:
    there = facts(
        table("t", column("a", kind), rows=rows),
        table("b", column("id", kind)),
        **{"constraint public.t.fk": text},
    )
    assert referential(there) == {}


def test_rows_of_partitions_count_for_the_whole() -> None:
    parts = [table(f"p{n}", column("a"), rows=MOST_ROWS // 2) for n in range(3)]
    there = facts(
        table("t", column("a"), rows=0, kind="partitioned table"),
        table("b", column("id")),
        *parts,
        **{f"partition public.p{n}": "of public.t DEFAULT" for n in range(3)},
        **{"constraint public.t.fk": "FOREIGN KEY (a) REFERENCES public.b(id)"},
    )
    assert referential(there) == {}
    assert list(referential(there, most_rows=2 * MOST_ROWS)) == ["constraint public.t.fk"]


@pytest.mark.parametrize(
    ("definition", "followed"),
    [
        ("enum 'a'", True),
        ("domain of text", True),
        ("domain of public.citext", False),
        ("base", False),
    ],
)
def test_types_of_ones_own(definition: str, followed: bool) -> None:
    there = facts(
        table("t", column("a", "public.kind")),
        table("b", column("id", "public.kind")),
        **{
            "type public.kind": definition,
            "constraint public.t.fk": "FOREIGN KEY (a) REFERENCES public.b(id)",
        },
    )
    assert bool(referential(there)) is followed


def test_keys_that_great_expectations_cannot_ask_for() -> None:
    columns = [column(name) for name in ("a", "A", 'q"', "b")]
    asked_for = table("t", *columns, keys=(('q"',), ("a", "b"), ("b",)))
    found = default_suites(facts(asked_for))["public.t"]
    assert [one.kwargs for one in found if "unique" in one.type] == [{"column": "b"}]


def test_names_of_all_kinds() -> None:
    there = table('Lädchen.Order "x"', column("Größe"), column("b c"))
    here = Table(
        schema_name="s",
        name="a.b",
        rows=1,
        content_hash="0",
        columns=(column('x"; DROP'), column("y,(z)")),
    )
    text = 'FOREIGN KEY ("x""; DROP", "y,(z)") REFERENCES "Lädchen"."Order ""x"""("Größe", "b c")'
    found = referential(facts(there, here, **{"constraint s.a.b.the.key": text}))
    query = found["constraint s.a.b.the.key"]
    assert 'FROM ONLY "s"."a.b" t' in query
    assert 'FROM ONLY "Lädchen"."Order ""x""" o' in query
    assert 'o."Größe" = t."x""; DROP" AND o."b c" = t."y,(z)"' in query


def test_freshness() -> None:
    rule = Fresh(column='a"t', within=3600)
    [(name, query)] = fresh({"shop.Orders": rule}, 7200.0, "Europe/'x").items()
    assert name == 'shop.Orders.a"t within 1h'
    assert 'max("a""t") AS m FROM "shop"."Orders"' in query
    assert "to_timestamp(3600.000000)" in query
    assert "AT TIME ZONE 'Europe/''x'" in query
    assert '"a.b"."c"' in next(iter(fresh({'"a.b".c': rule}, 0.0).values()))
    assert 'FROM "orders" WHERE' in next(iter(fresh({"orders": rule}, 0.0).values()))
