"""What a database holds: the same of a copy by pg_dump and pg_restore, and of nothing else."""

from collections.abc import Callable

import pytest
from pg_fixtures import dumped_and_restored, sql

from blocks.pg_definitions import settled
from blocks.pg_facts import database_facts
from blocks.postgres import Server
from policy.database_compare import differences
from policy.database_facts import DatabaseFacts

pytestmark = pytest.mark.live


def facts_of(server: Server, *, hashes: bool = True) -> DatabaseFacts:
    with server.connect() as connection:
        return database_facts(connection, hashes=hashes)


def test_a_restored_copy_has_no_difference(odd_shop: Server, odd_copy: Server) -> None:
    wanted, found = facts_of(odd_shop), facts_of(odd_copy)

    assert differences(wanted, found, exact=True) == []
    assert wanted.schema_hash == found.schema_hash
    assert wanted.large_objects_hash == found.large_objects_hash
    assert len(wanted.tables) > 20
    assert len(wanted.definitions) > 150


def test_a_copy_of_the_copy_has_none_either(
    odd_shop: Server, odd_copy: Server, fresh_database: Callable[..., Server]
) -> None:
    third = fresh_database()
    dumped_and_restored(odd_copy, third)
    sql(
        third,
        f"ALTER DATABASE {third.dbname} SET timezone = 'Europe/Berlin'",
        f"ALTER DATABASE {third.dbname} SET work_mem = '5MB'",
    )

    assert differences(facts_of(odd_shop), facts_of(third), exact=True) == []


def test_facts_do_not_depend_on_the_settings_of_a_session(odd_shop: Server) -> None:
    plain = facts_of(odd_shop)
    with odd_shop.connect() as connection:
        for setting in (
            "timezone = 'Asia/Tokyo'",
            "datestyle = 'German'",
            "intervalstyle = 'sql_standard'",
            "extra_float_digits = -4",
            "bytea_output = 'escape'",
            "search_path = shop, public",
            "quote_all_identifiers = on",
            "statement_timeout = '10min'",
        ):
            connection.execute(f"SET {setting}")
        connection.commit()
        other = database_facts(connection)
        connection.rollback()
        assert connection.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)

    moving = {"lsn", "size_bytes", "tables"}
    assert other.model_dump(exclude=moving) == plain.model_dump(exclude=moving)
    assert [table.content_hash for table in other.tables] == [
        table.content_hash for table in plain.tables
    ]


def test_what_is_told(odd_shop: Server) -> None:
    facts = facts_of(odd_shop)
    table = {table.full_name: table for table in facts.tables}

    assert facts.time_zone == "Europe/Berlin"
    assert facts.settings == {"TimeZone": "Europe/Berlin", "work_mem": "5MB"}
    assert facts.encoding == "UTF8"
    assert facts.roles == ("odd_owner", "odd_reader", "postgres")
    assert set(facts.extensions) == {
        *("plpgsql", "hstore", "pg_trgm", "citext", "btree_gist", "pgcrypto", "uuid-ossp"),
    }
    assert table["shop.customers"].rows == 1500
    assert table["shop.customers"].keys == (("id",), ("mail",))
    assert table["shop.orders"].rows == 0
    assert table["shop.orders"].kind == "partitioned table"
    assert sum(one.rows for name, one in table.items() if name.startswith("shop.orders_")) == 3000
    assert table["shop.things"].rows == 50  # without its children
    assert table["shop.books"].rows == 70
    assert table["shop.nameless"].rows == 2
    assert table["shop.by_hash"].rows == 100
    assert table["shop.carts"].unlogged
    assert not table["shop.empty_yet"].populated
    assert table['Ünïcode "Schema".Tab.elle "ж"'].rows == 200
    assert len(table["shop.wide"].columns) == 300
    words = {column.name: column for column in table["shop.customers"].columns}
    assert words["id"].generated == "identity always"
    assert words["mood"].default == "'ok'::shop.mood"
    assert words["short"].collation == "shop.by_bytes"
    sequence = {one.name: one for one in facts.sequences}
    assert sequence["shop.unused"].last_value == 77
    assert not sequence["shop.unused"].is_called
    assert sequence["shop.customers_id_seq"].last_value == 100 + 5 * 1499
    assert facts.hangs_on["sequence shop.customers_id_seq"] == "shop.customers"
    assert facts.large_objects == 3


def test_without_hashes_rows_are_counted(odd_shop: Server) -> None:
    facts = facts_of(odd_shop, hashes=False)

    assert {table.content_hash for table in facts.tables} == {None}
    assert facts.large_objects_hash is None
    assert sum(table.rows for table in facts.tables) == sum(
        table.rows for table in facts_of(odd_shop).tables
    )


def test_a_column_with_the_name_of_the_alias_hides_nothing(
    fresh_database: Callable[..., Server],
) -> None:
    server = fresh_database()
    sql(server, "CREATE TABLE x (t text, y text)", "INSERT INTO x VALUES ('a', 'b')")
    before = facts_of(server)
    sql(server, "UPDATE x SET y = 'c'")

    assert [one.what for one in differences(before, facts_of(server))] == [
        "table public.x: content"
    ]


def test_a_snapshot_is_what_is_told_of(fresh_database: Callable[..., Server]) -> None:
    from psycopg import IsolationLevel

    server = fresh_database()
    sql(server, "CREATE TABLE x (n int)", "INSERT INTO x SELECT generate_series(1, 10)")
    with server.connect() as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.execute("SELECT 1")
        sql(server, "DELETE FROM x WHERE n > 5")
        facts = database_facts(connection)

        assert facts.tables[0].rows == 10
        assert connection.execute("SELECT count(*) FROM x").fetchone() is not None


def test_rows_that_are_hidden_are_an_error(odd_shop: Server) -> None:
    import psycopg

    with odd_shop.connect() as connection:
        connection.execute("GRANT pg_read_all_data TO odd_reader")
        connection.execute("SET ROLE odd_reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            database_facts(connection)
        connection.rollback()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (
            "CHECK (((s)::text = ANY ((ARRAY['a'::character varying, 'b, ]'::character varying])"
            "::text[])))",
            "CHECK (((s)::text = ANY (ARRAY[('a'::character varying)::text, "
            "('b, ]'::character varying)::text])))",
        ),
        ("x = ANY (ARRAY[1, 2])", "x = ANY (ARRAY[1, 2])"),
        ("((ARRAY[f(a, b), c[1]])::numeric(3,1)[])", "(ARRAY[(f(a, b))::numeric(3,1), "
         "(c[1])::numeric(3,1)])"),
        ("'(ARRAY['", "'(ARRAY['"),
    ],
)  # fmt: skip
def test_a_text_is_as_after_one_more_copy(first: str, then: str) -> None:
    assert settled(first) == then
    assert settled(then) == then
