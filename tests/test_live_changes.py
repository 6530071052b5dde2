"""Several services as one change on the real local stack: in their order, or none of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Dafnck, Released, wait_for
from ruamel.yaml import YAML
from test_live_release import CANARY, Service, who_answers

from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import Stack
from policy.change import ChangeRecord, place_of
from policy.release import TERMINAL, Phase, RolloutRecord

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]  # many runs, one after the other

QUICK = {"drain": "1s", "grace": "3s", "start": "40s", "replicas": 1}
BAD = {"smoke": [{"get": "/", "status": 418}]}  # nobody answers so

Stacked = Callable[..., Path]


@pytest.fixture
def stacked(tmp_path: Path, service: Service) -> Stacked:
    """Write a stack file and its service files, each with these parts. -> its path"""

    def write(name: str, services: dict[str, tuple[list[str], dict[str, Any]]]) -> Path:
        members = {}
        for member, (after, parts) in services.items():
            run = QUICK | parts.get("run", {})
            service(member, file=f"{member}.yaml", **(parts | {"run": run}))
            members[member] = {"file": f"{member}.yaml", "after": after}
        file = tmp_path / f"{name}.yaml"
        with file.open("w") as text:
            YAML().dump({"version": 1, "stack": name, "services": members}, text)
        return file

    return write


def released_by_workers(stack: Stack, file: Path, *words: str, check: int = 0) -> str:
    """`dafnck release`, followed to its end, which the runs of several services take long to
    reach. -> what it printed"""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "release", str(file), *words],
        cwd=ROOT,
        env={**os.environ, "DAFNCK_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == check, f"{done.stdout}\n{done.stderr}"
    return done.stderr if check else done.stdout


def serve(stack: Stack, **releases: str) -> None:
    """Each service, with dashes for underscores, answers with this release."""
    for name, release_id in releases.items():
        service = name.replace("_", "-")
        wait_for(
            lambda service=service, release_id=release_id: (
                who_answers(stack, service) == f"{service}-local-{release_id}"
            ),
            f"{service} answers with {release_id}",
        )


def over(ledger: Ledger, change_id: int, seconds: float = 400) -> ChangeRecord:
    def look() -> ChangeRecord | None:
        change = ledger.change(change_id)
        return change if change.verdict else None

    found: ChangeRecord = wait_for(look, "the end of the change", seconds)
    return found


def of_kind(ledger: Ledger, change: ChangeRecord, kind: str) -> list[RolloutRecord]:
    """Oldest first."""
    return [r for r in reversed(ledger.rollouts_of_change(change.id)) if r.kind == kind]


def test_three_services_come_in_their_order_and_go_back_in_reverse(
    stack: Stack, ledger: Ledger, dafnck: Dafnck, stacked: Stacked
) -> None:
    chain: dict[str, tuple[list[str], dict[str, Any]]] = {
        "chain-db": ([], {}),
        "chain-shop": (["chain-db"], {}),
        "chain-web": (["chain-shop"], {}),
    }
    file = stacked("chain", chain)
    told = dafnck("validate", file).stdout
    assert told.splitlines()[0] == "wave 1: chain-db"
    first = json.loads(released_by_workers(stack, file, "--version", "1", "--json"))
    assert first["verdict"] == "promoted"
    assert [one["serves"] for one in first["services"]] == [
        "chain-db-local-1",
        "chain-shop-local-1",
        "chain-web-local-1",
    ]
    begun = [one["release"] for one in first["services"]]
    for earlier, later in pairwise(begun):
        assert earlier["finished_at"] <= later["started_at"]

    file = stacked("chain", chain | {"chain-web": (["chain-shop"], BAD)})
    told = released_by_workers(stack, file, "--version", "2", check=1)
    assert "chain 2 rolled back: chain-web is not promoted" in told
    serve(stack, chain_db="1", chain_shop="1", chain_web="1")
    change = ledger.changes("chain")[0]
    back = of_kind(ledger, change, "rollback")
    assert [(r.service, r.phase) for r in back] == [
        ("chain-shop", Phase.PROMOTED),
        ("chain-db", Phase.PROMOTED),
    ]
    assert (back[0].finished_at or 0) <= back[1].started_at
    with stack_api(stack) as api:
        run = str(change.flow_run_id)
        state = wait_for(
            lambda: (s := api.state(run)).get("type") in TERMINAL and s, "its end in Prefect", 60
        )
        assert state["name"] == "RolledBack"
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        keys = {artifact["key"] for artifact in api._patiently("POST", "/artifacts/filter", body)}
    assert keys == {"chain-local-change-services"}
    assert "part of the change" not in dafnck("status").stdout.partition("chain-")[2]


@pytest.mark.parametrize(("way", "state"), [("kill", "CRASHED"), ("cancel", "CANCELLED")])
def test_a_leader_that_is_gone_is_replaced_and_all_goes_back(
    way: str,
    state: str,
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    stacked: Stacked,
) -> None:
    """While the second service rolls out: its traffic first, then the first service."""
    db, web = f"{way}-db", f"{way}-web"
    slow = {"rollout": CANARY | {"bake": "300s"}}
    services: dict[str, tuple[list[str], dict[str, Any]]] = {db: ([], {}), web: ([db], {})}
    file = stacked(way, services)
    for name in services:
        released(file.with_name(f"{name}.yaml"), "1")
    file = stacked(way, services | {web: ([db], slow)})
    done = dafnck("release", file, "--version", "2", "--no-wait", "--json")
    run = json.loads(done.stdout)["flow_run_id"]

    def rolls_out() -> ChangeRecord | None:
        change = ledger.change_of_flow_run(run)
        if change is None:
            return None
        assert change.verdict is None, change.reason
        of_web = [r for r in ledger.rollouts_of_change(change.id) if r.service == web]
        acts = ledger.intents(of_web[0].id) if of_web else []
        return change if any(act.act == "shift" and act.outcome for act in acts) else None

    change = wait_for(rolls_out, "the second service rolls out", 300)
    status = json.loads(dafnck("status", "--json").stdout)
    seen = next(s for s in status if s["service"] == db)
    assert seen["change"]["stack"] == way
    lease = ledger.lease(place_of(way), "local")
    assert lease
    assert lease.pid
    with stack_api(stack) as api:
        if way == "kill":
            os.kill(lease.pid, signal.SIGKILL)
        else:
            api.set_state(run, "CANCELLING")  # as the UI's button does
        ended = over(ledger, change.id)
        wait_for(lambda: api.state(run).get("type") == state, f"{state} in Prefect", 60)
    assert ended.verdict == "rolled back"
    # By Prefect's state, or by the signal of its runner: whichever it hears first.
    words = {"kill": ["its process died"], "cancel": ["cancelled in Prefect", "was told to stop"]}
    assert any(word in (ended.trouble or "") for word in words[way]), ended.trouble
    serve(stack, **{f"{way}_db": "1", f"{way}_web": "1"})
    last = next(r for r in ledger.rollouts_of_change(change.id) if r.service == web)
    assert last.phase is Phase.ROLLED_BACK
    assert f"the change {way} 2 is taken back" in last.reason
    wait_for(lambda: not ledger.lease(place_of(way), "local"), "its lease is free")


def test_in_one_process_without_a_worker(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, stacked: Stacked
) -> None:
    services = {"solo-db": ([], {}), "solo-web": (["solo-db"], BAD)}
    file = stacked("solo", services)
    released(file.with_name("solo-db.yaml"), "1")
    done = dafnck("release", file, "--version", "2", "--here", check=1)
    assert "solo 2 rolled back: solo-web is not promoted" in done.stderr
    serve(stack, solo_db="1")
    back = of_kind(ledger, ledger.changes("solo")[0], "rollback")
    assert [(r.service, r.phase) for r in back] == [("solo-db", Phase.PROMOTED)]


def test_nothing_begins_when_one_of_them_may_not(
    stack: Stack, ledger: Ledger, dafnck: Dafnck, stacked: Stacked
) -> None:
    always = {"rollout": {"freeze": ["Mon - Sun"]}}
    file = stacked("halted", {"halted-db": ([], {}), "halted-web": (["halted-db"], always)})
    done = dafnck("release", file, "--version", "1", check=1)
    assert "halted-web in local is frozen: Mon - Sun" in done.stderr
    token = ledger.take_lease("halted-db", "local", "a test")
    try:
        fine = stacked("halted", {"halted-db": ([], {}), "halted-web": (["halted-db"], {})})
        done = dafnck("release", fine, "--version", "1", check=1)
    finally:
        ledger.free_lease(token)
    assert "halted-db in local is being changed by a test" in done.stderr
    assert ledger.changes("halted") == []
    assert ledger.history("halted-db") == []


def test_from_git_at_a_commit(
    tmp_path: Path, stack: Stack, ledger: Ledger, dafnck: Dafnck, service: Service
) -> None:
    service("kept-db", run=QUICK)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "stack.yaml").write_text(
        "version: 1\nstack: kept\nservices: {kept-db: ../dafnck.yaml}\n"
    )

    def git(*words: str) -> str:
        who = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "dafnck.yaml", "probe.py", "deploy")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")
    at = ("--git", f"file://{tmp_path}", "--commit", commit)
    done = dafnck("release", "deploy/stack.yaml", *at, "--here", "--json")
    told = json.loads(done.stdout)
    assert (told["verdict"], told["version"]) == ("promoted", commit[:12])
    assert told["services"][0]["serves"] == "kept-db-local-1"
    serve(stack, kept_db="1")
