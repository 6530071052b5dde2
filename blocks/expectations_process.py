"""The child of `blocks.expectations`: its order by stdin, what held as JSON by stdout.

It is loaded by nobody else: Great Expectations is heavy, prints, and changes settings of libraries.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from sqlalchemy import String, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.elements import quoted_name

# Nothing is written, and a lock that somebody holds does not have us wait for ever.
OPTIONS = "-c default_transaction_read_only=on -c lock_timeout=60s"
SHORT = 300  # characters of an error
FEW = 80  # of what was observed
TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND (n.nspname || '.' || c.relname = :name OR c.relname = :name AND pg_table_is_visible(c.oid))
"""


class UntypedTexts(PGDialect_psycopg):
    """Texts are sent as people write them in SQL, in quotes: PostgreSQL takes them for whatever
    they are compared with, a date, an enum, a UUID. SQLAlchemy calls them VARCHAR, which equals
    none of these. Needs psycopg's ClientCursor."""

    supports_statement_cache = True
    colspecs = {  # noqa: RUF012 - SQLAlchemy's way
        **{k: v for k, v in PGDialect_psycopg.colspecs.items() if k is not String},
    }


def main() -> None:
    order = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # whatever else prints
        warnings.simplefilter("ignore")  # of libraries, to people who cannot change them
        registry.register("postgresql.psycopg", __name__, UntypedTexts.__name__)
        json.dump(list(_held(order)), answer, default=str)


def _held(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from psycopg import ClientCursor, connect

    given = order["parameters"]
    connect(**given).close()  # before seconds are spent on what follows
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    options = f"{given.get('options', '')} {OPTIONS}".strip()
    # The address is of nowhere: where it goes is among the arguments, as libpq takes them.
    source = context.data_sources.add_postgres(
        "database",
        connection_string="postgresql+psycopg://nobody@nowhere.invalid/none",
        kwargs={"connect_args": {**given, "options": options, "cursor_factory": ClientCursor}},
    )
    for table, wanted in order["suites"].items():
        yield from _of_table(source, table, wanted)


def _of_table(source: Any, table: str, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with source.get_engine().connect() as connection:
        found = connection.execute(text(TABLES), {"name": table}).fetchall()
    if len(found) != 1:
        words = f"{len(found)} tables are called so" if found else "there is no such table"
        yield from (_failed(table, one, words) for one in wanted)
        return
    schema, name = (quoted_name(word, quote=True) for word in found[0])  # else it is in lower case
    try:
        asset = source.add_table_asset(table, table_name=name, schema_name=schema)
        batch = asset.add_batch_definition_whole_table("whole").get_batch()
    except Exception as error:
        yield from (_failed(table, one, _words(error)) for one in wanted)
        return
    meant, told = {}, {}
    for number, one in enumerate(wanted):
        try:
            meant[number] = _expectation(one)
        except Exception as error:
            told[number] = _failed(table, one, f"cannot be meant: {_words(error)}")
    told |= {at: _told(table, wanted[at], result) for at, result in _validated(batch, meant)}
    yield from (told[number] for number in range(len(wanted)))


def _expectation(wanted: dict[str, Any]) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    return ExpectationConfiguration(type=wanted["type"], kwargs=wanted["kwargs"]).to_domain_obj()


def _validated(batch: Any, meant: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """All together, in as few queries as there can be. One that raises takes others with it that
    were asked by the same query: those are asked again, each alone."""
    from great_expectations.core import ExpectationSuite

    shape = {"result_format": "BASIC", "partial_unexpected_count": 0}
    suite = ExpectationSuite(name="all", expectations=list(meant.values()))
    for number, one in meant.items():
        one.meta = {"number": number}
    try:
        results = batch.validate(suite, result_format=shape).results
        by_number = {one.expectation_config.meta["number"]: one for one in results}
    except Exception:
        by_number = {}
    for number, one in meant.items():
        result = by_number.get(number)
        if result is None or _raised(result):
            try:
                result = batch.validate(one, result_format=shape)
            except Exception as error:
                result = error
        yield number, result


def _told(table: str, wanted: dict[str, Any], result: Any) -> dict[str, Any]:
    if isinstance(result, Exception):
        return _failed(table, wanted, _words(result))
    if raised := _raised(result):
        return _failed(table, wanted, raised)
    return _row(table, wanted, bool(result.success), _observed(wanted, result.result or {}), "")


def _observed(wanted: dict[str, Any], told: dict[str, Any]) -> str:
    if "unexpected_count" in told:
        return f"{told['unexpected_count']} of {told.get('element_count')} rows are not so"
    value = told.get("observed_value")
    if value is None:
        return ""
    # Values out of a table are not told.
    if isinstance(value, list | dict) and not wanted["type"].startswith("expect_table_"):
        return f"{len(value)} values"
    return f"found {value if isinstance(value, str) else json.dumps(value, default=str)}"[:FEW]


def _raised(result: Any) -> str:
    """Of one metric, or by metric; empty when none raised."""
    info = result.exception_info or {}
    for one in [info] if "raised_exception" in info else info.values():
        if isinstance(one, dict) and one.get("raised_exception"):
            return _cut(str(one.get("exception_message")))
    return ""


def _words(error: Exception) -> str:
    return _cut(str(error)) or type(error).__name__


def _cut(words: str) -> str:
    """Without the query, whose parameters may be values of people."""
    return " ".join(words.partition("[SQL:")[0].partition("DETAIL:")[0].split())[:SHORT]


def _failed(table: str, wanted: dict[str, Any], error: str) -> dict[str, Any]:
    return _row(table, wanted, False, "", error)


def _row(
    table: str, wanted: dict[str, Any], success: bool, observed: str, error: str
) -> dict[str, Any]:
    return {
        "table": table,
        "expectation": wanted["type"],
        "kwargs": wanted["kwargs"],
        "success": success,
        "observed": observed,
        "error": error,
    }


if __name__ == "__main__":
    main()
