"""What of the local stack is missing or unhealthy, and the fix."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from blocks.docker_engine import answers
from blocks.docker_host import DockerHost
from blocks.ledger import Ledger
from blocks.prefect_api import PrefectApi
from blocks.signing import Keys
from blocks.stack import Stack, listens
from blocks.supervisor import Supervisor
from deployments.local_stack import BIN, prefect_auth
from policy.errors import DafnckError
from policy.kubernetes import Kubernetes
from tasks.clusters import cluster_of


@dataclass(frozen=True)
class Finding:
    part: str
    ok: bool
    words: str
    fix: str = ""


def examine(stack: Stack) -> Iterator[Finding]:
    """What is missing or unhealthy, and the fix."""
    for tool in ("traefik", "supervisord", "prefect"):
        there = (BIN / tool).exists()
        yield Finding(tool, there, str(BIN / tool), "" if there else "install dafnck again")
    supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
    if not supervisor.answers():
        yield Finding("supervisord", False, f"does not run in {stack.home}", "dafnck up")
        return
    for name, program in sorted(supervisor.programs().items()):
        words = program.state.lower() + (f": {program.trouble}" if program.trouble else "")
        ok = program.state == "RUNNING"
        yield Finding(name, ok, words, "" if ok else f"see {stack.logs}; then dafnck up")
    for name, port in (("router", stack.ports.web), ("router API", stack.ports.router_api)):
        ok = listens(port)
        yield Finding(name, ok, f"127.0.0.1:{port}", "" if ok else "dafnck up")
    if stack.store_url is None:
        ok, port = listens(stack.ports.object_store), stack.ports.object_store
        yield Finding("object store port", ok, f"127.0.0.1:{port}", "" if ok else "dafnck up")
    try:
        Keys(stack.secrets, stack.keys).check()
        yield Finding("signing key", True, f"{stack.keys}")
    except DafnckError as error:
        yield Finding("signing key", False, str(error), "dafnck keygen")
    auth = stack.prefect_auth_file
    if not auth.exists():
        yield Finding("secret", False, f"{auth} is missing", "dafnck down, then dafnck up")
        return
    mode = auth.stat().st_mode & 0o777
    private = mode == 0o600
    yield Finding("secret", private, f"{auth} {mode:o}", "" if private else f"chmod 600 {auth}")
    with PrefectApi(stack.prefect_api_url, prefect_auth(stack)) as api:
        there = api.answers()
    yield Finding("Prefect API", there, stack.prefect_api_url, "" if there else "dafnck up")
    if containers := DockerHost(stack).running():
        trouble = answers()
        words = trouble or f"{len(containers)} releases run in containers"
        yield Finding("Docker engine", not trouble, words, "systemctl start docker" * bool(trouble))
    ledger = Ledger(stack.ledger_url)
    yield from _clusters(ledger)
    for rollout in ledger.unfinished():
        led = ledger.lease(rollout.service, rollout.environment) is not None
        yield Finding(
            f"rollout {rollout.id}",
            led,
            f"{rollout.service} in {rollout.environment}: {rollout.phase}",
            ""
            if led
            else "its process died; the guard ends it, and so does "
            f"dafnck rollback {rollout.service} --env {rollout.environment}",
        )
    ledger.close()
    free = os.statvfs(stack.home)
    free_bytes = free.f_bavail * free.f_frsize
    enough = free_bytes > 2**30
    yield Finding("disk", enough, f"{free_bytes / 2**30:.1f} GiB free", "" if enough else "free it")


def _clusters(ledger: Ledger) -> Iterator[Finding]:
    """Each cluster that something serves in, asked once."""
    known: dict[str, Kubernetes] = {}
    for _, _, release_id, _ in ledger.stables():
        if there := ledger.release(release_id).kubernetes:
            known.setdefault(there.credentials or there.context or "the cluster", there)
    for name, there in sorted(known.items()):
        try:
            major, minor = cluster_of(there).version()
            yield Finding("cluster", True, f"{name}: Kubernetes {major}.{minor}")
        except DafnckError as error:
            yield Finding("cluster", False, f"{name}: {error}", "kubectl cluster-info")
