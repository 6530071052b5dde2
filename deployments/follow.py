"""Starts a flow, in this process or through the worker, and follows it in the ledger."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from blocks.ledger import Ledger
from blocks.prefect_api import PrefectApi, stack_api
from blocks.stack import Stack
from deployments.local_stack import prefect_environment, quiet_prefect
from policy.errors import BadInput, Frozen, Refused, RolledBack, Unreachable
from policy.release import FINISHED, TERMINAL, UNLED, Phase, RolloutRecord
from tasks.change_runs import deployment_name
from tasks.frozen import what_now

NO_WORKER_SECONDS = 90


def run(
    stack: Stack,
    ledger: Ledger,
    flow: str,
    parameters: dict[str, Any],
    name: str,
    *,
    here: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Raises RolledBack (exit code 1) when the rollout did not end with its release serving."""
    service, environment = name.split()[0], parameters["environment"]
    if here:
        if not wait:
            raise BadInput("--here has nobody to go on after this process; leave out --no-wait")
        before = _newest(ledger, service, environment)
        message = run_here(stack, flow, parameters)
        rollout = _newest(ledger, service, environment)
        fresh = rollout and (not before or rollout.id != before.id)
        done = rollout if fresh or (flow == "resume" and rollout != before) else None
    else:
        with stack_api(stack) as api:
            flow_run_id = api.start(flow, deployment_name(), parameters, name)
            link = f"{api.url.removesuffix('/api')}/runs/flow-run/{flow_run_id}"
            if not wait:
                print(json.dumps({"flow_run_id": flow_run_id}) if as_json else f"{name}: {link}")
                return
            if not as_json:
                print(f"{name}\n{link}", flush=True)
            done, message = _follow(ledger, api, flow_run_id, quiet=as_json)
    _conclude(done, message, as_json)


def _conclude(done: RolloutRecord | None, message: str, as_json: bool) -> None:
    if as_json and done:
        print(json.dumps(asdict(done), indent=1))
    if done is None:
        if message.startswith("ended "):
            print(json.dumps({"message": message}) if as_json else message)
            return
        raise Refused(message)
    if done.phase is Phase.FROZEN:
        raise Frozen(what_now(done))
    if done.phase not in FINISHED:
        raise Unreachable(
            f"{done.version} is still {done.phase}, and its run ended: {message}\nWhat has the "
            f"traffic now is told by dafnck status; end it: "
            f"dafnck rollback {done.service} --env {done.environment}"
        )
    if done.phase is not Phase.PROMOTED:
        serves = f"{done.stable_id} serves" if done.stable_id else "nothing serves"
        raise RolledBack(
            f"{done.version} {done.phase}: {done.reason}\n{serves}; the report tells more: "
            f"dafnck report {done.service} --env {done.environment}"
        )
    if not as_json:
        print(f"{done.release_id} ({done.version}) serves: {done.reason}")


def run_here(stack: Stack, flow: str, parameters: dict[str, Any]) -> str:
    """-> message of the end state. The stack's Prefect server sees the run, when it answers."""
    os.environ |= quiet_prefect(stack)
    with stack_api(stack) as api:
        if "PREFECT_API_URL" not in os.environ and api.answers():
            os.environ |= prefect_environment(stack)
    from flows.release import release
    from flows.release_stack import release_stack
    from flows.renew import renew
    from flows.resume import resume
    from flows.rollback import rollback

    run = {
        "release": release,
        "rollback": rollback,
        "resume": resume,
        "renew": renew,
        "release_stack": release_stack,
    }[flow]
    state: Any = run(**parameters, return_state=True)  # type: ignore[operator]
    return str(state.message or "")


def _follow(
    ledger: Ledger, api: PrefectApi, flow_run_id: str, *, quiet: bool
) -> tuple[RolloutRecord | None, str]:
    from rich.console import Console

    console = Console(highlight=False, file=sys.stderr if quiet else sys.stdout)
    with console.status("waits for a worker") as spinner:
        return to_the_end(
            ledger,
            api,
            flow_run_id,
            lambda line: None if quiet else console.print(line, soft_wrap=True, markup=False),
            spinner.update,
        )


def to_the_end(
    ledger: Ledger,
    api: PrefectApi,
    flow_run_id: str,
    line: Callable[[str], None],
    phase: Callable[[str], None],
) -> tuple[RolloutRecord | None, str]:
    """Tell each decision as it falls. -> the rollout's record, None when none was begun, and the
    last words of Prefect."""
    told, began = 0, time.monotonic()
    ended_at: float | None = None
    phase("waits for a worker")
    while True:
        rollout = ledger.rollout_of_flow_run(flow_run_id)
        if rollout is not None:
            for row in ledger.decisions(rollout.id)[told:]:
                told += 1
                after = row["at"] - rollout.started_at
                line(f"{after:6.1f}s {row['share']:3d}%  {row['action']:12} {row['reason']}")
            phase(rollout.phase)
            if rollout.phase in UNLED and not ledger.leads(rollout):
                return rollout, ""
        try:
            state = api.state(flow_run_id)
        except Unreachable:
            state = {}  # the ledger goes on without it
        if rollout is None and time.monotonic() - began > NO_WORKER_SECONDS:
            raise Unreachable(
                f"no worker took the run in {NO_WORKER_SECONDS}s; it stays scheduled, nothing was "
                "changed. See dafnck doctor"
            )
        if state.get("type") in TERMINAL:
            # The end of the rollout may be on its way into the ledger, by hook or guard.
            ended_at = ended_at or time.monotonic()
            if rollout is None or time.monotonic() - ended_at > 30:
                return rollout, str(state.get("message") or state.get("name"))
        time.sleep(0.25)


def _newest(ledger: Ledger, service: str, environment: str) -> RolloutRecord | None:
    found = ledger.history(service, environment, limit=1)
    return found[0] if found else None
