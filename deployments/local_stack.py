"""The local stack: supervisord keeps Traefik, Prefect's server and a worker alive on loopback."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blocks.exec_replica import started
from blocks.files import locked, write_atomically
from blocks.ledger import Ledger
from blocks.prefect_api import PrefectApi
from blocks.stack import Ports, Stack, listens, stack_at
from blocks.supervisor import Program, Supervisor
from blocks.traefik import shared_document
from policy.errors import BadInput, DafnckError, Unreachable
from tasks.lease import held_lease
from tasks.put_back import make_room, unfinished_first
from tasks.site import local_site

TRAEFIK, SERVER, WORKER = "traefik", "prefect-server", "prefect-worker"
WORK_POOL = "dafnck-local"
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def up(home: Path, ports: Ports, said: Callable[[str], None]) -> Stack:
    """Start what does not run, leave alone what does. `said` hears of each step.

    Raises BadInput for a port that another program has: nothing is changed then."""
    with locked(home / "up.lock"):
        stack = stack_at(home, ports)
        supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
        runs = supervisor.answers()
        _check_ports(stack, supervisor if runs else None)
        for folder in (
            stack.dynamic,
            stack.logs,
            stack.releases,
            stack.artifacts,
            stack.reports,
            stack.home / "tmp",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        _write_secret(stack)
        stack.save()  # with the ledger's place, so that no shell must know it
        changed = _write_traefik(stack)
        if not runs:
            said("supervisord")
            _start_supervisord(stack, supervisor)
        said("Traefik")
        _run(stack, supervisor, TRAEFIK, _traefik_spec(stack), grace_seconds=5, restart=changed)
        _wait(lambda: listens(ports.web) and listens(ports.router_api), TRAEFIK, stack, 20)
        said("Prefect server")
        _run(stack, supervisor, SERVER, _server_spec(stack), grace_seconds=5)
        with PrefectApi(stack.prefect_api_url, prefect_auth(stack)) as api:
            _wait(api.answers, SERVER, stack, 90)
            said("deployments and worker")
            _register(stack, api)
        _run(stack, supervisor, WORKER, _worker_spec(), grace_seconds=10)
        said("services")
        resume_services(stack)
    return stack


def down(stack: Stack, said: Callable[[str], None]) -> None:
    """Stop everything that `up` and releases started. What was released starts again with `up`."""
    supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
    pid_file = stack.supervisor / "supervisord.pid"
    if not supervisor.answers():
        said("supervisord does not run; what it started may: dafnck up finds it")
        return
    pid = int(pid_file.read_text())
    mark = started(pid)
    # The worker first: it must not start or crash runs while the rest goes away.
    for name in (WORKER, SERVER):
        if name in supervisor.programs():
            said(f"stopping {name}")
            supervisor.remove(name, 10)
    said("stopping services and the router")
    supervisor.shutdown()
    give_up = time.monotonic() + 60
    while _alive(pid, mark):
        if time.monotonic() > give_up:
            raise DafnckError(f"supervisord (pid {pid}) still runs after 60s; see {stack.logs}")
        time.sleep(0.1)


def resume_services(stack: Stack) -> None:
    """Have every stable release run and be routed; end rollouts that nobody leads any more.

    Raises the first trouble, after all services had their turn."""
    ledger = Ledger(stack.ledger_url)
    troubles: list[DafnckError] = []
    try:
        stables = {(service, env): release for service, env, release, _ in ledger.stables()}
        places = {(r.service, r.environment) for r in ledger.unfinished()} | set(stables)
        for service, environment in sorted(places):
            if ledger.lease(service, environment) is not None:
                continue  # somebody acts on it
            site = local_site(stack, ledger, service, environment)
            try:
                with held_lease(ledger, service, environment, "dafnck up"):
                    unfinished_first(site)
                    if (release_id := ledger.stable(service, environment)) is not None:
                        make_room(site, release_id)
                        if not any(site.platform.router.shares().values()):
                            site.platform.router.set_shares({release_id: 100})
            except DafnckError as error:
                troubles.append(error)
    finally:
        ledger.close()
    if troubles:
        raise troubles[0]


def prefect_environment(stack: Stack) -> dict[str, str]:
    """What a process needs to talk to the stack's Prefect server."""
    return {
        "PREFECT_API_URL": stack.prefect_api_url,
        "PREFECT_API_AUTH_STRING": prefect_auth(stack),
        **quiet_prefect(stack),
    }


def quiet_prefect(stack: Stack) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(stack.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "dafnck",
        "PREFECT_CLI_COLORS": "false",
        "DAFNCK_HOME": str(stack.home),
    }


# -- the parts --------------------------------------------------------------------------------


def _traefik_spec(stack: Stack) -> list[str]:
    return [str(BIN / "traefik"), f"--configFile={stack.home / 'traefik' / 'traefik.json'}"]


def _server_spec(stack: Stack) -> list[str]:
    port = str(stack.ports.prefect)
    return [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", port]


def _worker_spec() -> list[str]:
    words = ["worker", "start", "--pool", WORK_POOL, "--name", "local", "--type", "process"]
    return [str(BIN / "prefect"), *words]


def _environment(stack: Stack, name: str) -> dict[str, str]:
    inherited = ("PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "DAFNCK_LEDGER_URL")
    environment = {key: os.environ[key] for key in inherited if key in os.environ}
    # Builds run in the worker and need what the person's shell says about package indexes.
    prefixes = ("UV_", "PIP_", "HTTP_", "HTTPS_", "NO_PROXY", "http_", "https_", "no_proxy")
    environment |= {k: v for k, v in os.environ.items() if k.startswith(prefixes)}
    if name == TRAEFIK:
        return {}
    environment |= prefect_environment(stack)
    if name == SERVER:
        environment["PREFECT_SERVER_API_AUTH_STRING"] = environment["PREFECT_API_AUTH_STRING"]
        del environment["PREFECT_API_URL"]
        environment["PREFECT_UI_API_URL"] = stack.prefect_api_url
    else:
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
        # Prefect's runner keeps a folder of one fixed name there: not shared with other users.
        environment["TMPDIR"] = str(stack.home / "tmp")
    return environment


def _run(
    stack: Stack,
    supervisor: Supervisor,
    name: str,
    argv: list[str],
    *,
    grace_seconds: float,
    restart: bool = False,
) -> None:
    spec = stack.supervisor / f"{name}.json"
    content = {
        "argv": argv,
        "env": _environment(stack, name),
        "cwd": str(stack.home),
        "grace_seconds": grace_seconds,
    }
    program = supervisor.programs().get(name)
    text = json.dumps(content, indent=1)
    if (
        program
        and program.alive
        and (restart or _ours(content) != _ours(json.loads(spec.read_text())))
    ):
        supervisor.remove(name, grace_seconds)
    write_atomically(spec, text, 0o600)
    log = stack.logs / f"{name}.log"
    supervisor.add(name, spec, log, restarts=50, grace_seconds=grace_seconds)


def _ours(spec: dict[str, Any]) -> Any:
    """What must be the same for a program to be left alone; not what a shell happens to bring."""
    prefixes = ("PREFECT_", "DAFNCK_")
    return spec["argv"], {k: v for k, v in spec["env"].items() if k.startswith(prefixes)}


def _write_traefik(stack: Stack) -> bool:
    """-> whether Traefik must be restarted to know of it."""
    address = "127.0.0.1:{}".format
    points = {"web": stack.ports.web} | {f"port-{port}": port for port in stack.ports.services}
    static = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "noColor": True},
        "entryPoints": {
            name: {
                "address": address(port),
                "http": {"aliasHeadersStrategy": "delete"},
                # On SIGTERM: finish what is under way.
                "transport": {"lifeCycle": {"graceTimeOut": "5s"}},
            }
            for name, port in points.items()
        }
        | {
            "traefik": {
                "address": address(stack.ports.router_api),
                "http": {"aliasHeadersStrategy": "delete"},
            }
        },
        "providers": {
            "providersThrottleDuration": "20ms",
            "file": {"directory": str(stack.dynamic), "watch": True},
        },
        "api": {"insecure": True, "dashboard": False},  # read-only, on loopback
        "metrics": {
            "prometheus": {
                "entryPoint": "traefik",
                "addServicesLabels": True,
                "addEntryPointsLabels": False,
                "buckets": [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30],
            }
        },
    }
    write_atomically(stack.dynamic / "dafnck.yaml", shared_document())
    path = stack.home / "traefik" / "traefik.json"
    text = json.dumps(static, indent=1) + "\n"
    changed = path.exists() and path.read_text() != text
    write_atomically(path, text)
    return changed


def _write_secret(stack: Stack) -> None:
    if not stack.prefect_auth_file.exists():
        stack.prefect_auth_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(stack.prefect_auth_file, f"dafnck:{secrets.token_urlsafe(24)}\n", 0o600)


def prefect_auth(stack: Stack) -> str:
    return stack.prefect_auth_file.read_text().strip()


def _start_supervisord(stack: Stack, supervisor: Supervisor) -> None:
    folder = stack.supervisor
    (folder / "conf.d").mkdir(parents=True, exist_ok=True)
    stack.supervisor_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = stack.supervisor_socket.parent.stat()
    if owner.st_uid != os.geteuid():
        raise BadInput(f"{stack.supervisor_socket.parent} belongs to another user")
    escaped = str(folder).replace("%", "%%")
    lines = [
        "[supervisord]",
        f"logfile={str(stack.logs).replace('%', '%%')}/supervisord.log",
        f"pidfile={escaped}/supervisord.pid",
        f"childlogdir={escaped}",
        "logfile_maxbytes=10MB",
        "minfds=4096",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[unix_http_server]",
        f"file={str(stack.supervisor_socket).replace('%', '%%')}",
        "chmod=0600",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        "[include]",
        f"files = {escaped}/conf.d/*.conf",
    ]
    write_atomically(folder / "supervisord.conf", "\n".join(lines) + "\n")
    begun = subprocess.run(
        [str(BIN / "supervisord"), "-c", str(folder / "supervisord.conf")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if begun.returncode != 0:
        last = (begun.stderr or begun.stdout).strip().splitlines()[-1:]
        raise Unreachable(f"supervisord does not start: {''.join(last)}; see {stack.logs}")
    _wait(supervisor.answers, "supervisord", stack, 20)


def _register(stack: Stack, api: PrefectApi) -> None:
    """`prefect deploy --all`, which takes seconds: only when prefect.yaml or we have changed."""
    file = next(p for p in (HERE.parent / "prefect.yaml", HERE / "prefect.yaml") if p.exists())
    api.have_work_pool(WORK_POOL)
    mark = stack.home / "prefect" / "deployed"
    content = f"{version('dafnck')} {sys.executable}\n{file.read_text()}"
    if mark.exists() and mark.read_text() == content and api.knows("release", "local"):
        return
    done = subprocess.run(
        [str(BIN / "prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        cwd=file.parent,
        env=_environment(stack, WORKER),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-2000:]
        raise DafnckError(f"the deployments cannot be registered; what serves serves:\n{said}")
    write_atomically(mark, content)


def _check_ports(stack: Stack, supervisor: Supervisor | None) -> None:
    """Ports that our own parts hold are fine, also when those outlived their supervisord."""
    programs = supervisor.programs() if supervisor else {}
    ours: set[int] = set()
    if _is_alive(stack, programs, TRAEFIK):
        static = json.loads((stack.home / "traefik" / "traefik.json").read_text())
        for point in static["entryPoints"].values():
            ours.add(int(point["address"].rpartition(":")[2]))
    if _is_alive(stack, programs, SERVER):
        saved = Ports.model_validate_json((stack.home / "stack.json").read_text())
        ours.add(saved.prefect)
    wanted = {
        stack.ports.web: "requests (--web-port)",
        stack.ports.router_api: "the router's API (--router-api-port)",
        stack.ports.prefect: "Prefect (--prefect-port)",
        **dict.fromkeys(stack.ports.services, "one service alone (--listen)"),
    }
    for port, purpose in wanted.items():
        if port not in ours and listens(port):
            raise BadInput(
                f"port {port}, wanted for {purpose}, is in use by another program; nothing was "
                "changed. Choose another one, or free it"
            )


def _is_alive(stack: Stack, programs: Mapping[str, Program], name: str) -> bool:
    if name in programs:
        return programs[name].alive
    try:
        pid, mark, _ = (stack.supervisor / f"{name}.pid").read_text().split()
    except FileNotFoundError:
        return False
    return _alive(int(pid), mark)


def _wait(answers: Callable[[], bool], name: str, stack: Stack, limit_seconds: float) -> None:
    give_up = time.monotonic() + limit_seconds
    while not answers():
        if time.monotonic() > give_up:
            log = stack.logs / f"{name}.log"
            raise Unreachable(f"{name} does not answer after {limit_seconds:g}s; see {log}")
        time.sleep(0.1)


def _alive(pid: int, mark: str) -> bool:
    try:
        return started(pid) == mark
    except (FileNotFoundError, ProcessLookupError):
        return False
