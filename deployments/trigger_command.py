"""`dafnck trigger`: a release by Prefect's API alone, as CI jobs start it."""

from pathlib import Path
from typing import Annotated

import typer


def trigger(
    file: Annotated[Path, typer.Argument(help="the service file")] = Path("dafnck.yaml"),
    env: Annotated[str | None, typer.Option("--env", help="of the service file")] = None,
    version: Annotated[
        str | None, typer.Option(help="what to call it; default: the commit's first 12 digits")
    ] = None,
    git: Annotated[
        str | None, typer.Option(help="URL from which the worker fetches; default: origin's")
    ] = None,
    commit: Annotated[str | None, typer.Option(help="default: the one checked out")] = None,
    image: Annotated[
        str | None, typer.Option(help="repository@sha256:… instead of what the file builds")
    ] = None,
    flow: Annotated[
        str, typer.Option(help="release, or pipeline: all but the release")
    ] = "release",
    deployment: Annotated[
        str, typer.Option(help="of the flow, in Prefect", envvar="DAFNCK_DEPLOYMENT")
    ] = "local",
    override_freeze: Annotated[
        str | None, typer.Option(help="begin in a freeze window, and why: for the record")
    ] = None,
    wait: Annotated[bool, typer.Option(help="follow it to its end")] = True,
    timeout: Annotated[
        str | None, typer.Option(help="follow no longer than, such as 30m; then as for Ctrl-C")
    ] = None,
    cancel_on_interrupt: Annotated[
        bool,
        typer.Option(
            "--cancel-on-interrupt", help="Ctrl-C and SIGTERM cancel the run, which rolls it back"
        ),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="a new run, when that for this commit has ended")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="one object on stdout at the end; the log on stderr")
    ] = False,
) -> None:
    """Release by Prefect's API alone, once for the same commit: for CI jobs.

    The server is PREFECT_API_URL, the credentials PREFECT_API_AUTH_STRING or PREFECT_API_KEY.
    """
    from deployments import trigger as triggered
    from deployments.follow_run import Manner
    from policy.errors import BadInput
    from policy.quantities import seconds

    if override_freeze is not None and not override_freeze.strip():
        raise BadInput("--override-freeze needs a reason; nothing was started")
    try:
        limit = None if timeout is None else seconds(timeout)
    except ValueError as error:
        raise BadInput(f"--timeout: {error}") from None
    manner = Manner(cancel_on_interrupt=cancel_on_interrupt, timeout_seconds=limit)
    code = triggered.run(
        lambda: triggered.wish_of(
            file,
            env,
            version,
            git=git,
            commit=commit,
            flow=flow,
            deployment=deployment,
            freeze_override=override_freeze and override_freeze.strip(),
            image=image,
        ),
        manner,
        wait=wait,
        again=again,
        as_json=as_json,
    )
    raise typer.Exit(code)
