"""What serves after something was killed, for each part that can be."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Dafnck, Released, wait_for
from docker_fixtures import own_name
from test_live_release import (
    CANARY,
    Service,
    alone,
    at_share,
    begin,
    ended,
    no_request_failed,
    under_load,
    who_answers,
)

from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import Stack
from blocks.supervisor import Supervisor
from deployments import local_stack
from policy.release import Phase

pytestmark = pytest.mark.live
LONG = CANARY | {"bake": "6s"}


def pid_of(supervisor: Supervisor, name: str) -> int:
    return supervisor.programs()[name].pid


def leader(ledger: Ledger, service: str) -> int:
    """Pid of the process that leads the rollout, as the lease tells it."""
    lease = ledger.lease(service, "local")
    assert lease
    return int(lease.holder.partition("(pid ")[2].partition(" ")[0])


def restarted(supervisor: Supervisor, name: str, old_pid: int) -> None:
    def look() -> bool:
        program = supervisor.programs()[name]
        return program.state == "RUNNING" and program.pid != old_pid

    wait_for(look, f"{name} runs again", 30)


def test_a_killed_worker_takes_its_release_back_with_it(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    released(service("worker"), "1")
    with under_load(stack, "worker") as load:
        run = begin(dafnck, service("worker", rollout=LONG), "2")
        at_share(stack, ledger, run, 20)
        pid = pid_of(supervisor, local_stack.WORKER)
        os.kill(pid, signal.SIGKILL)
        rollout = ended(ledger, run)
    no_request_failed(load)
    assert rollout.phase is Phase.ROLLED_BACK
    assert "its process was told to end" in rollout.reason
    alone(stack, dafnck, "worker", "worker-local-1")
    restarted(supervisor, local_stack.WORKER, pid)
    dafnck("release", service("worker"), "--version", "3")
    alone(stack, dafnck, "worker", "worker-local-3")


def test_a_killed_router_comes_back_with_the_same_shares(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    released(service("router"), "1")
    judged = LONG | {
        "judge": {
            "method": "threshold",
            "errors": "at most 2%",
            "interval": "2s",
            "min_requests": 5,
        }
    }
    with under_load(stack, "router") as load:
        run = begin(dafnck, service("router", rollout=judged), "2")
        rollout = at_share(stack, ledger, run, 20)
        pid = pid_of(supervisor, local_stack.TRAEFIK)
        os.kill(pid, signal.SIGKILL)
        restarted(supervisor, local_stack.TRAEFIK, pid)
        assert {who_answers(stack, "router") for _ in range(20)} == {
            "router-local-1",
            "router-local-2",
        }
        rollout = ended(ledger, run, 60)
    assert rollout.phase is Phase.PROMOTED, rollout.reason
    alone(stack, dafnck, "router", "router-local-2")
    # What failed was sent while nothing listened, or before Traefik had read its files (404).
    assert sum(load.answers.failed_else.values()) < 150, load.answers.failed_else
    assert {k for k in load.answers.failed_else if k.isdigit()} <= {"404"}


def test_a_router_that_is_down_when_it_is_needed_takes_the_wish_up_later(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    """Aborted while Traefik is down: stable serves as soon as it is back."""
    released(service("down"), "1")
    run = begin(dafnck, service("down", rollout=LONG | {"bake": "60s"}), "2")
    rollout = at_share(stack, ledger, run, 20)
    pid = pid_of(supervisor, local_stack.TRAEFIK)
    os.kill(pid, signal.SIGKILL)
    ledger.abort(rollout.id, "aborted while the router is down")
    restarted(supervisor, local_stack.TRAEFIK, pid)
    assert ended(ledger, run).phase is Phase.ROLLED_BACK
    alone(stack, dafnck, "down", "down-local-1")


def test_a_killed_replica_is_replaced_and_its_share_is_served_by_the_others(
    stack: Stack, supervisor: Supervisor, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("replica"), "1")
    with under_load(stack, "replica") as load:
        time.sleep(0.5)
        pid = pid_of(supervisor, "replica-local-1.0")
        os.kill(pid, signal.SIGKILL)
        restarted(supervisor, "replica-local-1.0", pid)
        time.sleep(0.5)
    # Only what the replica had in hand when it died can fail.
    assert sum(load.answers.failed_else.values()) <= 2, load.answers.failed_else
    alone(stack, dafnck, "replica", "replica-local-1")


def test_a_new_release_that_dies_under_traffic_is_rolled_back(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("dies"), "1")
    with under_load(stack, "dies"):
        dying = service("dies", run={"env": {"DIE_AFTER": "3"}}, rollout=CANARY | {"bake": "30s"})
        rollout = released(dying, "2")
    assert rollout.phase is Phase.ROLLED_BACK
    assert re.search("no replica of the new release is ready|ended [3-9] times", rollout.reason)
    alone(stack, dafnck, "dies", "dies-local-1")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_release_process_leaves_the_stable_release(
    how: signal.Signals,
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    """SIGTERM and SIGINT: the process itself; SIGKILL: Prefect's hook in the worker."""
    name = how.name.lower()
    released(service(name), "1")
    with under_load(stack, name) as load:
        run = begin(dafnck, service(name, rollout=LONG | {"bake": "60s"}), "2")
        at_share(stack, ledger, run, 20)
        os.kill(leader(ledger, name), how)
        rollout = ended(ledger, run)
    no_request_failed(load)
    assert rollout.phase is Phase.ROLLED_BACK
    alone(stack, dafnck, name, f"{name}-local-1")
    wait_for(lambda: ledger.lease(name, "local") is None, "its lease is free")


def begin_here(file: Path, version: str) -> "subprocess.Popen[bytes]":
    """Release in a process of its own: no worker, no hook."""
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "release", file, "--version", version, "--here"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def sees_traffic(stack: Stack, name: str, release_id: str) -> None:
    wait_for(lambda: release_id in {who_answers(stack, name) for _ in range(10)}, "the canary", 60)


@pytest.mark.parametrize("kept_by", ["service", "image_service"])
def test_the_guard_ends_what_a_killed_process_leaves(
    kept_by: str,
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    request: pytest.FixtureRequest,
) -> None:
    """Release in a process of its own, SIGKILL: no hook runs. Within seconds, without waiting for
    the lease, stable serves, the report is written and Prefect shows the run as crashed."""
    service, name = request.getfixturevalue(kept_by), own_name("next")
    released(service(name), "1")
    with under_load(stack, name) as load:
        process = begin_here(service(name, rollout=LONG | {"bake": "60s"}), "2")
        sees_traffic(stack, name, f"{name}-local-2")
        process.kill()
        killed_at = time.monotonic()
        wait_for(lambda: not ledger.unfinished(name), "the guard ends it", 15)
        took = time.monotonic() - killed_at
        process.wait()
    no_request_failed(load)
    assert took < 10
    alone(stack, dafnck, name, f"{name}-local-1")
    rollout = wait_for(lambda: (last := ledger.history(name)[0]).closed_at and last, "reported", 60)
    assert rollout.phase is Phase.ROLLED_BACK
    assert f"its process died (pid {process.pid} on " in rollout.reason
    page = (stack.reports / f"{name}-local-rollout-{rollout.id}.html").read_text()
    assert "its process died" in page
    with stack_api(stack) as api:
        state = api.state(str(rollout.flow_run_id))
    assert (state["type"], state["message"]) == ("CRASHED", rollout.taken_over)


def test_a_leader_that_stands_still_is_replaced_and_moves_nothing_when_it_goes_on(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("still"), "1")
    with under_load(stack, "still") as load:
        process = begin_here(service("still", rollout=LONG), "2")
        sees_traffic(stack, "still", "still-local-2")
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: not ledger.unfinished("still"), "the guard ends it", 40)
        rollout = ledger.history("still")[0]
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) != 0
    no_request_failed(load)
    assert "its lease lapsed: not renewed for" in rollout.reason
    alone(stack, dafnck, "still", "still-local-1")
    assert ledger.history("still")[0].phase is Phase.ROLLED_BACK


def test_a_killed_guard_is_started_again_and_ends_what_died(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    released(service("guard"), "1")
    process = begin_here(service("guard", rollout=LONG | {"bake": "60s"}), "2")
    sees_traffic(stack, "guard", "guard-local-2")
    pid = pid_of(supervisor, local_stack.GUARD)
    os.kill(pid, signal.SIGKILL)
    process.kill()
    wait_for(lambda: not ledger.unfinished("guard"), "it is ended all the same", 20)
    process.wait()
    restarted(supervisor, local_stack.GUARD, pid)
    alone(stack, dafnck, "guard", "guard-local-1")


def test_the_reconcile_flow_ends_what_died_without_a_guard(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    from flows.reconcile import reconcile

    released(service("flow"), "1")
    process = begin_here(service("flow", rollout=LONG | {"bake": "60s"}), "2")
    sees_traffic(stack, "flow", "flow-local-2")
    guard = pid_of(supervisor, local_stack.GUARD)
    os.kill(guard, signal.SIGSTOP)
    try:
        process.kill()
        process.wait()
        assert "nobody: its process died" in dafnck("status").stdout
        message = reconcile(return_state=True).message
    finally:
        os.kill(guard, signal.SIGCONT)
    assert message == "flow in local: rolled back"
    alone(stack, dafnck, "flow", "flow-local-1")


def test_a_release_ends_without_prefects_server(
    stack: Stack,
    ledger: Ledger,
    supervisor: Supervisor,
    released: Released,
    dafnck: Dafnck,
    service: Service,
) -> None:
    released(service("server"), "1")
    try:
        with under_load(stack, "server") as load:
            run = begin(dafnck, service("server", rollout=LONG), "2")
            at_share(stack, ledger, run, 20)
            supervisor.remove(local_stack.SERVER, 5)
            rollout = ended(ledger, run)
        no_request_failed(load)
        assert rollout.phase is Phase.PROMOTED, rollout.reason
        alone(stack, dafnck, "server", "server-local-2")
        assert "dafnck up" in dafnck("release", service("server"), check=3).stderr
    finally:
        local_stack.up(stack.home, stack.ports, lambda part: None)
    with stack_api(stack) as api:
        wait_for(api.answers, "Prefect's server", 60)


def test_everything_comes_back_after_down_and_up(
    tmp_path: Path, stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    """Also after supervisord itself was killed, which leaves the replicas behind as orphans."""
    released(service("again"), "1")
    released(service("again"), "2")
    pid = int((stack.supervisor / "supervisord.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert who_answers(stack, "again") == "again-local-2", "what runs keeps running"
    local_stack.up(stack.home, stack.ports, lambda part: None)
    alone(stack, dafnck, "again", "again-local-2")
    dafnck("rollback", "again", "--here")
    alone(stack, dafnck, "again", "again-local-1")
