"""`dafnck audit`: who released, approved, overrode, turned over and restored what, and when."""

import json
import time
from typing import Annotated, Any

import typer

from deployments.tables import print_table

app = typer.Typer(no_args_is_help=True, help="Who did what and when, as a chain of hashes.")


@app.command("list")
def list_(
    subject: Annotated[
        str | None, typer.Argument(help='or how it begins: "shop in prod", shop, secret')
    ] = None,
    since: Annotated[str | None, typer.Option("--since", help="at most so old: 12h, 30d")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="of this one alone")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON Lines, whole entries")] = False,
) -> None:
    """What was done, oldest first."""
    from dataclasses import asdict

    after = time.time() - _seconds(since) if since else None
    with _ledger() as ledger:
        found = list(ledger.audit(subject, after, actor))
    if as_json:
        for entry in found:
            print(json.dumps(asdict(entry), ensure_ascii=False))
        return
    rows = [
        {
            "number": entry.number,
            "at": _at(entry.at),
            "actor": entry.actor,
            "action": entry.action,
            "subject": entry.subject,
            "detail": "; ".join(f"{name} {value}" for name, value in entry.detail.items()),
        }
        for entry in found
    ]
    print_table(["number", "at", "actor", "action", "subject", "detail"], rows)


@app.command()
def head() -> None:
    """Number and hash of the newest entry. Keep them elsewhere: `verify --head` holds the chain to
    them."""
    with _ledger() as ledger:
        number, digest = ledger.audit_head()
    print(f"{number}:{digest}")


@app.command()
def verify(
    kept: Annotated[
        str | None, typer.Option("--head", help="NUMBER:HASH, as `dafnck audit head` printed it")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Is the chain whole: no entry changed, put in or out, none gone from its end?"""
    from policy.errors import Damaged

    wanted = _head(kept) if kept else None
    with _ledger() as ledger:
        broken, (number, digest) = ledger.audit_break(wanted), ledger.audit_head()
    if as_json:
        print(json.dumps({"whole": not broken, "trouble": broken, "head": f"{number}:{digest}"}))
    if broken:
        raise Damaged(f"the audit is not whole: {broken}")
    if not as_json:
        print(f"{number} entries, whole; the head is {number}:{digest}")


def _head(text: str) -> tuple[int, str]:
    from policy.errors import BadInput

    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise BadInput(f"--head: {text!r} is no head; dafnck audit head prints one")
    return int(number), digest


def _ledger() -> Any:
    from contextlib import closing

    from blocks.ledger import Ledger
    from blocks.stack import open_stack

    return closing(Ledger(open_stack().ledger_url))


def _seconds(text: str) -> float:
    from policy.errors import BadInput
    from policy.quantities import TEN_YEARS, seconds

    try:
        return seconds(text, TEN_YEARS)
    except ValueError as error:
        raise BadInput(f"--since: {error}") from None


def _at(moment: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")
