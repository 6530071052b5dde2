"""A database held to expectations by Great Expectations, and to queries, on a real PostgreSQL."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.expectations import Held, hold, smoke
from blocks.pg_facts import database_facts
from blocks.pg_throwaway import throwaway
from blocks.postgres import Server
from policy.backup import Expectation, Fresh
from policy.database_facts import DatabaseFacts
from policy.errors import NotApplied
from policy.expected import default_suites, fresh, referential

pytestmark = pytest.mark.live

ODD = 'Größe.Be"stell ungen'
SCHEMA = """
CREATE SCHEMA "Größe";
CREATE EXTENSION citext;
CREATE TYPE state AS ENUM ('new', 'paid', 'sent, "late"', 'back\\slash');
CREATE TABLE customers(id serial PRIMARY KEY, mail citext UNIQUE, name varchar(40) NOT NULL,
    since timestamptz DEFAULT '2026-11-25 02:00+00', note text);
CREATE TABLE "Größe"."Be""stell ungen"(id bigint PRIMARY KEY, customer int REFERENCES customers,
    "Zu.Stand%" state NOT NULL, total numeric(12,2), tags text[], doc jsonb, "day" date, raw bytea,
    u uuid, gen numeric GENERATED ALWAYS AS (total * 2) STORED, made timestamp, ts timestamptz(3),
    mail citext REFERENCES customers(mail), "C D" int, UNIQUE (customer, "C D"));
CREATE TABLE events(id int, at date NOT NULL, customer int REFERENCES customers,
    PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2025-01-01');
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2030-01-01');
CREATE TABLE seen(event int, at date, FOREIGN KEY (event, at) REFERENCES events(id, at));
CREATE TABLE parent(id int PRIMARY KEY);
CREATE TABLE heir(extra text) INHERITS (parent);
CREATE TABLE broken(customer int);
CREATE TABLE "user"("select" int UNIQUE, "co:lon %" text, "say ""hi"" x" int UNIQUE, "X" int, x int,
    UNIQUE (x, "X"), few json);
CREATE MATERIALIZED VIEW later AS SELECT * FROM seen WITH NO DATA;
INSERT INTO customers(mail, name, note)
    SELECT 'm' || i, 'n' || i, CASE WHEN i % 4 = 0 THEN 'x' END FROM generate_series(1, 100) i;
INSERT INTO "Größe"."Be""stell ungen"(id, customer, "Zu.Stand%", total, "day", u, made, mail, "C D")
    SELECT i, nullif(1 + i % 100, 7),
    (ARRAY['new', 'sent, "late"', 'back\\slash'])[1 + i % 3]::state,
    i, '2026-11-24', md5(i::text)::uuid, '2026-11-25 01:00', 'M' || (1 + i % 100), nullif(i, 8)
    FROM generate_series(1, 500) i;
UPDATE "Größe"."Be""stell ungen" SET "C D" = NULL, customer = 1 WHERE id < 5;
INSERT INTO events SELECT i, date '2024-12-01' + i, i FROM generate_series(1, 60) i;
INSERT INTO seen SELECT id, at FROM events;
INSERT INTO parent VALUES (1), (2);
INSERT INTO heir VALUES (1, 'the same number'), (3, '');
INSERT INTO "user" SELECT g, 'x', g, g, g FROM generate_series(1, 10) g;
INSERT INTO broken VALUES (4711);
ALTER TABLE broken ADD CONSTRAINT never FOREIGN KEY (customer) REFERENCES customers NOT VALID;
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pg")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    with throwaway(folder) as server:
        with server.connect(autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        with server.at("shop").connect() as connection:
            connection.execute(SCHEMA)
        yield server.at("shop")


@pytest.fixture(scope="module")
def facts(shop: Server) -> DatabaseFacts:
    with shop.connect() as connection:
        return database_facts(connection)


def expect(kind: str, **kwargs: object) -> Expectation:
    return Expectation(type=f"expect_{kind}", kwargs=kwargs)


def test_what_follows_from_a_manifest_holds(
    shop: Server, facts: DatabaseFacts, tmp_path: Path
) -> None:
    found = hold(shop, default_suites(facts), tmp_path)
    assert [str(one) for one in found if not one.success] == []
    kinds = {(one.table, one.expectation) for one in found}
    assert (ODD, "expect_compound_columns_to_be_unique") in kinds
    assert (ODD, "expect_column_values_to_be_in_set") in kinds
    assert ("public.heir", "expect_table_row_count_to_be_between") in kinds
    assert ("public.parent", "expect_table_row_count_to_be_between") not in kinds
    assert not list(tmp_path.iterdir())


def test_what_follows_from_foreign_keys_holds(shop: Server, facts: DatabaseFacts) -> None:
    queries = referential(facts)
    assert {name.rpartition(".")[2] for name in queries} == {
        'Be"stell ungen_customer_fkey',
        "events_customer_fkey",
        "seen_event_at_fkey",
    }
    assert all(one.success for one in smoke(shop, queries))


def test_faults_are_found(shop: Server, facts: DatabaseFacts, tmp_path: Path) -> None:
    with shop.connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE damaged TEMPLATE shop")
    damaged = shop.at("damaged")
    with damaged.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM customers WHERE id = 50")
        connection.execute("ALTER TABLE customers ALTER name TYPE varchar(50)")
        connection.execute("ALTER TABLE customers DROP CONSTRAINT customers_mail_key CASCADE")
        connection.execute("INSERT INTO customers(mail, name) VALUES ('m1', 'x')")
        connection.execute("ALTER TABLE heir RENAME extra TO other")
        connection.execute("DROP TABLE broken")
    found = [one for one in hold(damaged, default_suites(facts), tmp_path) if not one.success]
    assert {
        (one.table, one.expectation, one.kwargs.get("column"))
        for one in found
        if one.table != "public.broken"
    } == {
        ("public.customers", "expect_column_values_to_be_of_type", "name"),
        ("public.customers", "expect_column_values_to_be_unique", "mail"),
        ("public.heir", "expect_table_columns_to_match_set", None),
        ("public.heir", "expect_column_values_to_be_of_type", "extra"),
        ("public.heir", "expect_column_proportion_of_non_null_values_to_be_between", "extra"),
    }
    gone = {one.error for one in found if one.table == "public.broken"}
    assert gone == {"there is no such table"}
    orphans = [one.table for one in smoke(damaged, referential(facts)) if not one.success]
    assert orphans == [
        'constraint Größe.Be"stell ungen.Be"stell ungen_customer_fkey',
        "constraint public.events.events_customer_fkey",
    ]


def test_what_people_write(shop: Server, tmp_path: Path) -> None:
    """Great Expectations' own words; also those that cannot be meant, each told by its place."""
    suites = {
        "customers": [
            expect("table_row_count_to_equal", value=100),
            expect("column_values_to_match_regex", column="mail", regex="^m[0-9]+$"),
            expect("column_values_to_match_regex", column="since", regex="^x"),  # of no text
            expect("column_values_to_be_between", column="since", min_value="2026-01-01"),
            expect("column_values_to_be_in_set", column="name", value_set=["n1", "n2"]),
            expect("column_values_to_be_unique", column="nowhere"),
            expect("column_values_to_be_unique", columns="id"),
            expect("everything_to_be_fine"),
        ],
        ODD: [
            expect("column_values_to_be_in_set", column="u", value_set=["not a uuid"]),
            expect("column_values_to_be_in_set", column="Zu.Stand%", value_set=["new"]),
            expect("column_max_to_be_between", column="id", min_value=500, max_value=5_000_000_000),
            expect("column_values_to_be_between", column="day", max_value="2026-11-24"),
        ],
        "missing.table": [expect("table_row_count_to_equal", value=0)],
    }
    found = hold(shop, suites, tmp_path)
    assert [(one.table, one.success) for one in found] == [
        *(("customers", good) for good in (True, True, False, True, False, False, False, False)),
        *((ODD, good) for good in (False, False, True, True)),
        ("missing.table", False),
    ]
    assert "operator does not exist" in found[2].error
    assert found[4].observed == "98 of 100 rows are not so"
    assert "nowhere" in found[5].error
    assert "columns" in found[6].error
    assert "everything_to_be_fine" in found[7].error
    assert "invalid input syntax for type uuid" in found[8].error
    assert found[12].error == "there is no such table"
    assert str(found[5]).startswith("customers: expect_column_values_to_be_unique nowhere: ")


def test_nothing_to_ask(shop: Server, tmp_path: Path) -> None:
    assert hold(shop, {"customers": []}, tmp_path) == []


def test_a_server_that_is_away(tmp_path: Path) -> None:
    away = Server({"host": str(tmp_path), "user": "x", "dbname": "x", "password": "s3cret"})
    with pytest.raises(NotApplied, match="Great Expectations ended with 1") as told:
        hold(away, {"a": [expect("table_row_count_to_equal", value=1)]}, tmp_path)
    assert "s3cret" not in str(told.value)


def test_too_slow(shop: Server, tmp_path: Path) -> None:
    with pytest.raises(NotApplied, match=r"did not end within 0\.1s"):
        hold(shop, {"a": [expect("table_row_count_to_equal", value=1)]}, tmp_path, 0.1)
    assert not list(tmp_path.iterdir())


def test_smoke(shop: Server) -> None:
    def asked(query: str, within: float = 5) -> Held:
        return smoke(shop, {"it": query}, within)[0]

    assert asked("SELECT count(*) = 100 FROM customers WHERE name LIKE 'n%';").success
    assert "false" in str(asked("SELECT count(*) = 99 FROM customers"))
    assert "null" in str(asked("SELECT NULL::boolean"))
    assert "something else" in str(asked("SELECT 1"))
    assert "100 rows" in str(asked("SELECT true FROM customers"))
    assert "0 rows" in str(asked("SELECT true WHERE false"))
    assert "2 columns" in str(asked("SELECT true, true"))
    assert "does not exist" in asked("SELECT true FROM nowhere").error
    assert "read-only" in asked("DELETE FROM customers RETURNING true").error
    assert "multiple commands" in asked("COMMIT; DELETE FROM broken").error
    assert "statement timeout" in asked("SELECT pg_sleep(9) IS NULL", 0.1).error


def test_freshness(shop: Server) -> None:
    snapshot = 1795572000.0  # 2026-11-25 02:00 UTC

    def asked(table: str, column: str, within: float, at: float, zone: str = "UTC") -> bool:
        wanted = {table: Fresh(column=column, within=within)}
        return smoke(shop, fresh(wanted, at, zone))[0].success

    assert asked("customers", "since", 60, snapshot)
    assert not asked("public.customers", "since", 60, snapshot + 61)
    assert asked(ODD, "made", 3600, snapshot)
    assert not asked(ODD, "made", 3600, snapshot, "Asia/Tokyo")
    assert asked(ODD, "day", 7200, snapshot)
    assert not asked(ODD, "day", 7200, snapshot + 7200)
    assert not asked("customers", "since", 2e6, snapshot - 3e5)  # it holds but times to come
    assert not asked("broken", "at", 60, snapshot)


def test_a_line_of_a_report() -> None:
    one = Held("a.b", "expect_x", {"column": "c", "value_set": ["x"]}, False, "", "why")
    assert str(one) == "a.b: expect_x c: why"
    assert json.dumps(one.kwargs)
