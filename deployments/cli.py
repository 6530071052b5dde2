"""The `dafnck` command. Imports wait inside the commands, so that each starts fast.

Exit codes: 0 done, 1 refused or rolled back, 2 bad input, 3 the environment is not as it must be.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments import (
    audit_commands,
    backup_commands,
    gate_commands,
    notify_commands,
    provenance_commands,
    recover,
    secret_commands,
    trigger_command,
    wal_commands,
)

app = typer.Typer(
    name="dafnck",
    help="Releases services so that every release is boring.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(notify_commands.app, name="notify")
app.add_typer(gate_commands.scan_db, name="scan-db")
app.add_typer(backup_commands.app, name="backup")
app.add_typer(wal_commands.app, name="wal")
app.add_typer(secret_commands.app, name="secret")
app.add_typer(audit_commands.app, name="audit")
app.command()(backup_commands.restore)
app.command()(backup_commands.drill)
app.command()(recover.recover)
app.command()(provenance_commands.keygen)
app.command()(provenance_commands.verify)
app.command()(provenance_commands.discard)

File = Annotated[Path, typer.Argument(help="the service file")]
Env = Annotated[str | None, typer.Option("--env", help="environment of the service file")]
Json = Annotated[bool, typer.Option("--json", help="for machines")]
Here = Annotated[bool, typer.Option("--here", help="in this process, not the worker's")]
Follow = Annotated[bool, typer.Option(help="follow it to its end")]
Unsafe = Annotated[
    bool, typer.Option("--even-unsafe", help="go back past a contract migration; needs --reason")
]
Service = Annotated[str, typer.Argument(help="name of the service")]
OnKubernetes = Annotated[bool, typer.Option("--kubernetes", help="dafnck itself, in a cluster")]
Context = Annotated[str | None, typer.Option(help="with --kubernetes: of the kubeconfig")]
Namespace = Annotated[
    str | None, typer.Option(help="with --kubernetes: of dafnck; default: the overlay's, or dafnck")
]


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
    object_store_port: Annotated[
        int | None, typer.Option(help="of the object store's S3 (8333)")
    ] = None,
    listen: Annotated[
        list[int] | None, typer.Option(help="a port of the router for one service alone")
    ] = None,
    kubernetes: OnKubernetes = False,
    context: Context = None,
    namespace: Namespace = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="with --kubernetes: of dafnck; default: the overlay's, or what runs there"
        ),
    ] = None,
    overlay: Annotated[
        str, typer.Option(help="with --kubernetes: postgres, external-database or a folder")
    ] = "postgres",
    release_namespace: Annotated[
        list[str] | None,
        typer.Option(help="with --kubernetes: only let dafnck release to this namespace"),
    ] = None,
    gateway_namespace: Annotated[
        list[str] | None,
        typer.Option(help="with --kubernetes: only let dafnck read the Gateways of this namespace"),
    ] = None,
) -> None:
    """Start the local stack, or what of it does not run; or dafnck in a cluster."""
    if kubernetes or release_namespace or gateway_namespace:
        from deployments import kube_stack

        place = kube_stack.Place(context, namespace)
        if release_namespace or gateway_namespace:
            kube_stack.grant(
                place, _step, release=release_namespace or [], gateway=gateway_namespace or []
            )
            return
        place = kube_stack.up(place, _step, image=image, overlay_name=overlay)
        print("\n".join(kube_stack.reach(place)))
        return
    from blocks.stack import Ports, open_stack, stack_home
    from deployments import local_stack
    from policy.errors import Unreachable

    home = stack_home()
    try:
        ports = open_stack(home).ports
    except Unreachable:
        ports = Ports()
    given = {
        "web": web_port,
        "router_api": router_api_port,
        "prefect": prefect_port,
        "object_store": object_store_port,
    }
    changed: dict[str, Any] = {name: port for name, port in given.items() if port is not None}
    changed["services"] = sorted({*ports.services, *(listen or [])})
    home.mkdir(parents=True, exist_ok=True)
    stack = local_stack.up(home, ports.model_copy(update=changed), _step)
    print(f"Requests come in at http://127.0.0.1:{stack.ports.web}, by the Host of each service.")
    print(f"Prefect's UI: http://127.0.0.1:{stack.ports.prefect}")
    print(f"Its login is in {stack.prefect_auth_file}")


@app.command()
def down(
    service: Annotated[
        str | None, typer.Argument(help="remove this service from an environment instead")
    ] = None,
    env: Env = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    kubernetes: OnKubernetes = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Stop the local stack and everything that runs in it; `up` brings it back. With a service:
    remove that, its releases and everything of it in a cluster; nothing brings it back."""
    from blocks.stack import open_stack
    from deployments import local_stack
    from deployments.remove import remove
    from policy.errors import BadInput

    if kubernetes:
        from deployments import kube_stack

        if service is not None:
            raise BadInput("--kubernetes takes dafnck itself down, not a service")
        kube_stack.down(kube_stack.Place(context, namespace), _step)
        return
    if service is None:
        if env is not None:
            raise BadInput("--env: of which service? Nothing was changed")
        local_stack.down(open_stack(), _step)
        return
    stack, ledger, env = _known(service, env)
    remove(stack, ledger, service, env, yes=yes)


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
    """Read a service file, or a stack file, for every environment; nothing is changed."""
    from tasks.read import configuration, read_all
    from tasks.read_stack import is_stack_file

    if is_stack_file(file):
        from deployments import follow_change

        follow_change.validate(file, as_json)
        return
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
def plan(file: File = Path("dafnck.yaml"), env: Env = None, as_json: Json = False) -> None:
    """Show what a release would change and by which steps; nothing is changed, nothing is built."""
    from deployments.plan import plan as show

    show(file, env, as_json=as_json)


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
    override_freeze: Annotated[
        str | None, typer.Option(help="begin in a freeze window, and why: for the record")
    ] = None,
    git: Annotated[
        str | None, typer.Option(help="a repository; FILE is then a path within it")
    ] = None,
    commit: Annotated[str | None, typer.Option(help="of it, the whole id")] = None,
    image: Annotated[
        str | None, typer.Option(help="repository@sha256:… instead of what the file builds")
    ] = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Release a service as its file says, from this machine or from git at a commit; with a stack
    file several services, as one change."""
    import time
    from getpass import getuser

    from blocks.checkouts import Checkouts, version_of
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from deployments import follow
    from policy.errors import BadInput
    from tasks.frozen import none_frozen, outside_freeze
    from tasks.read import configuration, read_service, with_image
    from tasks.read_stack import is_stack_file
    from tasks.site import site_of_file

    stack = open_stack()
    there = str(file)
    if git or commit:
        if not (git and commit):
            raise BadInput("--git and --commit go together; nothing was changed")
        file = Checkouts(stack.checkouts).service_file(git, commit, there)
    file = file.absolute()
    ledger = Ledger(stack.ledger_url)
    if is_stack_file(file):
        from deployments import follow_change

        if image is not None:
            raise BadInput("--image: a stack file is of several services; nothing was changed")
        asked: dict[str, Any] = {
            "stack_file": there if git else str(file),
            "version": version,
            "freeze_override": _said(override_freeze, "--override-freeze"),
            "by": getuser(),
            "git": git,
            "commit": commit,
        }
        how = {"here": here, "wait": wait, "as_json": as_json}
        follow_change.release(stack, ledger, file, env, asked, **how)
        return
    wanted, env = read_service(file, env)
    wanted = with_image(wanted, image)
    configuration(wanted, env, file)
    site = site_of_file(stack, ledger, wanted, env, file)
    override = _said(override_freeze, "--override-freeze")
    outside_freeze(wanted.rollout, str(site), time.time(), override)
    none_frozen(site)
    version = version or (commit or "")[:12] or version_of(file.parent)
    parameters = {
        "service_file": there if git else str(file),
        "git": git,
        "commit": commit,
        "content": file.read_text() if git else None,  # so that the run has its name from the start
        "environment": env,
        "version": version,
        "freeze_override": override,
        "by": getuser(),
        "image": image,
    }
    name = f"{wanted.service} {version} → {env}"
    follow.run(stack, ledger, "release", parameters, name, here=here, wait=wait, as_json=as_json)


app.command()(trigger_command.trigger)


@app.command()
def rollback(
    service: Service,
    env: Env = None,
    to: Annotated[str | None, typer.Option(help="id of a release; default: the last good")] = None,
    even_unsafe: Unsafe = False,
    reason: Annotated[str, typer.Option(help="why, for the record")] = "",
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Go back to the last good release, or to a named one."""
    from getpass import getuser

    from deployments import follow

    stack, ledger, env = _known(service, env)
    parameters = {
        "service": service,
        "environment": env,
        "to": to,
        "unsafe_reason": _unsafe(even_unsafe, reason),
        "by": getuser(),
    }
    name = f"{service} ← {env}"
    follow.run(stack, ledger, "rollback", parameters, name, here=here, wait=wait, as_json=as_json)


@app.command()
def renew(
    service: Service,
    env: Env = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Release what serves once more, with its secrets as they are now."""
    from getpass import getuser

    from deployments import follow

    stack, ledger, env = _known(service, env)
    parameters = {"service": service, "environment": env, "by": getuser()}
    name = f"{service} in {env} anew"
    follow.run(stack, ledger, "renew", parameters, name, here=here, wait=wait, as_json=as_json)


@app.command()
def approve(
    service: Service,
    env: Env = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Let a rollout that waits for a person go on. A frozen one is led again, and followed."""
    from getpass import getuser

    from deployments import follow
    from policy.errors import Refused

    stack, ledger, env = _known(service, env)
    if ledger.frozen(service, env):
        parameters = {"service": service, "environment": env, "by": getuser()}
        name = f"{service} → {env}, resumed"
        follow.run(stack, ledger, "resume", parameters, name, here=here, wait=wait, as_json=as_json)
        return
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
    even_unsafe: Unsafe = False,
) -> None:
    """End a rollout: all traffic back to the stable release."""
    import time
    from getpass import getuser

    from policy.errors import Frozen, Refused, Unreachable
    from policy.release import UNLED, Phase
    from tasks.abort import abort_frozen, past_no_return
    from tasks.frozen import what_now
    from tasks.site import site_of

    stack, ledger, env = _known(service, env)
    site = site_of(stack, ledger, service, env)
    unsafe = _unsafe(even_unsafe, reason)
    words = f"aborted by {getuser()}" + (f": {reason}" if reason else "")
    if ended := abort_frozen(site, words, unsafe, getuser()):
        print(f"{service} in {env}: {ended.phase}: {ended.reason}")
        return
    rollout = _active(ledger, service, env)
    if unsafe:
        ledger.abort(rollout.id, words, getuser(), unsafe_reason=unsafe, unsafe_by=getuser())
    else:
        past_no_return(site, rollout)
        ledger.abort(rollout.id, words, getuser())
    give_up = time.monotonic() + 60
    while (now := ledger.rollout(rollout.id)).phase not in UNLED or ledger.leads(now):
        if time.monotonic() > give_up:
            leads = ledger.leads(now)
            raise Unreachable(
                f"the abort of rollout {rollout.id} is written down, but it is still {now.phase}; "
                "it takes effect at the next look, after a build at the latest"
                if leads
                else f"nobody leads rollout {rollout.id} any more ({now.phase}), and the guard did "
                f"not end it (dafnck doctor); end it: dafnck rollback {service} --env {env}"
            )
        time.sleep(0.1)
    if now.phase is Phase.FROZEN:
        raise Frozen(what_now(now))
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
    look.logs(stack, ledger, wanted, lines, follow)


@app.command()
def report(
    service: Service,
    env: Env = None,
    rollout_id: Annotated[int | None, typer.Option("--rollout", help="default: the last")] = None,
) -> None:
    """Write the HTML report of a rollout and print its path."""
    from policy.errors import Refused
    from tasks.report import write_report
    from tasks.site import site_of

    stack, ledger, env = _known(service, env)
    rollouts = ledger.history(service, env, limit=1000)
    ids = [rollout.id for rollout in rollouts]
    if not ids or (rollout_id is not None and rollout_id not in ids):
        raise Refused(f"the ledger knows no such rollout of {service} in {env}")
    site = site_of(stack, ledger, service, env)
    print(write_report(site, rollout_id or ids[0]))


@app.command()
def gate(
    service: Service,
    env: Env = None,
    rollout_id: Annotated[
        int | None, typer.Option("--rollout", help="default: the last that has any")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="with all that speaks against it, and what to do")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what each gate measured, what it asks and why it is open or closed; 1 when one blocks."""
    _, ledger, env = _known(service, env)
    opened = gate_commands.gate(ledger, service, env, rollout_id, as_json=as_json, explain=explain)
    raise typer.Exit(0 if opened else 1)


@app.command()
def simulate(
    file: File = Path("dafnck.yaml"),
    env: Env = None,
    rate: Annotated[float, typer.Option(min=0.1, max=1e5, help="requests a second")] = 100.0,
    errors: Annotated[str, typer.Option(help="of the stable release")] = "0.5%",
    latency: Annotated[str, typer.Option(help="median of the stable release")] = "50ms",
    bad_errors: Annotated[str, typer.Option(help="of a bad release")] = "5%",
    slower: Annotated[
        float, typer.Option(min=1, max=1000, help="a bad release: times as slow")
    ] = 1.0,
    shape: Annotated[
        str, typer.Option(help="steady, day, wandering, clumps, bursts, outage")
    ] = "steady",
    recorded: Annotated[
        bool, typer.Option("--recorded", help="traffic of past releases, from the ledger")
    ] = False,
    releases: Annotated[int, typer.Option(min=1, max=10000, help="of each kind")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same result")] = 1,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(help="write a page with charts there")] = None,
) -> None:
    """Try a policy on made-up or recorded traffic: how often would it be wrong, how fast right?"""
    from deployments import simulate as simulation
    from policy.simulation import NewRelease, Traffic

    def number(name: str, text: str, read: Any) -> float:
        from policy.errors import BadInput

        try:
            return float(read(text))
        except ValueError as error:
            raise BadInput(f"--{name}: {error}") from None

    from policy.quantities import fraction, seconds

    median = max(0.0001, number("latency", latency, seconds))
    traffic = Traffic(rate, number("errors", errors, fraction), median, shape=shape)
    bad = NewRelease(number("bad-errors", bad_errors, fraction), slower)
    simulation.run(
        file,
        env,
        traffic,
        bad,
        recorded=recorded,
        releases=releases,
        seed=seed,
        as_json=as_json,
        page=html,
    )


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running")] = False,
) -> None:
    """Show a good release, a bad one that is rolled back, and a blue-green switch, under load."""
    os.environ["DAFNCK_HOME"] = str(Path(".demo").absolute())  # wiped: never a real stack
    from deployments import demo as story

    raise typer.Exit(story.run(keep))


def _step(words: str) -> None:
    print(f"  {words}", flush=True)


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


def _said(words: str | None, option: str) -> str | None:
    """What a person gave as a reason; a blank one is none."""
    from policy.errors import BadInput

    if words is not None and not words.strip():
        raise BadInput(f"{option} needs a reason; nothing was changed")
    return words and words.strip()


def _unsafe(even_unsafe: bool, reason: str) -> str | None:
    from policy.errors import BadInput

    if even_unsafe and not reason.strip():
        raise BadInput('--even-unsafe needs --reason "why", for the record; nothing was changed')
    return reason.strip() if even_unsafe else None


def _active(ledger: Any, service: str, env: str) -> Any:
    from policy.errors import Refused

    active = ledger.unfinished(service, env)
    if not active:
        raise Refused(f"nothing is being rolled out of {service} in {env}; see dafnck status")
    return active[0]


if __name__ == "__main__":
    main()
