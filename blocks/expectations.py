"""Holds a restored database to expectations of Great Expectations and to queries of our own.

Great Expectations works in a process of its own: it takes seconds and 225 MB to be loaded, and
whoever asked has both back afterwards. What it cannot answer counts as not held, never as held.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.postgres import Server
from blocks.processes import marked
from policy.backup import Expectation
from policy.errors import NotApplied

QUERY_SECONDS = 60
# Nothing that is asked may change what is asked about; a key of many rows is looked through once.
OPTIONS = "-c default_transaction_read_only=on -c work_mem=128MB"
SHOWN = 120  # characters
TABLES = """
SELECT n.nspname, c.relname, pg_table_is_visible(c.oid) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f')
"""


@dataclass(frozen=True)
class Held:
    """One thing that was asked, and the answer."""

    table: str  # of a query: its name
    expectation: str  # as Great Expectations calls it; empty for a query
    kwargs: Mapping[str, Any]
    success: bool
    observed: str = ""
    error: str = ""  # why it could not be answered

    def __str__(self) -> str:
        words = [_short(self.table)]
        if self.expectation:
            given = ", ".join(f"{name}={value}" for name, value in self.kwargs.items())
            words.append(f"{self.expectation.removeprefix('expect_')}({_short(given, 60)})")
        words.append(_short(self.error or self.observed or ("holds" if self.success else "no")))
        return ": ".join(words)


def hold(server: Server, suites: Mapping[str, Sequence[Expectation]], place: Path) -> list[Held]:
    """`suites`: table, with its schema where it is in no search path -> what it is held to.
    `place`: a folder for what Great Expectations writes. Raises Unreachable or NotAllowed for the
    database, NotApplied when Great Expectations itself fails."""
    there = _tables(server)
    asked = [
        {
            "table": table,
            "where": there[table],
            "expectations": [one.model_dump() for one in suite],
        }
        for table, suite in suites.items()
        if table in there and suite
    ]
    answers = _answers(server, asked, place) if asked else {}
    return [
        held
        for table, suite in suites.items()
        for held in (answers[table] if table in answers else _absent(table, suite))
    ]


def _absent(table: str, suite: Sequence[Expectation]) -> Iterator[Held]:
    for one in suite:
        yield Held(table, one.type, one.kwargs, False, error="there is no such table")


def _tables(server: Server) -> dict[str, tuple[str, str]]:
    """As a person may write it -> (schema, name)."""
    with server.connect() as connection:
        rows = connection.execute(TABLES).fetchall()
    found = {name: (schema, name) for schema, name, visible in rows if visible}
    return found | {f"{schema}.{name}": (schema, name) for schema, name, _ in rows}


def _answers(server: Server, asked: list[dict[str, Any]], place: Path) -> dict[str, list[Held]]:
    said, words, code = _asked_of_child(server, asked, place)
    try:
        answers = json.loads(said)
    except ValueError:
        last = server.without_secrets(words.decode(errors="replace"))[-600:]
        raise NotApplied(f"Great Expectations ended by {code}: {last or 'it said nothing'}") from (
            None
        )
    found: dict[str, list[Held]] = {}
    for one, results in zip(asked, answers, strict=True):
        found[one["table"]] = [
            Held(
                one["table"],
                wanted["type"],
                wanted["kwargs"],
                bool(result["success"]),
                result["observed"],
                server.without_secrets(result["error"]),
            )
            for wanted, result in zip(one["expectations"], results, strict=True)
        ]
    return found


def _asked_of_child(
    server: Server, asked: list[dict[str, Any]], place: Path
) -> tuple[bytes, bytes, int]:
    """-> (what it answers, its stderr, its exit code). The password goes by a file, as with the
    programs of PostgreSQL."""
    question = {"user": server.user, "dbname": server.dbname, "asked": asked}
    read, write = os.pipe()
    with server.tool_environment() as environment, open(read, "rb") as answer:
        environment["PGOPTIONS"] = f"{environment.get('PGOPTIONS', '')} {OPTIONS}".strip()
        environment |= {"HOME": str(place), "GX_ANALYTICS_ENABLED": "false", "LC_ALL": "C.UTF-8"}
        argv = [sys.executable, "-m", "blocks.expectations_process", str(write)]
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(write,),
                cwd=Path(__file__).parents[1],  # where `blocks` is found
                env=marked(environment),
            )
        finally:
            os.close(write)
        try:
            # It answers at its end alone, into a file that it had before: no pipe fills up.
            _, words = process.communicate(json.dumps(question, default=str).encode())
            return answer.read(), words, process.returncode
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def smoke(server: Server, queries: Mapping[str, str]) -> list[Held]:
    """Name -> a query that must answer one row with one value, true. Each in a transaction of its
    own that can change nothing, for a minute at most. Raises Unreachable or NotAllowed."""
    if not queries:
        return []
    with server.connect() as connection:
        connection.read_only = True
        connection.execute(f"SET SESSION statement_timeout = '{QUERY_SECONDS}s'")
        connection.commit()
        return [_asked(server, connection, name, query) for name, query in queries.items()]


def _asked(server: Server, connection: Any, name: str, query: str) -> Held:
    from psycopg import Error

    try:
        with connection.cursor() as cursor:
            # One row after another: of a table that was asked for by mistake two are read. It
            # refuses two statements in one, of which the first could end the transaction.
            rows = []
            for row in cursor.stream(query):
                rows.append(row)
                if len(rows) > 1:
                    break
    except Error as error:
        return Held(name, "", {}, False, error=server.without_secrets(str(error)))
    finally:
        connection.rollback()
    if len(rows) != 1:
        return Held(name, "", {}, False, f"answered {'no row' if not rows else 'many rows'}")
    if len(rows[0]) != 1:
        return Held(name, "", {}, False, f"answered {len(rows[0])} values")
    value = rows[0][0]
    return Held(name, "", {}, value is True, f"answered {_short(_sql(value), 60)}")


def _sql(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str, most: int = SHOWN) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
