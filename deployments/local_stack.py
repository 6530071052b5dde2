"""The local stack: supervisord keeps Traefik, Prefect's server and a worker alive on loopback."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blocks.docker_host import DockerHost
from blocks.exec_replica import started
from blocks.files import locked, write_atomically
from blocks.ledger import Ledger
from blocks.ports import ObjectStore
from blocks.prefect_api import PrefectApi
from blocks.processes import Process, unmarked
from blocks.signing import Keys
from blocks.stack import Ports, Stack, listens, stack_at
from blocks.supervisor import Program, Supervisor
from blocks.traefik import LATENCY_BUCKETS, shared_document
from deployments import seaweedfs
from policy.errors import BadInput, DafnckError, Refused, Unreachable
from tasks.lease import held_lease
from tasks.put_back import make_room, no_way_back, patiently, unfinished_first
from tasks.site import Site, site_of, store_of

TRAEFIK, SERVER, WORKER = "traefik", "prefect-server", "prefect-worker"
GUARD, STORE = "dafnck-guard", "object-store"
WORK_POOL = "dafnck-local"
# What not every shell knows: targets of notifications, secrets of builds, databases that are backed
# up, who may read metrics, the way into clusters; and credentials of an object store that is not
# the stack's own.
TARGETS = (
    "DAFNCK_NOTIFY_",
    "DAFNCK_BUILD_",
    "DAFNCK_BACKUP_",
    "DAFNCK_SECRET_",
    "DAFNCK_METRICS_",
    "KUBECONFIG",
    "KUBERNETES_",
)
CREDENTIALS = ("AWS_",)
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def up(home: Path, ports: Ports, said: Callable[[str], None]) -> Stack:
    """Start what does not run, leave alone what does. `said` hears of each step.

    Raises BadInput for a port that another program has: nothing is changed then. Raises the first
    trouble with a service after everything else is up."""
    with locked(home / "up.lock"):
        stack = stack_at(home, ports)
        supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
        runs = supervisor.answers()
        if stack.store_url is None:
            stored = _is_alive(stack, supervisor.programs() if runs else {}, STORE)
            stack = stack.model_copy(update={"ports": seaweedfs.with_parts(ports, stored)})
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
        _have_signing_key(stack)
        stack.save()  # with the ledger's place, so that no shell must know it
        changed = _write_traefik(stack)
        if not runs:
            said("supervisord")
            _start_supervisord(stack, supervisor)
        said("Traefik")
        _run(stack, supervisor, TRAEFIK, _traefik_spec(stack), grace_seconds=5, restart=changed)
        _wait(lambda: _router_listens(stack, supervisor), TRAEFIK, stack, 20)
        # Then what serves: after a reboot nobody shall wait for Prefect.
        said("guard")
        _run(stack, supervisor, GUARD, _guard_spec(), grace_seconds=2)
        said("services")
        troubles = resume_services(stack)
        if stack.store_url is None:
            said("object store")
            seaweedfs.write_credentials(stack)
            _run(stack, supervisor, STORE, seaweedfs.argv(stack), grace_seconds=10)
        elif STORE in supervisor.programs():
            supervisor.remove(STORE, 10)
        said("Prefect server")
        _run(stack, supervisor, SERVER, _server_spec(stack), grace_seconds=5)
        with PrefectApi(stack.prefect_api_url, prefect_auth(stack)) as api:
            _wait(api.answers, SERVER, stack, 90)
            said("deployments and worker")
            _register(stack, api)
        _run(stack, supervisor, WORKER, _worker_spec(), grace_seconds=10)
        _wait(lambda: supervisor.programs()[WORKER].state == "RUNNING", WORKER, stack, 20)
        if stack.store_url is None:
            _wait(lambda: _takes(store_of(stack)), STORE, stack, 60)
    if troubles:
        raise troubles[0]
    return stack


def down(stack: Stack, said: Callable[[str], None]) -> None:
    """Stop everything that `up` and releases started. What was released starts again with `up`."""
    supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
    pid_file = stack.supervisor / "supervisord.pid"
    if not supervisor.answers():
        said("supervisord does not run; what it started may: dafnck up finds it")
        _stop_containers(stack, said)
        return
    pid = int(pid_file.read_text())
    process = Process(pid, started(pid))
    # The worker first: it must not start or crash runs while the rest goes away. The guard after
    # it, for what the worker leaves undone.
    for name in (WORKER, GUARD, SERVER):
        if name in supervisor.programs():
            if name == GUARD:
                _let_the_guard_end(stack, said)
            said(f"stopping {name}")
            supervisor.remove(name, 10)
    said("stopping services and the router")
    supervisor.shutdown()
    give_up = time.monotonic() + 60
    while process.alive():
        if time.monotonic() > give_up:
            raise DafnckError(f"supervisord (pid {pid}) still runs after 60s; see {stack.logs}")
        time.sleep(0.1)
    _stop_containers(stack, said)


def _stop_containers(stack: Stack, said: Callable[[str], None]) -> None:
    try:
        if stopped := DockerHost(stack).stop_all():
            said(f"stopped the containers of {', '.join(stopped)}")
    except DafnckError as error:
        said(f"containers, if there are any, were not stopped: {error}")


def _let_the_guard_end(
    stack: Stack, said: Callable[[str], None], within_seconds: float = 20.0
) -> None:
    """What the worker left undone. No longer than this: what is left then is ended by `up`."""
    give_up = time.monotonic() + within_seconds
    try:
        ledger = Ledger(stack.ledger_url)
    except Unreachable as error:
        said(str(error))
        return
    try:
        while ledger.unfinished() and time.monotonic() < give_up:
            time.sleep(0.2)
        for rollout in ledger.unfinished():
            said(f"rollout {rollout.id} of {rollout.service} is unfinished; dafnck up ends it")
    except Unreachable as error:
        said(str(error))
    finally:
        ledger.close()


def _takes(store: ObjectStore) -> bool:
    """It listens before it has a place to write to."""
    try:
        store.put("ready", b"")
    except Unreachable:
        return False
    return True


def _router_listens(stack: Stack, supervisor: Supervisor) -> bool:
    """Ours: the orphan of a killed supervisord listens until its successor ends it."""
    program = supervisor.programs()[TRAEFIK]
    try:
        pid = int((stack.supervisor / f"{TRAEFIK}.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return False
    return pid == program.pid and listens(stack.ports.web) and listens(stack.ports.router_api)


def resume_services(stack: Stack) -> list[DafnckError]:
    """End what died, and have every stable release run and be routed. -> the troubles: each service
    has its turn. One that somebody else acts on, the guard perhaps, is left to them."""
    troubles: list[DafnckError] = []
    try:
        ledger = Ledger(stack.ledger_url)
    except DafnckError as error:
        return [error]
    try:
        stables = {(service, env): release for service, env, release, _ in ledger.stables()}
        places = {(r.service, r.environment) for r in ledger.unfinished()} | set(stables)
        for service, environment in sorted(places):
            try:
                _resume(site_of(stack, ledger, service, environment))
            except DafnckError as error:
                troubles.append(error)
    except DafnckError as error:
        troubles.append(error)
    finally:
        ledger.close()
    return troubles


def _resume(site: Site) -> None:
    with ExitStack() as until:
        until.callback(site.outbox.close)  # the lease is free then
        try:
            site, _ = until.enter_context(held_lease(site, "dafnck up"))
        except Refused:
            return  # somebody acts on it
        left = site.ledger.unfinished(site.service, site.environment)
        frozen = site.ledger.frozen(site.service, site.environment)
        held_back = any(no_way_back(site, rollout) for rollout in [*left, *frozen])
        trouble = _serve_as_it_is(site) if held_back else None
        unfinished_first(site)
        if trouble:
            raise trouble
        if held_back:
            return  # a person decides: nothing starts that has no requests
        if (release_id := site.ledger.stable(site.service, site.environment)) is not None:
            for attempt in patiently():  # the router may be reading its files yet
                with attempt:
                    make_room(site, release_id)
                    if not any(site.platform.router.shares().values()):
                        site.platform.router.set_shares({release_id: 100})


def _serve_as_it_is(site: Site) -> DafnckError | None:
    """Have every release run that has a share, before anybody looks whether it is dead. -> the
    first trouble."""
    trouble = None
    for release_id, share in site.platform.router.shares().items():
        try:
            if share:
                make_room(site, release_id)
        except DafnckError as error:
            trouble = trouble or error
    return trouble


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


def _guard_spec() -> list[str]:
    return [sys.executable, "-m", "deployments.guard"]


def _environment(stack: Stack, name: str) -> dict[str, str]:
    inherited = ("PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE")
    environment = {key: os.environ[key] for key in inherited if key in os.environ}
    # Builds run in the worker and need what the person's shell says about package indexes.
    prefixes = ("UV_", "PIP_", "HTTP_", "HTTPS_", "NO_PROXY", "http_", "https_", "no_proxy")
    passed = (*prefixes, *TARGETS, "DOCKER_")
    environment |= {k: v for k, v in os.environ.items() if k.startswith(passed)}
    if name in (TRAEFIK, STORE):
        return {}
    environment |= prefect_environment(stack)
    environment["DAFNCK_LEDGER_URL"] = stack.ledger_url  # whatever the next shell says
    if stack.store_url:
        environment["DAFNCK_OBJECT_STORE_URL"] = stack.store_url
    if name == WORKER:  # who alone stores things, and reads secrets
        environment |= _kept(os.environ, CREDENTIALS)
    if name == SERVER:
        environment["PREFECT_SERVER_API_AUTH_STRING"] = environment["PREFECT_API_AUTH_STRING"]
        del environment["PREFECT_API_URL"]
        environment["PREFECT_UI_API_URL"] = stack.prefect_api_url
    else:
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
        # Of many runs that are submitted at once, Prefect's SQLite answers some with 503, and
        # those that ask again must not do so at the same moment: a run that got no answer five
        # times, the default, would be given up as crashed.
        environment["PREFECT_CLIENT_MAX_RETRIES"] = "8"
        environment["PREFECT_CLIENT_RETRY_JITTER_FACTOR"] = "0.9"
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
    content: dict[str, Any] = {
        "argv": argv,
        "env": _environment(stack, name),
        "cwd": str(stack.home),
        "grace_seconds": grace_seconds,
    }
    program = supervisor.programs().get(name)
    if program and program.alive:
        before = json.loads(spec.read_text())
        if restart or _ours(content) != _ours(before):
            supervisor.remove(name, grace_seconds)
        else:
            content["env"] = _kept(before["env"], TARGETS + CREDENTIALS) | content["env"]
    write_atomically(spec, json.dumps(content, indent=1), 0o600)
    log = stack.logs / f"{name}.log"
    supervisor.add(name, spec, log, restarts=50, grace_seconds=grace_seconds)


def _ours(spec: dict[str, Any]) -> Any:
    """What must be the same for a program to be left alone; not what a shell happens to bring."""
    prefixes = ("PREFECT_", "DAFNCK_")
    ours = {k: v for k, v in spec["env"].items() if k.startswith(prefixes)}
    return spec["argv"], {k: v for k, v in ours.items() if not k.startswith(TARGETS)}


def _kept(environment: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """No release ends because a shell does not know these."""
    return {k: v for k, v in environment.items() if k.startswith(prefixes)}


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
                "buckets": LATENCY_BUCKETS,
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


def _have_signing_key(stack: Stack) -> None:
    keys = Keys(stack.secrets, stack.keys)
    if not keys.there():
        keys.make()


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
        env=unmarked(os.environ),  # it outlives us, whoever started us
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
    if _is_alive(stack, programs, STORE):
        before = Ports.model_validate_json((stack.home / "stack.json").read_text())
        ours |= {before.object_store, *before.store_parts}
    wanted = {
        stack.ports.web: "requests (--web-port)",
        stack.ports.router_api: "the router's API (--router-api-port)",
        stack.ports.prefect: "Prefect (--prefect-port)",
        **({} if stack.store_url else {stack.ports.object_store: "objects (--object-store-port)"}),
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
    return Process(int(pid), mark).alive()


def _wait(answers: Callable[[], bool], name: str, stack: Stack, limit_seconds: float) -> None:
    give_up = time.monotonic() + limit_seconds
    while not answers():
        if time.monotonic() > give_up:
            log = stack.logs / f"{name}.log"
            raise Unreachable(f"{name} does not answer after {limit_seconds:g}s; see {log}")
        time.sleep(0.1)
