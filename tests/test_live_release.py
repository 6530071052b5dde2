"""Releases on the real local stack, through the real worker: one test for each promise."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection

import pytest
from conftest import Dafnck, Released, wait_for

from blocks.ledger import Ledger
from blocks.load import SteadyLoad
from blocks.prefect_api import PrefectApi, stack_api
from blocks.stack import Stack
from deployments.local_stack import prefect_environment
from policy.release import FINISHED, Phase, RolloutRecord

pytestmark = pytest.mark.live
Service = Callable[..., Path]

CANARY = {"strategy": "canary", "steps": ["20%", "100%"], "bake": "2s"}
JUDGED = CANARY | {
    "judge": {"method": "threshold", "errors": "at most 2%", "interval": "1s", "min_requests": 5}
}


@pytest.fixture
def api(stack: Stack) -> Iterator[PrefectApi]:
    with stack_api(stack) as api:
        yield api


@contextmanager
def under_load(stack: Stack, name: str, port: int | None = None) -> Iterator[SteadyLoad]:
    """50 requests a second for as long as the body runs; the body may look at the answers."""
    url = f"http://127.0.0.1:{port or stack.ports.web}/"
    with SteadyLoad(url, f"{name}.local.localhost", per_second=50) as load:
        yield load


def no_request_failed(load: SteadyLoad) -> None:
    answers = load.answers
    assert not answers.failed_else, answers.failed_else
    assert answers.good > 20


def who_answers(stack: Stack, name: str, **headers: str) -> str:
    """The release that answers; 'status 404' and the like for errors."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports.web}/", headers={"Host": f"{name}.local.localhost", **named}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"status {error.code}"


def state_of(api: PrefectApi, flow_run_id: str) -> str:
    found = api._patiently("GET", f"/flow_runs/{flow_run_id}")["state"]
    return str(found["type"]) if found else ""


def begin(dafnck: Dafnck, file: Path, version: str) -> str:
    """Start a release through the worker and do not wait. -> id of the flow run."""
    done = dafnck("release", file, "--version", version, "--no-wait", "--json")
    return str(json.loads(done.stdout)["flow_run_id"])


def at_share(
    stack: Stack, ledger: Ledger, flow_run_id: str, share: int, seconds: float = 40
) -> RolloutRecord:
    """Wait until the new release of this run has that share."""

    def look() -> RolloutRecord | None:
        rollout = ledger.rollout_of_flow_run(flow_run_id)
        if rollout is None:
            return None
        assert rollout.phase not in FINISHED, rollout.reason
        shifts = [i for i in ledger.intents(rollout.id) if i.act == "shift" and i.outcome]
        shared = [i.detail["shares"].get(rollout.release_id) for i in shifts]
        return rollout if share in shared else None

    found: RolloutRecord = wait_for(look, f"{share}% for the new release", seconds)
    return found


def ended(ledger: Ledger, flow_run_id: str, seconds: float = 40) -> RolloutRecord:
    def look() -> RolloutRecord | None:
        rollout = ledger.rollout_of_flow_run(flow_run_id)
        return rollout if rollout and rollout.phase in FINISHED else None

    found: RolloutRecord = wait_for(look, "the end of the rollout", seconds)
    return found


def alone(stack: Stack, dafnck: Dafnck, name: str, release_id: str) -> None:
    """This release answers everything, has its replicas, and nothing else is left."""
    assert {who_answers(stack, name) for _ in range(10)} == {release_id}
    seen = next(s for s in json.loads(dafnck("status", "--json").stdout) if s["service"] == name)
    assert seen["release"] == release_id
    assert seen["shares"] == {release_id: 100}
    assert seen["replicas"] == {release_id: {"ready": 2, "wanted": 2, "trouble": ""}}
    assert not (programs(stack, name) - {f"{release_id}.0", f"{release_id}.1"})


def programs(stack: Stack, name: str) -> set[str]:
    return {path.stem for path in (stack.supervisor / "conf.d").glob(f"{name}-*.conf")}


@pytest.mark.timeout(400)  # four releases under load, one after the other
def test_the_main_job(
    stack: Stack, ledger: Ledger, dafnck: Dafnck, service: Service, api: PrefectApi
) -> None:
    """First release, canary to 100%, a bad one caught and rolled back, back to a named one."""
    first = dafnck("release", service("shop", rollout=JUDGED), "--version", "1")
    assert "shop-local-1 (1) serves: first release" in first.stdout
    alone(stack, dafnck, "shop", "shop-local-1")

    with under_load(stack, "shop") as load:
        second = dafnck("release", service("shop", rollout=JUDGED), "--version", "2")
        assert "shop-local-2 (2) serves: errors 0.00% is within 2.00%" in second.stdout
        bad = service("shop", run={"env": {"EVERY": "3"}}, rollout=JUDGED)
        third = dafnck("release", bad, "--version", "3", check=1)
        assert re.search(r"3 rolled back: errors \d+\.\d+% is over 2.00%", third.stderr)
        assert "shop-local-2 serves" in third.stderr
        by_bad = load.answers.failed_else.pop("500")
        assert by_bad < 30, "a fifth of 50 a second, for about two seconds, a third of it bad"
        back = dafnck("rollback", "shop", "--to", "shop-local-1")
        assert "shop-local-1 (1) serves" in back.stdout
    no_request_failed(load)
    alone(stack, dafnck, "shop", "shop-local-1")

    refused = dafnck("rollback", "shop", "--to", "shop-local-1", check=1)
    assert "serves already; nothing was changed" in refused.stderr
    phases = [r["phase"] for r in json.loads(dafnck("history", "shop", "--json").stdout)]
    assert phases == ["promoted", "rolled back", "promoted", "promoted"]
    assert "shop-local-1.0 | " in dafnck("logs", "shop").stdout
    report = Path(
        dafnck("report", "shop", "--rollout", ledger.history("shop")[1].id).stdout.strip()
    )
    page = report.read_text()
    for words in ("rolled back", "is over 2.00%", "<svg", "traffic to stable", "RollBack"):
        assert words in page
    assert "http://" not in re.sub(r'xmlns\S*="[^"]*"|http://www.w3.org\S*', "", page), (
        "self-contained"
    )
    run = ledger.history("shop")[-1].flow_run_id
    assert run
    assert api.state(run)["type"] == "COMPLETED"


def test_started_by_prefects_own_command_and_shown_in_its_ui(
    stack: Stack, ledger: Ledger, service: Service, api: PrefectApi
) -> None:
    words = ["deployment", "run", "release/local", "--param", f"service_file={service('named')}"]
    subprocess.run(
        [Path(sys.executable).with_name("prefect"), *words, "--param", 'version="1.4.2"'],
        env={**os.environ, **prefect_environment(stack)},
        check=True,
        capture_output=True,
    )
    rollout = wait_for(lambda: ledger.history("named", limit=1), "the rollout begins", 40)[0]
    flow_run_id = str(rollout.flow_run_id)
    ended(ledger, flow_run_id)
    run = api._patiently("GET", f"/flow_runs/{flow_run_id}")
    assert run["name"] == "named 1.4.2 → local"
    wait_for(lambda: state_of(api, flow_run_id) == "COMPLETED", "the end in Prefect")
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
    keys = {artifact["key"] for artifact in api._patiently("POST", "/artifacts/filter", body)}
    assert keys == {"named-local-steps", "named-local-summary"}
    body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200}
    wait_for(  # Prefect sends lines a little later
        lambda: any(
            "100% of the requests to the new release" in line["message"]
            for line in api._patiently("POST", "/logs/filter", body)
        ),
        "the story in the log",
    )


def test_cancelled_in_the_ui(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    api: PrefectApi,
) -> None:
    released(service("cancel"), "1")
    with under_load(stack, "cancel") as load:
        slow = service("cancel", rollout=CANARY | {"bake": "60s"})
        flow_run_id = begin(dafnck, slow, "2")
        at_share(stack, ledger, flow_run_id, 20)
        api.set_state(flow_run_id, "CANCELLING")  # as the UI's button does
        rollout = ended(ledger, flow_run_id)
    no_request_failed(load)
    assert rollout.phase is Phase.ROLLED_BACK
    alone(stack, dafnck, "cancel", "cancel-local-1")
    wait_for(lambda: state_of(api, flow_run_id) == "CANCELLED", "cancelled in Prefect", 30)


@pytest.mark.parametrize("way", ["command", "ui"])
def test_a_person_approves(
    way: str,
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    api: PrefectApi,
) -> None:
    name = f"approve-{way}"
    released(service(name), "1")
    asking = service(name, rollout=CANARY | {"bake": "500ms", "approve": True})
    flow_run_id = begin(dafnck, asking, "2")
    wait_for(lambda: state_of(api, flow_run_id) == "PAUSED", "the run is paused", 40)
    assert ledger.rollout_of_flow_run(flow_run_id).phase is Phase.SHIFTING  # type: ignore[union-attr]
    if way == "command":
        dafnck("approve", name)
    else:
        api._patiently("POST", f"/flow_runs/{flow_run_id}/resume")
    rollout = ended(ledger, flow_run_id)
    assert rollout.phase is Phase.PROMOTED
    assert rollout.approved_by
    alone(stack, dafnck, name, f"{name}-local-2")
    wait_for(lambda: state_of(api, flow_run_id) == "COMPLETED", "completed in Prefect")


def test_one_rollout_at_a_time_and_a_person_aborts(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("one"), "1")
    flow_run_id = begin(dafnck, service("one", rollout=CANARY | {"bake": "60s"}), "2")
    at_share(stack, ledger, flow_run_id, 20)
    second = dafnck("release", service("one"), "--version", "3", "--here", check=1)
    assert re.search(
        r"one in local is being changed by release 2 \(pid \d+ on \S+\) since \d\d:\d\d:\d\d; "
        "nothing was touched",
        second.stderr,
    )
    aborted = dafnck("abort", "one", "--reason", "it smells")
    assert "rolled back: aborted by" in aborted.stdout
    assert "it smells" in aborted.stdout
    alone(stack, dafnck, "one", "one-local-1")
    nothing = dafnck("abort", "one", check=1)
    assert "nothing is being rolled out" in nothing.stderr


def test_the_new_release_is_reachable_by_header_and_by_cohort_before_others_get_it(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("beta"), "1")
    rollout = {
        "approve": True,
        "strategy": "canary",
        "steps": [1, 100],
        "cohort": {"header": "X-Beta: yes"},
        "preview": "X-Preview: 2",
    }
    flow_run_id = begin(dafnck, service("beta", rollout=rollout), "2")
    waiting = at_share(stack, ledger, flow_run_id, 1).id
    wait_for(
        lambda: "AskApproval" in {row["action"] for row in ledger.decisions(waiting)},
        "it asks for approval",
    )
    asked = [who_answers(stack, "beta") for _ in range(50)]
    assert asked.count("beta-local-2") <= 2
    assert {who_answers(stack, "beta", X_Preview="2") for _ in range(5)} == {"beta-local-2"}
    assert {who_answers(stack, "beta", X_Beta="yes") for _ in range(5)} == {"beta-local-2"}
    assert "beta-local-1" in {who_answers(stack, "beta", X_Beta="no") for _ in range(5)}
    dafnck("approve", "beta")
    ended(ledger, flow_run_id)
    alone(stack, dafnck, "beta", "beta-local-2")


@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_a_switch_fails_no_request(
    strategy: str, stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    name = strategy.partition("-")[0]
    released(service(name), "1")
    with under_load(stack, name) as load:
        released(service(name, rollout={"strategy": strategy}), "2")
    no_request_failed(load)
    alone(stack, dafnck, name, f"{name}-local-2")


def test_recreate_stops_the_old_one_first_and_brings_it_back_when_the_new_one_fails(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    recreate = {"strategy": "recreate"}
    released(service("single", rollout=recreate), "1")
    released(service("single", rollout=recreate), "2")
    alone(stack, dafnck, "single", "single-local-2")
    sick = service("single", run={"env": {"HEALTH": "503"}, "start": "2s"}, rollout=recreate)
    failed = released(sick, "3")
    assert "0 of 2 replicas ready after 2s (run: start): /healthz answers 503" in failed.reason
    alone(stack, dafnck, "single", "single-local-2")


def test_what_cannot_start_gets_no_traffic(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("start"), "1")
    with under_load(stack, "start") as load:
        ends = service("start", run={"command": "sh -c 'echo no database; exit 1' {port}"})
        failed = released(ends, "2")
        assert failed.phase is Phase.FAILED
        assert re.search(r"start-local-2 ends again and again: .*no database", failed.reason)
        missing = service("start", run={"command": "nosuchprogram {port}"})
        assert "cannot start nosuchprogram" in released(missing, "3").reason
        broken = service("start", build={"command": "echo the reason; exit 3 # {out}"})
        failed = dafnck("release", broken, "--version", "4", check=1)
        assert "| the reason" in failed.stderr
        assert "start-local-1 serves" in failed.stderr
    no_request_failed(load)
    alone(stack, dafnck, "start", "start-local-1")


def test_configuration_and_routing_come_back_with_a_rollback(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    file = service("config", run={"files": {"app.conf": "app.conf"}})
    (file.parent / "app.conf").write_text("one")
    released(file, "1")
    (file.parent / "app.conf").write_text("two")
    elsewhere = service(
        "config",
        run={"files": {"app.conf": "app.conf"}},
        route={"host": "other.local.localhost"},
        rollout=CANARY | {"bake": "60s"},
    )
    run = begin(dafnck, elsewhere, "2")
    at_share(stack, ledger, run, 20)
    both = {"config-local-1", "config-local-2"}
    for name in ("config", "other"):
        assert {who_answers(stack, name) for _ in range(20)} == both, "both hosts are served"
    dafnck("abort", "config")
    assert who_answers(stack, "config") == "config-local-1"
    assert who_answers(stack, "other") == "status 404"
    service(
        "config", run={"files": {"app.conf": "app.conf"}}, route={"host": "other.local.localhost"}
    )
    released(file, "3")
    assert who_answers(stack, "other") == "config-local-3"
    (file.parent / "app.conf").unlink()
    dafnck("rollback", "config")
    folder = stack.releases / "config-local-1"
    assert (folder / "app" / "app.conf").read_text() == "one"
    alone(stack, dafnck, "config", "config-local-1")
    refused = dafnck("rollback", "config", "--to", "shop-local-1", check=1)
    assert "no good release of config in local that is still on disk" in refused.stderr


def test_old_releases_are_pruned_and_the_kept_ones_come_back(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    for version in range(1, 5):
        released(service("prune", rollout={"keep": 2}), version)
    left = {path.name for path in stack.releases.glob("prune-local-*")}
    assert left == {"prune-local-2", "prune-local-3", "prune-local-4"}
    dafnck("rollback", "prune", "--to", "prune-local-2")
    alone(stack, dafnck, "prune", "prune-local-2")


def test_a_port_of_its_own(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    port = stack.ports.services[0]
    released(service("ported", route={"port": port}), "1")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        assert answer.read() == b"ported-local-1"
    taken = dafnck("release", service("thief", route={"port": port}), check=2)
    assert re.search(
        rf"dafnck.yaml:\d+: route.port: {port} is in use by ported in local", taken.stderr
    )
    foreign = dafnck("release", service("thief", route={"port": stack.ports.prefect}), check=2)
    assert "in use by another program" in foreign.stderr


def test_bad_input_changes_nothing(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    before = (len(ledger.history(limit=1000)), sorted(stack.dynamic.iterdir()))
    wrong = service("wrong", run={"repicas": 2})
    for command in (["validate"], ["release"], ["release", "--here"]):
        done = dafnck(command[0], wrong, *command[1:], check=2)
        assert re.search(
            r"dafnck.yaml:\d+: run.repicas: unknown key; did you mean replicas\?", done.stderr
        )
    missing = service("wrong", run={"files": {"a": "nowhere"}})
    assert "cannot read" in dafnck("release", missing, check=2).stderr
    assert "knows no service" in dafnck("rollback", "nobody", check=2).stderr
    assert (len(ledger.history(limit=1000)), sorted(stack.dynamic.iterdir())) == before


def test_long_requests_and_websockets_end_by_themselves(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    """The old release stops only when no connection to it is in use."""
    from threading import Thread

    from websockets.sync.client import connect

    released(service("drain"), "1")
    got: Counter[str] = Counter()
    host = {"Host": "drain.local.localhost"}

    def slow() -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{stack.ports.web}/slow", headers=host)
        with urllib.request.urlopen(request, timeout=10) as answer:
            got[answer.read().decode()] += 1

    url = f"ws://drain.local.localhost:{stack.ports.web}/ws"
    with connect(url, sock=create_connection(("127.0.0.1", stack.ports.web))) as socket:
        socket.send("before")
        assert socket.recv() == "drain-local-1 before"
        asking = Thread(target=slow)
        asking.start()
        release = Thread(target=lambda: dafnck("release", service("drain"), "--version", "2"))
        release.start()
        wait_for(lambda: who_answers(stack, "drain") == "drain-local-2", "the switch", 60)
        asking.join()
        for _ in range(4):
            time.sleep(0.5)
            socket.send("after")
            assert socket.recv() == "drain-local-1 after"
    release.join()
    assert sum(got.values()) == 1
    alone(stack, dafnck, "drain", "drain-local-2")


def test_the_doctor_finds_a_healthy_stack(stack: Stack, dafnck: Dafnck) -> None:
    findings = json.loads(dafnck("doctor", "--json").stdout)
    parts = {"traefik", "prefect-server", "prefect-worker", "dafnck-guard", "secret", "Prefect API"}
    assert parts <= {finding["part"] for finding in findings}
