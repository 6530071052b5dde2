"""The `dafnck` command. Imports wait inside the commands, so that each starts fast.

Exit codes: 0 done, 1 refused or rolled back, 2 bad input, 3 the environment is not as it must be.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="dafnck",
    help="Releases services so that every release is boring.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="the service file")]
Env = Annotated[str | None, typer.Option("--env", help="environment of the service file")]
Json = Annotated[bool, typer.Option("--json", help="for machines")]
Service = Annotated[str, typer.Argument(help="name of the service")]


def main() -> None:
    from policy.errors import DafnckError

    try:
        app()
    except DafnckError as error:
        print(f"dafnck: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print(f"dafnck: {error}; what serves serves. See dafnck doctor", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def up(
    web_port: Annotated[int | None, typer.Option(help="where requests come in (8080)")] = None,
    router_api_port: Annotated[int | None, typer.Option(help="of Traefik's API (8081)")] = None,
    prefect_port: Annotated[int | None, typer.Option(help="of Prefect's UI and API (4200)")] = None,
    listen: Annotated[
        list[int] | None, typer.Option(help="a port of the router for one service alone")
    ] = None,
) -> None:
    """Start the local stack, or what of it does not run."""
    from blocks.stack import Ports, open_stack, stack_home
    from deployments import local_stack
    from policy.errors import Unreachable

    home = stack_home()
    try:
        ports = open_stack(home).ports
    except Unreachable:
        ports = Ports()
    given = {"web": web_port, "router_api": router_api_port, "prefect": prefect_port}
    changed: dict[str, Any] = {name: port for name, port in given.items() if port is not None}
    changed["services"] = sorted({*ports.services, *(listen or [])})
    home.mkdir(parents=True, exist_ok=True)
    stack = local_stack.up(home, ports.model_copy(update=changed), lambda part: print(f"  {part}"))
    print(f"Requests come in at http://127.0.0.1:{stack.ports.web}, by the Host of each service.")
    print(f"Prefect's UI: http://127.0.0.1:{stack.ports.prefect}")
    print(f"Its login is in {stack.prefect_auth_file}")


@app.command()
def down() -> None:
    """Stop the local stack and everything that runs in it. `up` brings it back."""
    from blocks.stack import open_stack
    from deployments import local_stack

    local_stack.down(open_stack(), lambda part: print(f"  {part}"))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is missing or unhealthy, and the fix."""
    from dataclasses import asdict

    from blocks.stack import open_stack
    from deployments.doctor import examine

    findings = list(examine(open_stack()))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            fix = f"   fix: {finding.fix}" if finding.fix else ""
            print(f"{'ok ' if finding.ok else 'BAD'} {finding.part:16} {finding.words}{fix}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 3)


@app.command()
def validate(file: File = Path("dafnck.yaml"), as_json: Json = False) -> None:
    """Read a service file for every environment; nothing is changed."""
    from tasks.read import configuration, read_all

    wanted = read_all(file)
    for environment, service in wanted.items():
        configuration(service, environment, file)
    if as_json:
        print(json.dumps({e: s.model_dump(mode="json") for e, s in wanted.items()}, indent=1))
        return
    for environment, service in wanted.items():
        rollout = service.rollout
        steps = ", ".join(f"{share}%" for share in rollout.shares)
        print(f"{service.service} in {environment}: {rollout.strategy}, {steps}; good")


@app.command()
def schema() -> None:
    """Print the JSON schema of the service file, for editors."""
    from policy.service_file import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
def release(
    file: File = Path("dafnck.yaml"),
    env: Env = None,
    version: Annotated[str | None, typer.Option(help="what to call it; default: git's")] = None,
    here: Annotated[bool, typer.Option("--here", help="in this process, not the worker's")] = False,
    wait: Annotated[bool, typer.Option(help="follow it to its end")] = True,
    as_json: Json = False,
) -> None:
    """Release a service as its file says."""
    from blocks.builder import version_of
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from deployments import follow
    from tasks.read import configuration, read_service
    from tasks.site import site_of_file

    file = file.absolute()
    wanted, env = read_service(file, env)
    configuration(wanted, env, file)
    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    site_of_file(stack, ledger, wanted, env, file)
    version = version or version_of(file.parent)
    parameters = {"service_file": str(file), "environment": env, "version": version}
    name = f"{wanted.service} {version} → {env}"
    follow.run(stack, ledger, "release", parameters, name, here=here, wait=wait, as_json=as_json)


@app.command()
def rollback(
    service: Service,
    env: Env = None,
    to: Annotated[str | None, typer.Option(help="id of a release; default: the last good")] = None,
    here: Annotated[bool, typer.Option("--here", help="in this process, not the worker's")] = False,
    wait: Annotated[bool, typer.Option(help="follow it to its end")] = True,
    as_json: Json = False,
) -> None:
    """Go back to the last good release, or to a named one."""
    from deployments import follow

    stack, ledger, env = _known(service, env)
    parameters = {"service": service, "environment": env, "to": to}
    name = f"{service} ← {env}"
    follow.run(stack, ledger, "rollback", parameters, name, here=here, wait=wait, as_json=as_json)


@app.command()
def approve(service: Service, env: Env = None) -> None:
    """Let a rollout that waits for a person go on."""
    from getpass import getuser

    from policy.errors import Refused

    _, ledger, env = _known(service, env)
    rollout = _active(ledger, service, env)
    last = (ledger.decisions(rollout.id) or [{"action": "", "reason": ""}])[-1]
    if last["action"] != "AskApproval" and "dafnck approve" not in last["reason"]:
        raise Refused(
            f"rollout {rollout.id} of {rollout.version} waits for nobody ({rollout.phase}); "
            "nothing was changed"
        )
    ledger.approve(rollout.id, getuser())
    print(f"{service} in {env}: rollout {rollout.id} of {rollout.version} may go on")


@app.command()
def abort(
    service: Service,
    env: Env = None,
    reason: Annotated[str, typer.Option(help="why, for the record")] = "",
) -> None:
    """End a rollout: all traffic back to the stable release."""
    import time
    from getpass import getuser

    from policy.errors import Refused, Unreachable
    from policy.release import FINISHED, Phase

    _, ledger, env = _known(service, env)
    rollout = _active(ledger, service, env)
    ledger.abort(rollout.id, f"aborted by {getuser()}" + (f": {reason}" if reason else ""))
    give_up = time.monotonic() + 60
    while (lease := ledger.lease(service, env)) and lease.rollout_id == rollout.id:
        if time.monotonic() > give_up:
            raise Unreachable(
                f"the abort of rollout {rollout.id} is written down, but it is still "
                f"{ledger.rollout(rollout.id).phase}; it takes effect at the next look, after a "
                "build at the latest"
            )
        time.sleep(0.1)
    now = ledger.rollout(rollout.id)
    if now.phase not in FINISHED:
        raise Unreachable(
            f"nobody leads rollout {rollout.id} any more ({now.phase}); end it: "
            f"dafnck rollback {service} --env {env}"
        )
    if now.phase is Phase.PROMOTED:
        raise Refused(
            f"too late: {now.version} was promoted. To go back: "
            f"dafnck rollback {service} --env {env}"
        )
    print(f"{service} in {env}: {now.phase}: {now.reason}")


@app.command()
def status(as_json: Json = False) -> None:
    """What serves, with which share, how many replicas, since when, and what changes now."""
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from deployments import look

    stack = open_stack()
    services = look.status(stack, Ledger(stack.ledger_url))
    print(json.dumps(services, indent=1) if as_json else look.status_text(services))


@app.command()
def history(
    service: Annotated[str | None, typer.Argument(help="one service alone")] = None,
    env: Env = None,
    limit: Annotated[int, typer.Option(help="how many")] = 20,
    as_json: Json = False,
) -> None:
    """Rollouts, newest first: what was released, how it ended and why."""
    from dataclasses import asdict

    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from deployments import look

    ledger = Ledger(open_stack().ledger_url)
    if service:
        _known(service, env)
    rollouts = ledger.history(service, env, limit)
    if as_json:
        print(json.dumps([asdict(rollout) for rollout in rollouts], indent=1))
    else:
        print(look.history_text(rollouts))


@app.command()
def logs(
    service: Service,
    env: Env = None,
    release_id: Annotated[str | None, typer.Option("--release", help="default: the stable")] = None,
    lines: Annotated[int, typer.Option(help="of each replica")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until Ctrl-C")] = False,
) -> None:
    """Print what the replicas of a release write."""
    from deployments import look

    stack, ledger, env = _known(service, env)
    newest = [release_id, ledger.stable(service, env), *ledger.releases(service, env)]
    wanted = next((release for release in newest if release), f"{service} in {env}")
    look.logs(stack, wanted, lines, follow)


@app.command()
def report(
    service: Service,
    env: Env = None,
    rollout_id: Annotated[int | None, typer.Option("--rollout", help="default: the last")] = None,
) -> None:
    """Write the HTML report of a rollout and print its path."""
    from policy.errors import Refused
    from tasks.report import write_report
    from tasks.site import local_site

    stack, ledger, env = _known(service, env)
    rollouts = ledger.history(service, env, limit=1000)
    ids = [rollout.id for rollout in rollouts]
    if not ids or (rollout_id is not None and rollout_id not in ids):
        raise Refused(f"the ledger knows no such rollout of {service} in {env}")
    site = local_site(stack, ledger, service, env)
    print(write_report(site, rollout_id or ids[0]))


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running")] = False,
) -> None:
    """Show a good release, a bad one that is rolled back, and a blue-green switch, under load."""
    os.environ["DAFNCK_HOME"] = str(Path(".demo").absolute())  # wiped: never a real stack
    from deployments import demo as story

    raise typer.Exit(story.run(keep))


def _known(service: str, env: str | None) -> Any:
    """-> stack, ledger, environment; the environment may be left out when there is only one."""
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from policy.errors import BadInput

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    everywhere = {rollout.environment for rollout in ledger.history(service, limit=1000)}
    if not everywhere:
        raise BadInput(f"the ledger knows no service {service}; see dafnck status")
    if env is None and len(everywhere) > 1:
        raise BadInput(f"{service}: name an environment by --env: {', '.join(sorted(everywhere))}")
    if env is not None and env not in everywhere:
        raise BadInput(f"{service} was never in {env}; it was in {', '.join(sorted(everywhere))}")
    return stack, ledger, env or next(iter(everywhere))


def _active(ledger: Any, service: str, env: str) -> Any:
    from policy.errors import Refused

    active = ledger.unfinished(service, env)
    if not active:
        raise Refused(f"nothing is being rolled out of {service} in {env}; see dafnck status")
    return active[0]


if __name__ == "__main__":
    main()
