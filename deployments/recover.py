"""`dafnck recover`: the day of the disaster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policy.errors import BadInput

if TYPE_CHECKING:
    from blocks.stack import Ports

Json = Annotated[bool, typer.Option("--json", help="for machines")]


def recover(
    service: Annotated[
        str | None, typer.Argument(help="with --env: that an environment takes over")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--from", help="store with the backups: s3://… file:///…")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="the key file")] = None,
    home: Annotated[
        Path | None, typer.Option(help="where to; default: $DAFNCK_HOME or ~/.dafnck")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option(help="as it was then: 2026-11-25T02:15:00Z; default: the newest")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="TARGET=DIR: where a server goes that is backed up physically"),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="TARGET: go on without this data, which is lost then")
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", help="the environment that takes over, beside --of")
    ] = None,
    of: Annotated[str | None, typer.Option("--of", help="from which environment")] = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", help="with --env: SERVICE/ENV, what is replaced")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="with --env: in this process, not the worker's")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rebuild everything on an empty machine, from a store and the key file alone. Killed, the same
    command goes on. With --env: have one environment of a service take over from another."""
    if env is not None or of is not None or service is not None:
        if service is None or env is None or of is None or home is not None or without or data:
            raise BadInput(
                "an environment takes over by: dafnck recover SERVICE --env ENV --of ENV; a "
                "machine comes back by: dafnck recover --from STORE --key FILE. Nothing was changed"
            )
        _take_over(
            {
                "service": service,
                "environment": env,
                "of": of,
                "confirm": confirm or "",
                "to_time": _moment(to_time),
                "store": store,
                "key_file": str(key.absolute()) if key else None,
            },
            here,
            as_json,
        )
        return
    if store is None or key is None:
        raise BadInput("name the store and the key file: --from STORE --key FILE")
    import sys

    from blocks.stack import stack_home
    from deployments.local_stack import up
    from tasks.recover import Recovering, recover
    from tasks.recover_page import data_rows, facts, service_rows, step_rows, verdict

    job = Recovering(
        store,
        key,
        (home or stack_home()).absolute(),
        bring_up=lambda place, said: up(place, open_ports(place), said),
        said=lambda words: print(words, file=sys.stderr, flush=True),
        to_time=_moment(to_time),
        without=frozenset(without or []),
        data=dict(_data(one) for one in data or []),
    )
    told = recover(job)
    if as_json:
        print(told.model_dump_json(indent=1))
    else:
        for name, value in facts(told):
            print(f"{name:26} {value}")
        for rows in (data_rows(told), service_rows(told), step_rows(told)):
            table(rows)
        for words in told.notes:
            print(f"note: {words}")
        print(verdict(told))
    raise typer.Exit(1 if told.troubles else 0)


def _take_over(parameters: dict[str, Any], here: bool, as_json: bool) -> None:
    from getpass import getuser

    from blocks.stack import open_stack
    from deployments import follow_flow

    name = f"{parameters['environment']} takes over {parameters['service']}"
    parameters["by"] = getuser()
    how = {"here": here, "wait": True, "as_json": as_json}
    follow_flow.run(open_stack(), "recover", parameters, name, **how)


def open_ports(home: Path) -> "Ports":
    from blocks.stack import open_stack

    return open_stack(home).ports


def table(rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    print()
    shown = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _data(given: str) -> tuple[str, Path]:
    target, _, folder = given.partition("=")
    if target.count("/") != 2 or not folder:
        raise BadInput(f"--data: {given!r} is not service/environment/name=DIR")
    return target, Path(folder).absolute()


def _moment(text: str | None) -> float | None:
    """Seconds since the epoch. Raises BadInput."""
    from policy.quantities import moment

    return None if text is None else moment(text).timestamp()
