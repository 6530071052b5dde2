"""Each planted change of a restored copy is told as what it is, and nothing besides."""

from collections.abc import Callable

import pytest

from blocks.pg_facts import database_facts
from blocks.postgres import Server
from policy.database_compare import ABSENT, differences
from policy.database_facts import Column, DatabaseFacts, Sequence, Table

Fresh = Callable[..., Server]

# Name -> statements, and what must be told, no more and no less.
PLANTED: dict[str, tuple[list[str], list[str]]] = {
    "a row is gone": (
        ["DELETE FROM shop.rooms WHERE room = 1 AND lower(during) = '2026-01-02+00'"],
        ["table shop.rooms: rows"],
    ),
    "all rows are gone": (["DELETE FROM shop.carts"], ["table shop.carts: rows"]),
    "a row is changed": (
        ["UPDATE shop.things SET label = label || ' ' WHERE id = 7 AND tableoid = "
         "'shop.things'::regclass"],
        ["table shop.things: content"],
    ),
    "two rows swapped values": (
        ["UPDATE ONLY shop.things SET label = CASE id WHEN 1 THEN 'Ding 2' ELSE 'Ding 1' END "
         "WHERE id IN (1, 2)"],
        ["table shop.things: content"],
    ),
    "an empty text is null": (
        ["ALTER TABLE shop.customers DISABLE TRIGGER USER",
         "UPDATE shop.customers SET t = NULL WHERE id = 105",
         "ALTER TABLE shop.customers ENABLE TRIGGER USER"],
        ["table shop.customers: content"],
    ),
    "times are an hour off": (
        ["UPDATE shop.carts SET filled = filled + interval '1 hour'"],
        ["table shop.carts: content"],
    ),
    "a row of a partition": (
        ["DELETE FROM shop.orders WHERE id = 1"], ["table shop.orders_rest: rows"],
    ),
    "a row of a table without columns": (
        ["DELETE FROM shop.nameless WHERE ctid = '(0,1)'"], ["table shop.nameless: rows"],
    ),
    "a table is gone": (
        ["DROP TABLE shop.nameless"], ["owner of table shop.nameless", "table shop.nameless"],
    ),
    "a table too much": (
        ["CREATE TABLE public.more (n int)"], ["owner of table public.more", "table public.more"],
    ),
    "a column's type": (
        ["ALTER TABLE shop.payments ALTER method TYPE varchar(30)"],
        ["table shop.payments: column method: type",
         "constraint shop.payments.known"],
    ),
    "a column's type, the same words": (
        ["ALTER TABLE shop.carts ALTER id TYPE bigint"],
        ["table shop.carts: column id: type"],
    ),
    "a time without its zone": (
        ["ALTER TABLE shop.carts ALTER filled TYPE timestamp"],
        ["table shop.carts: column filled: type", "table shop.carts: content"],
    ),
    "a column is gone": (
        ["ALTER TABLE shop.rooms DROP title CASCADE"],
        ["table shop.rooms: column title", "table shop.rooms: content",
         "policy shop.rooms.reading", "grants on column shop.rooms.title"],
    ),
    "a default": (
        ["ALTER TABLE shop.customers ALTER mood SET DEFAULT 'sad'"],
        ["table shop.customers: column mood: default"],
    ),
    "a default is gone": (
        ["ALTER TABLE shop.orders ALTER number DROP DEFAULT"],
        [f"table shop.{name}: column number: default" for name in
         ("orders", "orders_2024", "orders_2025", "orders_2026", "orders_2026_0",
          "orders_2026_1", "orders_2027", "orders_rest")],
    ),
    "not null": (
        ["ALTER TABLE shop.customers ALTER status DROP NOT NULL"],
        ["table shop.customers: column status: not null"],
    ),
    "a generated column is a plain one": (
        ["ALTER TABLE shop.customers ALTER words DROP EXPRESSION"],
        ["table shop.customers: column words: generated"],
    ),
    "an index": (["DROP INDEX shop.customers_open"], ["index shop.customers_open"]),
    "an index of the same name": (
        ["DROP INDEX shop.customers_key", "CREATE INDEX customers_key ON shop.customers (key)"],
        ["index shop.customers_key"],
    ),
    "a unique constraint": (
        ["ALTER TABLE shop.customers DROP CONSTRAINT customers_mail_key"],
        ["constraint shop.customers.customers_mail_key", "index shop.customers_mail_key"],
    ),
    "a foreign key": (
        ["ALTER TABLE shop.payments DROP CONSTRAINT payments_order_id_placed_fkey"],
        ["constraint shop.payments.payments_order_id_placed_fkey"],
    ),
    "a check": (
        ["ALTER TABLE shop.customers DROP CONSTRAINT customers_status_check"],
        ["constraint shop.customers.customers_status_check"],
    ),
    "a check that now holds for all": (
        ["ALTER TABLE shop.payments VALIDATE CONSTRAINT known"],
        ["constraint shop.payments.known"],
    ),
    "an exclusion": (
        ["ALTER TABLE shop.rooms DROP CONSTRAINT one_at_a_time"],
        ["constraint shop.rooms.one_at_a_time", "index shop.one_at_a_time"],
    ),
    "a sequence is behind": (
        ["SELECT setval('shop.customers_id_seq', 100)"],
        ["sequence shop.customers_id_seq: behind"],
    ),
    "a sequence is ahead": (
        ["SELECT nextval('shop.unused')"], ["sequence shop.unused: ahead"],
    ),
    "a sequence that counts down": (
        ["SELECT nextval('shop.numbers')"], ["sequence shop.numbers: ahead"],
    ),
    "a sequence is gone": (
        ["DROP SEQUENCE shop.unused"], ["owner of sequence shop.unused", "sequence shop.unused"],
    ),
    "a sequence's steps": (
        ["ALTER SEQUENCE shop.unused INCREMENT 2"], ["sequence shop.unused: definition"],
    ),
    "a large object": (
        ["SELECT lo_unlink(900002)"], ["large objects"],
    ),
    "a byte of a large object": (
        ["SELECT lo_put(900001, 4000, '\\x00')"], ["large objects: content"],
    ),
    "zeros at the end of a large object": (
        ["SELECT lo_put(900002, 100, '\\x00')"], ["large objects: content"],
    ),
    "a view": (
        ["CREATE OR REPLACE VIEW shop.own WITH (security_barrier) AS SELECT name FROM "
         "shop.customers WHERE name = session_user WITH LOCAL CHECK OPTION"],
        ["view shop.own"],
    ),
    "an option of a view": (
        ["ALTER VIEW shop.own RESET (security_barrier)"], ["options of shop.own"],
    ),
    "a materialized view is empty": (
        ["REFRESH MATERIALIZED VIEW shop.per_mood WITH NO DATA"],
        ["table shop.per_mood: content"],
    ),
    "a function's body": (
        ["CREATE OR REPLACE FUNCTION shop.twice(x integer) RETURNS integer LANGUAGE sql "
         "IMMUTABLE AS 'SELECT x * 3'"],
        ["function shop.twice(x integer)"],
    ),
    "a function's rights": (
        ["GRANT EXECUTE ON FUNCTION shop.twice(integer) TO PUBLIC"],
        ["grants on function shop.twice(x integer)"],
    ),
    "a procedure": (
        ["DROP PROCEDURE shop.nothing"],
        ["owner of procedure shop.nothing(INOUT x text)",
         "procedure shop.nothing(INOUT x text)"],
    ),
    "an aggregate": (
        ["CREATE OR REPLACE AGGREGATE shop.product(numeric) (sfunc = numeric_mul, "
         "stype = numeric, initcond = '2')"],
        ["aggregate shop.product(numeric)"],
    ),
    "a trigger sleeps": (
        ["ALTER TABLE shop.customers DISABLE TRIGGER touched"], ["trigger shop.customers.touched"],
    ),
    "a rule": (["DROP RULE no_delete ON shop.own"], ["rule shop.own.no_delete"]),
    "a policy": (
        ["ALTER POLICY reading ON shop.rooms TO odd_reader"], ["policy shop.rooms.reading"],
    ),
    "row security": (
        ["ALTER TABLE shop.rooms DISABLE ROW LEVEL SECURITY"], ["row security of shop.rooms"],
    ),
    "a setting": (["ALTER DATABASE {name} SET work_mem = '6MB'"], ["setting work_mem"]),
    "the time zone": (["ALTER DATABASE {name} SET timezone = 'UTC'"], ["time zone"]),
    "the time zone is the server's": (["ALTER DATABASE {name} RESET timezone"], ["time zone"]),
    "an extension": (["DROP EXTENSION pgcrypto"], ["extension pgcrypto"]),
    "another version of an extension": (
        ["DROP EXTENSION pgcrypto", "CREATE EXTENSION pgcrypto VERSION '1.3'",
         "UPDATE pg_extension SET extversion = '1.2' WHERE extname = 'pgcrypto'"],
        ["extension pgcrypto"],
    ),
    "an owner": (
        ["ALTER TABLE shop.things OWNER TO odd_owner"], ["owner of table shop.things"],
    ),
    "an owner of a large object": (
        ["ALTER LARGE OBJECT 900002 OWNER TO odd_owner"],
        ["large objects of odd_owner", "large objects of postgres"],
    ),
    "a grant": (
        ["REVOKE SELECT ON shop.good FROM PUBLIC"], ["grants on view shop.good"],
    ),
    "a grant on a column": (
        ["REVOKE SELECT (title) ON shop.rooms FROM odd_reader"],
        ["grants on column shop.rooms.title"],
    ),
    "default rights": (
        ["ALTER DEFAULT PRIVILEGES IN SCHEMA shop REVOKE SELECT ON TABLES FROM odd_reader"],
        ["default grants on tables in schema shop by postgres"],
    ),
    "a label of an enum": (
        ["ALTER TYPE shop.mood ADD VALUE 'meh' BEFORE 'ok'"], ["type shop.mood"],
    ),
    "a domain's check": (
        ["ALTER DOMAIN shop.price DROP CONSTRAINT not_negative"], ["type shop.price"],
    ),
    "a type's name": (["ALTER TYPE shop.span RENAME TO width"], [
        "table shop.things: column size: type", "table shop.books: column size: type",
        "owner of type shop.span", "owner of type shop.width", "type shop.span",
        "type shop.width"]),
    "a partition stands alone": (
        ["ALTER TABLE shop.by_mood DETACH PARTITION shop.by_mood_rest"],
        ["partition shop.by_mood_rest"],
    ),
    "a partition with all that hangs on it stands alone": (
        ["ALTER TABLE shop.payments DROP CONSTRAINT payments_order_id_placed_fkey",
         "ALTER TABLE shop.orders DETACH PARTITION shop.orders_2024"],
        ["constraint shop.payments.payments_order_id_placed_fkey", "partition shop.orders_2024",
         "trigger shop.orders_2024.counted",
         "constraint shop.orders_2024.orders_customer_id_fkey"],
    ),
    "a child is disowned": (
        ["ALTER TABLE shop.books NO INHERIT shop.things"],
        # Now the order of its columns counts, and it is another one.
        ["inheritance of shop.books", "table shop.books: content",
         "table shop.books: order of columns"],
    ),
    "a comment": (["COMMENT ON TABLE shop.customers IS 'x'"], ["comment on table shop.customers"]),
    "a logged table": (["ALTER TABLE shop.carts SET LOGGED"], ["unlogged shop.carts"]),
    "replica identity": (
        ["ALTER TABLE shop.customers REPLICA IDENTITY DEFAULT"],
        ["replica identity of shop.customers"],
    ),
    "a storage option": (
        ["ALTER TABLE shop.customers RESET (fillfactor)"], ["options of shop.customers"],
    ),
    "statistics": (["DROP STATISTICS shop.customers_mood"], ["statistics shop.customers_mood"]),
    "a publication": (["ALTER PUBLICATION out DROP TABLE shop.rooms"], ["publication out"]),
    "an event trigger": (["ALTER EVENT TRIGGER told ENABLE"], ["event trigger told"]),
    "a text search configuration": (
        ["ALTER TEXT SEARCH CONFIGURATION shop.words DROP MAPPING FOR email"],
        ["text search configuration shop.words"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def wanted(odd_shop: Server) -> DatabaseFacts:
    with odd_shop.connect() as connection:
        return database_facts(connection)


@pytest.mark.live
@pytest.mark.parametrize("change", PLANTED)
def test_a_planted_change_is_told(change: str, wanted: DatabaseFacts, odd_copy: Server) -> None:
    statements, told = PLANTED[change]
    with odd_copy.connect() as connection:  # undone at the end, sequences too
        values = connection.execute(
            "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences"
        ).fetchall()
        query = "SELECT last_value, is_called FROM "
        places = {name: connection.execute(query + name).fetchone() for (name,) in values}
        connection.commit()
        for statement in statements:
            connection.execute(statement.replace("{name}", odd_copy.dbname))
        found = database_facts(connection)
        connection.rollback()
        for name, place in places.items():
            connection.execute("SELECT setval(%s, %s, %s)", (name, *place))

    assert sorted(one.what for one in differences(wanted, found, exact=True)) == sorted(told)


def _facts(**more: object) -> DatabaseFacts:
    plain: dict[str, object] = {
        "name": "shop",
        "server_version": "15.4",
        "encoding": "UTF8",
        "collation": "de_DE.UTF-8",
        "time_zone": "UTC",
        "extensions": {"hstore": "1.8"},
        "roles": ("anna",),
        "definitions": {"view shop.v": "SELECT 1", "owner of view shop.v": "anna"},
        "schema_hash": "",
        "tables": (),
        "lsn": "0/1",
    }
    return DatabaseFacts.model_validate(plain | more)


def _table(**more: object) -> Table:
    plain: dict[str, object] = {
        "schema_name": "shop",
        "name": "orders",
        "rows": 1200,
        "content_hash": "00ff",
        "columns": (Column(name="id", type="integer", not_null=True),),
    }
    return Table.model_validate(plain | more)


def told(wanted: DatabaseFacts, found: DatabaseFacts, **more: object) -> list[str]:
    return [one.what for one in differences(wanted, found, **more)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"encoding": "LATIN1"}, ["encoding"]),
        ({"collation": "C"}, ["collation"]),
        ({"collation": "de_DE.utf8"}, []),
        ({"time_zone": "Asia/Tokyo"}, []),  # of the server
        ({"settings": {"TimeZone": "UTC"}}, ["time zone"]),
        ({"settings": {"search_path": "x"}}, ["setting search_path"]),
        ({"extensions": {}}, ["extension hstore"]),
        ({"extensions": {"hstore": "1.7"}}, ["extension hstore"]),
        ({"roles": ()}, ["role anna"]),
        ({"roles": ("anna", "berta")}, []),
        ({"lsn": "1/1", "size_bytes": 5, "name": "copy"}, []),
        ({"server_version": "15.9"}, []),
        ({"server_version": "17.2"}, []),
    ],
)
def test_of_the_database(change: dict[str, object], what: list[str]) -> None:
    assert told(_facts(), _facts(**change)) == what


def test_another_major_version_words_anew() -> None:
    newer = {"server_version": "17.2", "extensions": {"hstore": "1.9"}}
    reworded = {"view shop.v": "SELECT 1 AS one", "owner of view shop.v": "anna"}

    assert told(_facts(), _facts(definitions=reworded)) == ["view shop.v"]
    assert told(_facts(), _facts(definitions=reworded, **newer)) == []
    assert told(_facts(), _facts(definitions={}, **newer)) == [
        "owner of view shop.v",
        "view shop.v",
    ]
    other = reworded | {"owner of view shop.v": "berta"}
    assert told(_facts(), _facts(definitions=other, **newer)) == ["owner of view shop.v"]


def test_reads_like_a_sentence() -> None:
    (one,) = differences(_facts(tables=(_table(),)), _facts(tables=(_table(rows=1199),)))
    assert str(one) == "table shop.orders: rows: 1,199 rows, the manifest says 1,200 rows"
    (one,) = differences(_facts(tables=(_table(),)), _facts())
    assert (one.what, one.found) == ("table shop.orders", ABSENT)


def test_a_hash_that_was_not_taken_says_nothing() -> None:
    with_hash, without = _facts(tables=(_table(),)), _facts(tables=(_table(content_hash=None),))
    assert told(with_hash, without) == told(without, with_hash) == []


def test_a_materialized_view_holds_what_its_query_gives_now() -> None:
    view = {"kind": "materialized view"}
    before = _facts(tables=(_table(**view),))
    stale = _facts(tables=(_table(rows=3, **view),))

    assert told(before, stale) == []
    assert told(before, stale, exact=True) == ["table shop.orders: rows"]
    empty = _facts(tables=(_table(rows=0, populated=False, **view),))
    assert told(before, empty) == ["table shop.orders: content"]


def test_after_a_crash_unlogged_tables_are_empty() -> None:
    before = _facts(tables=(_table(unlogged=True),))
    empty = _facts(tables=(_table(unlogged=True, rows=0, content_hash="00"),))

    assert told(before, empty, crashed=True) == []
    assert told(before, empty) == ["table shop.orders: rows"]
    one_row = _facts(tables=(_table(unlogged=True, rows=1),))
    assert told(before, one_row, crashed=True) == ["table shop.orders: rows"]


@pytest.mark.parametrize(
    ("before", "after", "increment", "what"),
    [
        ((5, True), (4, True), 1, ["behind"]),
        ((5, True), (6, True), 1, []),
        ((1, True), (1, False), 1, ["behind"]),
        ((1, False), (1, True), 1, []),
        ((-5, True), (-4, True), -1, ["behind"]),
        ((-5, True), (-6, True), -1, []),
    ],
)
def test_a_sequence_may_be_ahead_and_not_behind(
    before: tuple[int, bool], after: tuple[int, bool], increment: int, what: list[str]
) -> None:
    def at(place: tuple[int, bool]) -> DatabaseFacts:
        one = Sequence(
            name="shop.s",
            last_value=place[0],
            is_called=place[1],
            definition="",
            increment=increment,
        )
        return _facts(sequences=(one,))

    assert told(at(before), at(after)) == [f"sequence shop.s: {word}" for word in what]
    assert len(told(at(before), at(after), exact=True)) == 1


def test_one_table_with_what_hangs_on_it() -> None:
    wanted = _facts(
        tables=(_table(), _table(name="more")),
        definitions={
            "index shop.orders_pkey": "CREATE …",
            "index shop.more_pkey": "CREATE …",
            "constraint shop.orders.fk": "FOREIGN KEY (a) REFERENCES shop.more(id)",
            "constraint shop.orders.self": "FOREIGN KEY (a) REFERENCES shop.orders(id)",
            "view shop.v": "SELECT 1",
        },
        hangs_on={
            "index shop.orders_pkey": "shop.orders",
            "index shop.more_pkey": "shop.more",
            "constraint shop.orders.fk": "shop.orders",
            "constraint shop.orders.self": "shop.orders",
            "sequence shop.orders_id_seq": "shop.orders",
        },
        sequences=(
            Sequence(name="shop.orders_id_seq", last_value=1, is_called=True, definition=""),
            Sequence(name="shop.other", last_value=1, is_called=True, definition=""),
        ),
        large_objects=5,
    )
    nothing = _facts(definitions={}, extensions={}, roles=(), encoding="LATIN1")

    assert told(wanted, nothing, only=["shop.orders"]) == [
        "table shop.orders",
        "sequence shop.orders_id_seq",
        "constraint shop.orders.self",
        "index shop.orders_pkey",
    ]
    assert told(wanted, wanted, only=["shop.orders"]) == []
