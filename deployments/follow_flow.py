"""Runs a flow here or through the worker, and tells how it ended."""

import json
import os
import sys
import time
from typing import Any

from blocks.prefect_api import stack_api
from blocks.stack import Stack
from deployments.follow import NO_WORKER_SECONDS
from deployments.local_stack import prefect_environment, quiet_prefect
from policy.errors import BadInput, DafnckError, Refused, Unreachable, exit_code_of
from policy.release import TERMINAL
from tasks.change_runs import deployment_name


class Ended(DafnckError):
    """The flow's own words, and its exit code."""

    def __init__(self, words: str, exit_code: int) -> None:
        super().__init__(words)
        self.exit_code = exit_code


def run(
    stack: Stack,
    flow: str,
    parameters: dict[str, Any],
    name: str,
    *,
    here: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Raises Ended when it did not complete."""
    if here:
        if not wait:
            raise BadInput("--here has nobody to go on after this process; leave out --no-wait")
        kind, ended, words, run_id = *_run_here(stack, flow, parameters), ""
    else:
        with stack_api(stack) as api:
            run_id = api.start(flow, deployment_name(), parameters, name)
            link = f"{api.url.removesuffix('/api')}/runs/flow-run/{run_id}"
            if not wait:
                print(json.dumps({"flow_run_id": run_id}) if as_json else f"{name}: {link}")
                return
            if not as_json:
                print(f"{name}\n{link}", flush=True)
            kind, ended, words = _to_the_end(api, run_id, quiet=as_json)
    if as_json:
        print(json.dumps({"flow_run_id": run_id, "state": ended, "message": words}, indent=1))
    if code := exit_code_of(kind, ended):
        raise Ended(words, code)
    if not as_json:
        print(words)


def _run_here(stack: Stack, flow: str, parameters: dict[str, Any]) -> tuple[str, str, str]:
    """-> type, name and message of the end state."""
    os.environ |= quiet_prefect(stack)
    with stack_api(stack) as api:
        if "PREFECT_API_URL" not in os.environ and api.answers():
            os.environ |= prefect_environment(stack)
    from flows.backup import backup
    from flows.dr_drill import dr_drill
    from flows.recover import recover
    from flows.restore import restore
    from flows.rotate_secret import rotate_secret

    known = (backup, dr_drill, restore, recover, rotate_secret)
    flows: dict[str, Any] = {one.name: one for one in known}
    state = flows[flow](**parameters, return_state=True)
    return str(state.type.value), str(state.name), str(state.message or "")


def _to_the_end(api: Any, run_id: str, *, quiet: bool) -> tuple[str, str, str]:
    from rich.console import Console

    console, began = Console(highlight=False, file=sys.stderr if quiet else sys.stdout), None
    asked = time.monotonic()
    with console.status("waits for a worker") as spinner:
        while True:
            try:
                state = api.state(run_id)
            except Unreachable:
                time.sleep(1)
                continue
            kind = str(state.get("type"))
            if kind in TERMINAL:
                return kind, str(state.get("name")), str(state.get("message") or state.get("name"))
            if kind == "RUNNING":
                began = began or time.monotonic()
                spinner.update(f"running for {time.monotonic() - began:.0f} s")
            elif time.monotonic() - asked > NO_WORKER_SECONDS:
                raise Refused(
                    f"no worker took the run in {NO_WORKER_SECONDS}s; it stays scheduled. See "
                    "dafnck doctor"
                )
            time.sleep(0.5)
