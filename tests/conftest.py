"""One local stack for all live tests, on free ports, in a temporary folder, stopped at the end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_fixtures import docker, image_service, registry, source  # noqa: F401 - fixtures
from kube_fixtures import kube, kube_gateway  # noqa: F401 - fixtures
from kube_releases import gateway_place, releases  # noqa: F401 - fixtures
from kube_stage import (  # noqa: F401 - fixtures
    kube_gateway_stage,
    kube_service_stage,
    real_cluster_stage,
)
from pg_fixtures import fresh_database, odd_copy, odd_shop, postgres  # noqa: F401 - fixtures

from bench.stage import PROBE, brought_down_if_we_die, probe_file
from blocks.ledger import Ledger
from blocks.stack import Ports, Stack
from blocks.supervisor import Supervisor
from deployments import local_stack
from policy.release import RolloutRecord

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cluster is only touched where it was named for that: by `make test-kubernetes`."""
    if os.environ.get("DAFNCK_TEST_KUBECONFIG"):
        return
    skip = pytest.mark.skip(reason="needs a cluster: KUBECONFIG=… make test-kubernetes")
    for item in items:
        if item.get_closest_marker("kubernetes"):
            item.add_marker(skip)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Wait for a condition with a deadline; -> what it returned."""
    give_up = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < give_up, f"not within {seconds}s: {what}"
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("home")
    ports = Ports(
        web=free_port(),
        router_api=free_port(),
        prefect=free_port(),
        services=[free_port()],
        object_store=free_port(),
    )
    old = os.environ.get("DAFNCK_HOME")
    os.environ["DAFNCK_HOME"] = str(home)
    with brought_down_if_we_die(home):
        stack = local_stack.up(home, ports, lambda part: None)
        yield stack
        local_stack.down(stack, lambda part: None)
    os.environ.pop("DAFNCK_HOME")
    if old:
        os.environ["DAFNCK_HOME"] = old


@pytest.fixture
def ledger(stack: Stack) -> Iterator[Ledger]:
    ledger = Ledger(stack.ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def supervisor(stack: Stack) -> Supervisor:
    return Supervisor(stack.supervisor, stack.supervisor_socket)


Released = Callable[..., RolloutRecord]


@pytest.fixture
def released(stack: Stack, ledger: Ledger) -> Released:
    """Release in this process, which spares the worker's start. -> how it ended."""
    from prefect.context import refresh_global_settings_context

    from flows.release import release

    os.environ |= local_stack.prefect_environment(stack)
    refresh_global_settings_context()  # Prefect may have been imported by another test

    def run(file: Path, version: object) -> RolloutRecord:
        release(str(file), version=str(version), return_state=True)
        return ledger.history(limit=1)[0]

    return run


Dafnck = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dafnck(stack: Stack) -> Dafnck:
    """Run the command as a person does. -> what it printed and its exit code."""

    def run(*words: object, check: int | None = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "deployments.cli", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "DAFNCK_HOME": str(stack.home)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, f"{words}: {done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def service(tmp_path: Path) -> Callable[..., Path]:
    """Write a service file of the probe application, with these parts laid over. -> its path."""
    (tmp_path / "probe.py").write_bytes(PROBE.read_bytes())

    def write(name: str, file: str = "dafnck.yaml", **parts: Any) -> Path:
        quick = {"drain": "5s", "grace": "3s", "start": "20s", "env": {}}
        parts["run"] = quick | parts.get("run", {})
        parts.setdefault("rollout", {"strategy": "blue-green"})
        return probe_file(tmp_path / file, name, parts)

    return write
