"""The work of `blocks.expectations`: Great Expectations over one database, in its own process.

    python -m blocks.expectations_process RESULT_FD

stdin: {"user", "dbname", "asked": [{"table", "where": [schema, name], "expectations": [{"type",
"kwargs"}]}]}; all else of the connection is in libpq's own variables. RESULT_FD, at the end: for
each table a list of {"success", "observed", "error"}, one for each expectation.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

EXAMPLES = 3


def main() -> None:
    question = json.load(sys.stdin)
    source = _source(question["user"], question["dbname"])
    answers = [list(_of_table(source, number, one)) for number, one in enumerate(question["asked"])]
    with os.fdopen(int(sys.argv[1]), "w") as out:
        json.dump(answers, out)


def _source(user: str, dbname: str) -> Any:
    # add_postgres wants a host in the URL, which would go before PGHOST.
    url = f"postgresql+psycopg://{quote(user, safe='')}@/{quote(dbname, safe='')}"
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    # Bars of progress; what the type says is the class that it keeps them in.
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    return context.data_sources.add_sql("restored", connection_string=url)


def _of_table(source: Any, number: int, one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from sqlalchemy.sql import quoted_name

    wanted = one["expectations"]
    try:
        # Otherwise it writes the schema in small letters.
        schema, name = (quoted_name(part, quote=True) for part in one["where"])
        asset = source.add_table_asset(str(number), table_name=name, schema_name=schema)
        batch = asset.add_batch_definition_whole_table("all").get_batch()
    except Exception as error:
        yield from (_not_answered(_first_line(error)) for _ in wanted)
        return
    for expectation in wanted:
        yield _answer(batch, expectation["type"], expectation["kwargs"])


def _answer(batch: Any, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl

    try:
        result = batch.validate(get_expectation_impl(name)(**kwargs), result_format="SUMMARY")
    except ExpectationNotFoundError:
        return _not_answered(f"Great Expectations knows no {name}")
    except Exception as error:
        return _not_answered(_first_line(error))
    if words := _raised(result.exception_info or {}):
        return _not_answered(words)
    observed = _observed(result.result or {})
    return {"success": bool(result.success), "observed": observed, "error": ""}


def _not_answered(words: str) -> dict[str, Any]:
    return {"success": False, "observed": "", "error": words}


def _raised(info: dict[str, Any]) -> str:
    """It is kept flat, or one a metric."""
    for one in (info, *info.values()):
        if isinstance(one, dict) and one.get("raised_exception"):
            return _first_line(one.get("exception_message") or "it failed")
    return ""


def _first_line(error: object) -> str:
    from pydantic.v1 import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _observed(result: dict[str, Any]) -> str:
    if "observed_value" in result:
        return f"found {json.dumps(result['observed_value'], default=str, ensure_ascii=False)}"
    if "unexpected_count" not in result:
        return ""
    examples = result.get("partial_unexpected_list") or []
    shown = ", ".join(str(one) for one in examples[:EXAMPLES])
    words = f"{result['unexpected_count']} of {result.get('element_count')} rows do not"
    return f"{words}: {shown}" if any(one is not None for one in examples) else words


if __name__ == "__main__":
    main()
