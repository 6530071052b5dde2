"""Holds a database to expectations, by Great Expectations in a process of its own (it takes seconds
and 240 MB to load), and to queries that must answer true.

What a table holds is never told, only how much of it is not as expected: reports are read by many.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.confined import PASSED_ON
from blocks.files import scratch
from blocks.postgres import Server
from blocks.processes import marked
from policy.backup import Expectation
from policy.errors import NotApplied

WITHIN_SECONDS = 3600.0  # everything together
QUERY_SECONDS = 600.0
SHOWN = ("column", "column_list", "column_A", "column_B", "column_set")


@dataclass(frozen=True)
class Held:
    """One thing that was asked. `table`: or the name of the query."""

    table: str
    expectation: str
    kwargs: dict[str, Any]
    success: bool
    observed: str
    error: str = ""

    def __str__(self) -> str:
        columns = [str(self.kwargs[key]) for key in SHOWN if key in self.kwargs]
        words = " ".join([f"{self.table}:", self.expectation, *columns])[:200]
        return f"{words}: {self.error or self.observed or 'no'}"


def hold(
    server: Server,
    suites: Mapping[str, Sequence[Expectation]],
    place: Path,
    within_seconds: float = WITHIN_SECONDS,
) -> list[Held]:
    """`suites`: 'schema.table' -> expectations, all asked by one process. `place`: a folder for
    what it writes, gone afterwards. A table that is not there, or an expectation that cannot be
    meant, is one that does not hold. Raises NotApplied when Great Expectations itself fails."""
    if not any(suites.values()):
        return []
    order = {
        "parameters": dict(server.parameters),  # by a pipe: one may be a password
        "suites": {table: [one.model_dump() for one in wanted] for table, wanted in suites.items()},
    }
    answer = _answer(server, json.dumps(order).encode(), place, within_seconds)
    return [Held(**one) for one in json.loads(answer)]


def _answer(server: Server, order: bytes, place: Path, within_seconds: float) -> bytes:
    with scratch(place, "gx") as here, (here / "said").open("w+b") as said:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"HOME": str(here), "TMPDIR": str(here), "GX_ANALYTICS_ENABLED": "false"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "blocks.expectations_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=marked(environment),
            cwd=here,
            start_new_session=True,
        )
        try:
            answer, _ = process.communicate(order, timeout=within_seconds)
        except subprocess.TimeoutExpired:
            raise NotApplied(
                f"Great Expectations did not end within {within_seconds:g}s; what {server} holds "
                "was not judged by it. Ask less of large tables, or of fewer"
            ) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if process.returncode != 0:
            said.seek(0)
            words = server.without_secrets(said.read().decode(errors="replace"))[-600:]
            raise NotApplied(
                f"Great Expectations ended with {process.returncode}; what {server} holds was not "
                f"judged by it: {words or 'it said nothing'}"
            )
    return answer


def smoke(
    server: Server, queries: Mapping[str, str], within_seconds: float = QUERY_SECONDS
) -> list[Held]:
    """Name -> a query that must answer exactly one row with one true value, each within that time.
    Nothing is written. Raises Unreachable or NotAllowed."""
    return [_asked(server, name, query, within_seconds) for name, query in queries.items()]


def _asked(server: Server, name: str, query: str, within_seconds: float) -> Held:
    from psycopg import Error

    connection = server.connect()
    try:
        connection.read_only = True
        connection.execute(f"SET LOCAL statement_timeout = {int(within_seconds * 1000)}")
        # Prepared: then it is one statement, which cannot end the transaction and begin another.
        cursor = connection.execute(query, prepare=True)
        rows = cursor.fetchmany(2) if cursor.description else []
        count = cursor.rowcount
    except Error as error:
        words = server.without_secrets(str(error))[:300]
        return Held(name, "answers true", {}, False, "", f"{words}; write one SELECT")
    finally:
        connection.close()
    if len(rows) != 1 or len(rows[0]) != 1:
        observed = f"it answers {max(count, 0)} rows, not one true value"
        if len(rows) == 1:
            observed = f"it answers {len(rows[0])} columns, not one true value"
        return Held(name, "answers true", {}, False, observed)
    value = rows[0][0]
    said = {True: "true", False: "false", None: "null"}
    told = said[value] if value is None or isinstance(value, bool) else "something else than true"
    return Held(name, "answers true", {}, value is True, f"it answers {told}")
