"""Great Expectations and queries over a PostgreSQL of our own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.expectations import Held, hold, smoke
from blocks.pg_throwaway import throwaway
from blocks.postgres import Server
from policy.backup import Expectation, Fresh
from policy.database_facts import Column, DatabaseFacts, Table
from policy.errors import NotApplied
from policy.expected import default_suites, fresh, referential

pytestmark = pytest.mark.live
SETUP = """
CREATE SCHEMA "Lädchen";
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE "Lädchen"."Größe Order" (
    "Id" int PRIMARY KEY, "b c" text, "Ünï" int NOT NULL, m mood, u uuid UNIQUE, j jsonb, a int[],
    r int4range, UNIQUE ("b c", m)
);
INSERT INTO "Lädchen"."Größe Order"
SELECT g, NULLIF(g, 5)::text, 1, 'good', gen_random_uuid(), '{}', '{1}', '[1,2)'
FROM generate_series(1, 100) g;
CREATE TABLE public."user" (
    "select" int, "co:lon %" int, at timestamptz, "say ""hi"" x" int UNIQUE, x int, "X" int,
    UNIQUE (x, "X"), few int
);
INSERT INTO "user" SELECT g, 1, to_timestamp(1000), g, g, g, NULLIF(g % 3, 0)
FROM generate_series(1, 10) g;
CREATE MATERIALIZED VIEW seen AS SELECT "Id" FROM "Lädchen"."Größe Order";
CREATE TABLE item ("order" int, n int);
INSERT INTO item VALUES (7, 1), (NULL, 2), (1000, 3);
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pg")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    with throwaway(folder / "pg") as server:
        with server.connect(autocommit=True) as connection:
            connection.execute('CREATE DATABASE "Lädchen $1"')
        with server.at("Lädchen $1").connect() as connection:
            connection.execute(SETUP)
        yield server.at("Lädchen $1")


def columns(*names: str, not_null: tuple[str, ...] = ()) -> tuple[Column, ...]:
    return tuple(Column(name=one, type="int", not_null=one in not_null) for one in names)


def table(
    schema: str, name: str, rows: int, found: tuple[Column, ...], *keys: tuple[str, ...]
) -> Table:
    return Table(
        schema_name=schema, name=name, rows=rows, content_hash="0", columns=found, keys=keys
    )


FACTS = DatabaseFacts(
    name="shop",
    server_version="15.4",
    encoding="UTF8",
    collation="C",
    time_zone="UTC",
    schema_hash="0",
    lsn="0/0",
    tables=(
        table(
            "Lädchen",
            "Größe Order",
            100,
            columns("Id", "b c", "Ünï", "m", "u", "j", "a", "r", not_null=("Id", "Ünï")),
            *(("Id",), ("u",), ("b c", "m")),
        ),
        table(
            "public",
            "user",
            10,
            columns("select", "co:lon %", "at", 'say "hi" x', "x", "X", "few"),
            *(('say "hi" x',), ("x", "X")),
        ),
        table("public", "seen", 100, columns("Id")),
        table("public", "item", 3, columns("order", "n")),
    ),
    definitions={
        "constraint public.item.orders": 'FOREIGN KEY ("order") REFERENCES '
        '"Lädchen"."Größe Order"("Id")',
        "constraint public.item.users": 'FOREIGN KEY (n) REFERENCES public."user"("select")',
    },
)


def wanted(kind: str, **kwargs: object) -> Expectation:
    return Expectation(type=f"expect_{kind}", kwargs=kwargs)


def test_what_holds_and_what_does_not(server: Server, tmp_path: Path) -> None:
    derived = default_suites(FACTS)
    own = {
        "user": [
            wanted("column_values_to_be_unique", column="co:lon %"),
            wanted("column_values_to_not_be_null", column="few"),
            wanted("table_row_count_to_equal", value=11),
            wanted("column_values_to_be_between", column="select", min_value=1, max_value=10),
            wanted("column_values_to_be_nice", column="select"),
            wanted("column_values_to_be_unique", colum="select"),
            wanted("column_values_to_be_unique", column="gone"),
        ],
        "public.nothing": [wanted("table_row_count_to_equal", value=0)],
    }
    found = hold(server, {**derived, **own}, tmp_path)
    asked = sum(map(len, derived.values()))
    assert [str(one) for one in found[:asked] if not one.success] == []
    assert all(one.observed for one in found[:3])
    unique, null, count, between, unknown, misspelt, gone, absent = found[asked:]
    assert not unique.success
    assert str(unique) == (
        "user: column_values_to_be_unique(column=co:lon %): 10 of 10 rows do not: 1, 1, 1"
    )
    assert (null.success, null.observed) == (False, "3 of 10 rows do not")
    assert (count.success, count.observed) == (False, "found 10")
    assert between.success
    assert "knows no expect_column_values_to_be_nice" in unknown.error
    assert "column: field required" in misspelt.error
    assert '"gone" in BatchData does not exist' in gone.error
    assert absent.error == "there is no such table"
    assert not any(one.success for one in (unknown, misspelt, gone, absent))


def test_a_process_that_fails_is_no_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NotApplied, match="Great Expectations ended by"):
        hold(_Gone(server.parameters), {"user": [wanted("x")]}, tmp_path)


class _Gone(Server):
    """Whose process cannot even begin: it gets no name of a user."""

    @property
    def user(self) -> str:
        return None  # type: ignore[return-value]


def test_nothing_asked_starts_nothing(server: Server, tmp_path: Path) -> None:
    assert hold(server, {}, tmp_path) == []
    assert smoke(server, {}) == []


def test_orphans(server: Server) -> None:
    orders, users = smoke(server, referential(FACTS))
    assert not orders.success
    assert str(orders) == "public.item.orders: answered false"
    assert users.success


def test_freshness(server: Server) -> None:
    rule = Fresh(column="at", within=600)  # type: ignore[arg-type]
    assert smoke(server, fresh({"public.user": rule}, 1500.0))[0].success
    assert not smoke(server, fresh({"public.user": rule}, 1700.0))[0].success
    for time_zone, young in (("UTC", False), ("Etc/GMT+1", True)):  # + is west
        with server.connect(autocommit=True) as connection:
            connection.execute("CREATE TABLE plain (at timestamp)")
            connection.execute("INSERT INTO plain VALUES (to_timestamp(1000) AT TIME ZONE 'UTC')")
        found = smoke(server, fresh({"plain": rule}, 4000.0, time_zone))
        with server.connect(autocommit=True) as connection:
            connection.execute("DROP TABLE plain")
        assert found[0].success is young


def test_queries(server: Server) -> None:
    queries = {
        "true": "SELECT true",
        "percent": "SELECT 'a' LIKE '%a%';",
        "false": "SELECT false",
        "null": "SELECT NULL::boolean",
        "number": "SELECT 1",
        "none": "SELECT true WHERE false",
        "many": "SELECT true FROM pg_class a, pg_class b, pg_class c",
        "two": "SELECT true, true",
        "wrong": "SELECT gone",
        "writes": "WITH x AS (DELETE FROM item RETURNING 1) SELECT count(*) > 0 FROM x",
        "leaves": "COMMIT; DROP TABLE item",
        "still": "SELECT count(*) = 3 FROM item",
    }
    found = {held.table: held for held in smoke(server, queries)}
    assert [name for name, held in found.items() if held.success] == ["true", "percent", "still"]
    assert found["null"].observed == "answered null"
    assert found["number"].observed == "answered 1"
    assert found["none"].observed == "answered no row"
    assert found["many"].observed == "answered many rows"
    assert found["two"].observed == "answered 2 values"
    assert "does not exist" in found["wrong"].error
    assert "read-only transaction" in found["writes"].error
    assert "multiple commands" in found["leaves"].error


def test_one_line() -> None:
    held = Held("t" * 500, "expect_x", {"value_set": list(range(500))}, False, "a\nb" * 500)
    assert len(str(held)) < 350
    assert "\n" not in str(held)
