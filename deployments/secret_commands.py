"""`dafnck secret`: the secrets of this stack, and how they turn over."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.tables import print_table

app = typer.Typer(
    no_args_is_help=True, help="Secrets of services: store, list, turn over, read back."
)

Name = Annotated[str, typer.Argument(help="name/key, as in secret://name/key")]
Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("set")
def set_(
    name: Name,
    file: Annotated[
        Path | None, typer.Option("--file", help="whose content is the value; default: stdin")
    ] = None,
) -> None:
    """Store a value; it is read from standard input, or asked for. What serves keeps what it has
    until its next release, or `dafnck renew`; where a file says how it turns over, the next run of
    that renews it."""
    from policy.errors import BadInput

    if file is not None:
        try:
            value = file.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: {getattr(error, 'strerror', 'no text')}") from None
    elif sys.stdin.isatty():
        from getpass import getpass

        value = getpass(f"value of {name}: ")
    else:
        value = sys.stdin.read().removesuffix("\n")
    files, known = _files(), _known(name)
    number = files.put(known, value)
    _record("set", known, version=number)
    print(f"secret://{known} is version {number} now")


@app.command()
def get(name: Name) -> None:
    """Write the current value to standard output, for whoever may read it."""
    known = _known(name)
    number, value = _files().read(known)
    _record("read", known, version=number)
    sys.stdout.write(value)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The names of the secrets, how old their values are, and who runs with an older one."""
    rows = [_row(name) for name in _files().names()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print_table(["name", "version", "since", "pending", "not closed", "runs with older"], rows)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """The versions of a secret, who runs with it, and what its rotation does next; no value."""
    from dataclasses import asdict

    from policy.errors import Refused

    known = _known(name)
    versions = _files().versions(known)
    if not versions.all:
        raise Refused(f"there is no secret {known}; make it: dafnck secret set {known}")
    told = asdict(versions) | {"used_by": _users(known), "next": _next(known)}
    if as_json:
        print(json.dumps(told, indent=1))
        return
    rows = [
        {
            "version": one.number,
            "made": at(one.made_at),
            "current since": at(one.current_since),
            "state": "pending"
            if one.number == versions.pending
            else "current"
            if one.number == versions.current
            else f"closed {at(one.disabled_at)}"
            if one.disabled_at
            else "older, still good",
        }
        for one in reversed(versions.all)
    ]
    print_table(["version", "made", "current since", "state"], rows)
    for release_id, numbers in told["used_by"].items():
        print(f"{release_id} serves with version {', '.join(numbers)}")
    print(f"next: {told['next']}")


@app.command()
def remove(name: Name) -> None:
    """Forget a secret, all its versions. What runs with it keeps running."""
    from policy.errors import Refused

    known = _known(name)
    if users := _users(known):
        raise Refused(
            f"{known} is used by {', '.join(users)}; nothing was removed. Release them without it"
        )
    _record("remove", known)
    _files().remove(known)
    print(f"{known} is forgotten; it is still good wherever it opens something")


@app.command()
def drop(
    name: Name,
    version: Annotated[int, typer.Argument(help="its number, as `dafnck secret show` tells it")],
) -> None:
    """Forget a version that is pending, or give up an older one that cannot be closed: what it
    opens stays open."""
    known = _known(name)
    _record("drop", known, version=version)
    _files().drop(known, version)
    print(f"version {version} of {known} is forgotten; close what it opens yourself")


@app.command()
def rotate(
    name: Annotated[str | None, typer.Argument(help="name/key; default: all that are due")] = None,
    now: Annotated[bool, typer.Option("--now", help="whatever its age")] = False,
    patience: Annotated[
        str, typer.Option("--patience", help="how long to wait for grace times to end: 10m")
    ] = "0s",
    here: Annotated[bool, typer.Option("--here", help="in this process, not the worker's")] = False,
    wait: Annotated[bool, typer.Option(help="follow it to its end")] = True,
    as_json: Json = False,
) -> None:
    """Turn a secret over, as its service's file says (`rotate`)."""
    from getpass import getuser

    from blocks.stack import open_stack
    from deployments.follow_flow import run
    from policy.errors import BadInput
    from policy.quantities import seconds

    try:
        longest = seconds(patience)
    except ValueError as error:
        raise BadInput(f"--patience: {error}") from None
    parameters = {"secret": name and _known(name), "now": now, "patience_seconds": longest}
    parameters["by"] = getuser()
    words = f"rotate {name or 'what is due'}"
    run(open_stack(), "rotate_secret", parameters, words, here=here, wait=wait, as_json=as_json)


def _files() -> Any:
    from blocks.secret_files import SecretFiles
    from blocks.stack import open_stack

    return SecretFiles(open_stack())


def _record(action: str, name: str, **detail: Any) -> None:
    """In the audit."""
    from contextlib import closing
    from getpass import getuser

    from blocks.ledger import Ledger
    from blocks.stack import open_stack

    with closing(Ledger(open_stack().ledger_url)) as ledger:
        ledger.record(getuser(), action, f"secret {name}", **detail)


def _known(name: str) -> str:
    from policy.errors import BadInput
    from policy.secrets import read_name

    try:
        return read_name(name)
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from None


def _row(name: str) -> dict[str, Any]:
    versions = _files().versions(name)
    current = versions.version(versions.current or 0)
    older = [
        release_id
        for release_id, numbers in _users(name).items()
        if set(numbers) - {str(versions.current)}
    ]
    return {
        "name": name,
        "version": versions.current,
        "since": at(current.current_since if current else None),
        "pending": versions.pending,
        "not closed": ", ".join(str(one.number) for one in versions.superseded),
        "runs with older": ", ".join(older),
    }


def _users(name: str) -> dict[str, list[str]]:
    """Release that serves -> the versions of the secret that it runs with."""
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from tasks.rotate import users_of

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    try:
        return users_of(stack, ledger, name)
    finally:
        ledger.close()


def _next(name: str) -> str:
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from policy.errors import BadInput
    from policy.rotation import next_step
    from tasks.rotate import Rotating
    from tasks.rotate_wanted import wanted_rotations

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    try:
        found, unclear = wanted_rotations(ledger, name)
        if name in unclear:
            return unclear[name]
        rotating = Rotating(stack, ledger, name, found[name])
        return str(next_step(found[name], rotating.seen(False)))
    except BadInput as error:
        return str(error)
    finally:
        ledger.close()


def at(moment: float | None) -> str:
    from datetime import UTC, datetime

    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")
