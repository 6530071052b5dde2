"""What is derived from the facts of a database."""

from policy.backup import Expectation, Fresh
from policy.database_facts import Column, DatabaseFacts, Table, TableKind
from policy.expected import default_suites, fresh, referential


def table(
    name: str,
    *columns: str,
    rows: int = 1,
    keys: tuple[tuple[str, ...], ...] = (),
    kind: TableKind = "table",
) -> Table:
    """Columns: 'id!' is not null."""
    schema, _, own = name.partition(".")
    return Table(
        schema_name=schema,
        name=own,
        kind=kind,
        rows=rows,
        content_hash="0",
        columns=tuple(
            Column(name=one.rstrip("!"), type="integer", not_null=one.endswith("!"))
            for one in columns
        ),
        keys=keys,
    )


def facts(*tables: Table, **definitions: str) -> DatabaseFacts:
    return DatabaseFacts(
        name="shop",
        server_version="15.4",
        encoding="UTF8",
        collation="C",
        time_zone="UTC",
        schema_hash="0",
        tables=tables,
        lsn="0/0",
        definitions={name.replace("__", " "): text for name, text in definitions.items()},
    )


def keys(*tables: Table, **texts: str) -> dict[str, str]:
    """'shop.orders.fk' -> its definition."""
    return referential(facts(*tables, **{f"constraint {k}": text for k, text in texts.items()}))


def names(suite: list[Expectation]) -> list[str]:
    return [one.type.removeprefix("expect_") for one in suite]


def test_a_table_is_held_to_its_columns_rows_keys_and_not_null() -> None:
    orders = table("shop.orders", "id!", "a", "b", rows=7, keys=(("id",), ("a", "b")))
    suites = default_suites(facts(orders))
    assert names(suites["shop.orders"]) == [
        "table_columns_to_match_ordered_list",
        "table_row_count_to_equal",
        "column_values_to_be_unique",
        "compound_columns_to_be_unique",
        "column_values_to_not_be_null",
    ]
    assert suites["shop.orders"][1].kwargs == {"value": 7}
    assert suites["shop.orders"][3].kwargs["ignore_row_if"] == "any_value_is_missing"


def test_keys_that_great_expectations_cannot_ask_for() -> None:
    asked = table("s.t", "a", "A", 'q"', "b", keys=(('q"',), ("a", "b"), ("b",)))
    found = default_suites(facts(asked))["s.t"]
    assert [one.kwargs for one in found if "unique" in one.type] == [{"column": "b"}]


def test_only_the_largest() -> None:
    tables = [table(f"s.t{number}", "a", rows=number) for number in range(30)]
    assert list(default_suites(facts(*tables), largest=2)) == ["s.t29", "s.t28"]


def test_rows_of_a_parent_are_not_those_that_a_query_sees() -> None:
    parent = table("s.events", "id!", rows=0, keys=(("id",),), kind="partitioned table")
    heir, part, old = (table(f"s.{name}", "id", rows=2) for name in ("heir", "part", "old"))
    base = table("s.base", "id!", rows=1, keys=(("id",),))
    suites = default_suites(
        facts(
            *(parent, heir, part, old, base),
            **{
                "partition s.part": "of s.events FOR VALUES IN (1)",
                "inheritance of s.heir": "s.base",
            },
        )
    )
    assert "table_row_count_to_equal" not in names(suites["s.events"])
    assert "column_values_to_be_unique" in names(suites["s.events"])
    assert "table_row_count_to_equal" not in names(suites["s.base"])
    assert "column_values_to_be_unique" not in names(suites["s.base"])
    assert "table_row_count_to_equal" not in names(suites["s.part"])
    assert "table_row_count_to_equal" in names(suites["s.old"])


def test_what_cannot_be_read_there_is_not_asked() -> None:
    far = table("s.far", "id", kind="foreign table")
    view = table("s.view", "id").model_copy(update={"content_hash": "not populated"})
    assert default_suites(facts(far, view)) == {}


def test_a_foreign_key() -> None:
    orders, items = table("shop.orders", "id"), table("shop.items", "order_id")
    text = "FOREIGN KEY (order_id) REFERENCES shop.orders(id) ON DELETE CASCADE"
    assert keys(orders, items, **{"shop.items.fk": text}) == {
        "shop.items.fk": 'SELECT NOT EXISTS (SELECT FROM ONLY "shop"."items" c WHERE '
        '(c."order_id" IS NOT NULL) AND NOT EXISTS (SELECT FROM ONLY "shop"."orders" p '
        'WHERE p."id" = c."order_id"))'
    }


def test_names_of_all_kinds() -> None:
    there = table('Lädchen.Order "x"', "Größe", "b c")
    here = table("s.a.b", 'x"; DROP', "y,(z)")
    text = (
        'FOREIGN KEY ("x""; DROP", "y,(z)") REFERENCES "Lädchen"."Order ""x"""("Größe", "b c") '
        "MATCH FULL DEFERRABLE"
    )
    found = keys(there, here, **{"s.a.b.the.key": text})["s.a.b.the.key"]
    assert 'FROM ONLY "s"."a.b" c' in found
    assert 'FROM ONLY "Lädchen"."Order ""x""" p' in found
    assert 'p."Größe" = c."x""; DROP" AND p."b c" = c."y,(z)"' in found
    assert '(c."x""; DROP" IS NOT NULL OR c."y,(z)" IS NOT NULL)' in found


def test_a_name_without_schema_is_the_one_beside_or_the_only_one() -> None:
    here = table("a.items", "o")
    text = "FOREIGN KEY (o) REFERENCES orders(id)"
    asked = {"a.items.fk": text}
    assert '"b"."orders"' in keys(here, table("b.orders", "id"), **asked)["a.items.fk"]
    both = (table("b.orders", "id"), table("a.orders", "id"))
    assert '"a"."orders"' in keys(here, *both, **asked)["a.items.fk"]
    assert keys(here, table("b.orders", "id"), table("c.orders", "id"), **asked) == {}


def test_a_key_to_a_partition_that_stands_for_one_to_the_whole() -> None:
    items, part = (table(f"s.{name}", "o", "id") for name in ("items", "part"))
    whole = table("s.whole", "o", "id", kind="partitioned table")
    found = referential(
        facts(
            *(items, whole, part),
            **{
                "constraint s.items.fk": "FOREIGN KEY (o) REFERENCES s.whole(id)",
                "constraint s.items.fk1": "FOREIGN KEY (o) REFERENCES s.part(id)",
                "constraint s.items.own": "FOREIGN KEY (id) REFERENCES s.part(id)",
                "partition s.part": "of s.whole DEFAULT",
            },
        )
    )
    assert sorted(found) == ["s.items.fk", "s.items.own"]
    assert 'FROM ONLY "s"."items" c' in found["s.items.fk"]
    assert 'FROM "s"."whole" p' in found["s.items.fk"]


def test_what_cannot_be_read_with_certainty_is_not_asked() -> None:
    here, there = table("s.a", "x", "y"), table("s.b", "x", "y")
    for text in (
        "FOREIGN KEY (x) REFERENCES s.b(x) NOT VALID",
        "FOREIGN KEY (x, PERIOD y) REFERENCES s.b(x, PERIOD y)",
        "FOREIGN KEY (x) REFERENCES s.b",
        "FOREIGN KEY (x) REFERENCES s.b(x, y)",
        "FOREIGN KEY (unknown) REFERENCES s.b(x)",
        "FOREIGN KEY (",
        "CHECK (x > 0)",
    ):
        assert keys(here, there, **{"s.a.fk": text}) == {}, text
    assert keys(here, **{"of.another.fk": "FOREIGN KEY (x) REFERENCES s.a(x)"}) == {}


def test_fresh() -> None:
    rule = Fresh(column='a"t', within=3600)  # type: ignore[arg-type]
    [(name, query)] = fresh({"shop.Orders": rule}, 7200.0, "Europe/'x").items()
    assert name == 'shop.Orders.a"t within 1h'
    assert 'max("a""t") AS m FROM "shop"."Orders"' in query
    assert "to_timestamp(3600.0)" in query
    assert "AT TIME ZONE 'Europe/''x'" in query
    assert '"a.b"."c"' in next(iter(fresh({'"a.b".c': rule}, 0.0).values()))
    assert '"orders"' in next(iter(fresh({"orders": rule}, 0.0).values()))
