"""What `up` and `down` do in which order, and what they leave alone. No servers."""

import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from fakes import a_site
from test_tasks_put_back import fakes, under_way

from blocks.processes import marked, unmarked
from blocks.stack import Ports, Stack
from blocks.supervisor import Program
from deployments import local_stack
from policy.errors import NotApplied, Unreachable
from policy.release import Phase, Release, RolloutRecord
from tasks import put_back
from tasks.site import Site


def frozen(folder: Path, share: int) -> tuple[Site, Release, Release, RolloutRecord]:
    """A contract release that is frozen at this share, and nobody's lease."""
    site = a_site(folder)
    stable, new, rollout = under_way(site, share, migration="contract")
    put_back.put_back(site, rollout.id, "bad")
    for lease in site.ledger.leases():
        site.ledger.remove_lease(lease)
    return site, stable, new, rollout


def test_up_has_a_frozen_release_serve_and_nothing_else(tmp_path: Path) -> None:
    """After a reboot: what has the requests runs again, the stopped stable release does not."""
    site, stable, new, _ = frozen(tmp_path, 100)
    router, workloads = fakes(site)
    workloads.wanted.clear()
    workloads.sick[stable.id] = "its column is gone"
    local_stack._resume(site)
    assert workloads.running() == [new.id]
    assert router.held == {new.id: 100}
    assert site.ledger.leases() == []


@pytest.mark.parametrize("phase", [Phase.FROZEN, Phase.SHIFTING])
def test_up_starts_replicas_before_it_looks_whether_they_are_dead(
    tmp_path: Path, phase: Phase
) -> None:
    """Nothing runs after a reboot: that alone is no reason to take the requests away."""
    site, stable, new, rollout = frozen(tmp_path, 20)
    if phase is Phase.SHIFTING:  # its process died with the machine
        token = site.ledger.take_lease("shop", "prod", "test")
        site.ledger.go_on(rollout.id, token=token, who="ada", flow_run_id=None)
        site.ledger.free_lease(token)
    router, workloads = fakes(site)
    workloads.wanted.clear()
    local_stack._resume(site)
    assert workloads.running() == [stable.id, new.id]
    assert router.held == {stable.id: 80, new.id: 20}
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN


def test_up_says_what_cannot_serve(tmp_path: Path) -> None:
    site, _, new, rollout = frozen(tmp_path, 100)
    fakes(site)[1].sick[new.id] = "no database"
    with pytest.raises(NotApplied, match="no database"):
        local_stack._resume(site)
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN


def a_stack(folder: Path) -> Stack:
    return Stack(home=folder, ports=Ports(), ledger_url=str(folder / "ledger.db"))


class FakeSupervisor:
    """Programs that all run."""

    def __init__(self, *_: object) -> None:
        self.begun: dict[str, Program] = {}
        self.removed: list[str] = []

    def answers(self) -> bool:
        return True

    def programs(self) -> dict[str, Program]:
        return self.begun

    def add(self, name: str, spec: Path, log: Path, **_: object) -> None:
        self.begun[name] = Program(name, "RUNNING", 1, 0.0, "")

    def remove(self, name: str, grace_seconds: float) -> None:
        self.removed.append(name)


def test_what_serves_does_not_wait_for_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that rebooted has its guard and its services before Prefect's server answers."""

    def wait(answers: object, name: str, stack: Stack, limit_seconds: float) -> None:
        if name == local_stack.SERVER:
            raise Unreachable(f"{name} does not answer")

    monkeypatch.setattr(local_stack, "Supervisor", FakeSupervisor)
    monkeypatch.setattr(local_stack, "_wait", wait)
    monkeypatch.setattr(local_stack, "_check_ports", lambda *_: None)
    said: list[str] = []
    with pytest.raises(Unreachable, match="prefect-server does not answer"):
        local_stack.up(tmp_path, Ports(), said.append)
    assert said == ["Traefik", "guard", "services", "object store", "Prefect server"]


def test_another_shell_restarts_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its releases would end with it, because a target of notifications is known or is not."""
    stack = a_stack(tmp_path)
    stack.supervisor.mkdir()
    local_stack._write_secret(stack)
    supervisor: Any = FakeSupervisor()

    def run() -> None:
        local_stack._run(stack, supervisor, local_stack.WORKER, ["worker"], grace_seconds=1)

    monkeypatch.setenv("DAFNCK_NOTIFY_MAIL", "mailto://x")
    monkeypatch.setenv("DAFNCK_LEDGER_URL", stack.ledger_url)
    run()
    monkeypatch.delenv("DAFNCK_NOTIFY_MAIL")
    monkeypatch.delenv("DAFNCK_LEDGER_URL")
    run()
    assert supervisor.removed == []
    spec = (stack.supervisor / f"{local_stack.WORKER}.json").read_text()
    assert "mailto://x" in spec, "also when it is restarted by itself"
    assert stack.ledger_url in spec
    stack = stack.model_copy(update={"ledger_url": "another"})
    run()
    assert supervisor.removed == [local_stack.WORKER]


def test_down_lets_the_guard_end_what_the_worker_left(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    _, _, rollout = under_way(site, 50)
    said: list[str] = []
    local_stack._let_the_guard_end(a_stack(tmp_path), said.append, 0.1)
    assert said == [f"rollout {rollout.id} of shop is unfinished; dafnck up ends it"]
    waiting = threading.Thread(
        target=local_stack._let_the_guard_end, args=(a_stack(tmp_path), said.append, 60)
    )
    waiting.start()
    put_back.put_back(site, rollout.id, "its process died")
    wait_for(lambda: not waiting.is_alive(), "it waits no longer")
    assert len(said) == 1


def test_down_does_not_need_the_ledger(tmp_path: Path) -> None:
    said: list[str] = []
    nowhere = a_stack(tmp_path).model_copy(update={"ledger_url": "sqlite:////nowhere/ledger.db"})
    local_stack._let_the_guard_end(nowhere, said.append)
    assert "cannot be used" in said[0]


def test_what_outlives_us_is_no_child_of_those_who_started_us() -> None:
    assert unmarked(marked({"PATH": "/bin"})) == {"PATH": "/bin"}
