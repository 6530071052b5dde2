"""Starts a change of several services and follows it in the ledger."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocks.checkouts import version_of
from blocks.ledger import Ledger
from blocks.prefect_api import PrefectApi, stack_api
from blocks.stack import Stack
from deployments.follow import NO_WORKER_SECONDS, run_here
from policy.change import ChangeRecord, ChangeVerdict
from policy.errors import BadInput, Inconsistent, Refused, RolledBack, Unreachable
from policy.release import TERMINAL, RolloutRecord
from policy.waves import waves
from tasks.change_report import rows, what_is_true
from tasks.change_rules import may_begin
from tasks.change_runs import deployment_name
from tasks.read_stack import read_stack, read_stack_everywhere

LED_AGAIN_SECONDS = 60  # after its leader died, until the guard leads it


def release(
    stack: Stack,
    ledger: Ledger,
    file: Path,
    env: str | None,
    parameters: dict[str, Any],
    *,
    here: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Raises RolledBack (exit code 1) when none of it stayed, Inconsistent (3) when some did.
    `file`: where it lies on this machine; `parameters` say where the worker finds it."""
    wanted = read_stack(file, env)
    may_begin(stack, ledger, wanted, time.time(), parameters)
    version = parameters["version"] or (parameters["commit"] or "")[:12] or version_of(file.parent)
    parameters = {**parameters, "environment": wanted.environment, "version": version}
    name = f"{wanted.stack.stack} {version} → {wanted.environment}"
    if here:
        if not wait:
            raise BadInput("--here has nobody to go on after this process; leave out --no-wait")
        before = {change.id for change in ledger.changes(wanted.stack.stack)}
        message = run_here(stack, "release_stack", {**parameters, "here": True})
        fresh = [c for c in ledger.changes(wanted.stack.stack) if c.id not in before]
        return _conclude(ledger, fresh[0] if fresh else None, message, as_json)
    with stack_api(stack) as api:
        flow_run_id = api.start("release_stack", deployment_name(), parameters, name)
        link = f"{api.url.removesuffix('/api')}/runs/flow-run/{flow_run_id}"
        if not wait:
            print(json.dumps({"flow_run_id": flow_run_id}) if as_json else f"{name}: {link}")
            return None
        if not as_json:
            print(f"{name}\n{link}", flush=True)
        done, message = _followed(ledger, api, flow_run_id, quiet=as_json)
    return _conclude(ledger, done, message, as_json)


def _followed(
    ledger: Ledger, api: PrefectApi, flow_run_id: str, *, quiet: bool
) -> tuple[ChangeRecord | None, str]:
    from rich.console import Console

    console = Console(highlight=False, file=sys.stderr if quiet else sys.stdout)
    with console.status("waits for a worker") as spinner:
        story = Story(
            ledger,
            lambda line: None if quiet else console.print(line, soft_wrap=True, markup=False),
            spinner.update,
        )
        return to_the_end(ledger, api, flow_run_id, story)


def to_the_end(
    ledger: Ledger, api: PrefectApi, flow_run_id: str, story: "Story"
) -> tuple[ChangeRecord | None, str]:
    """-> the change, None when none was begun, and the last words of Prefect."""
    began = time.monotonic()
    unled_since: float | None = None
    while True:
        change = ledger.change_of_flow_run(flow_run_id)
        if change is not None:
            story.more(change)
            if change.verdict is not None:
                return change, ""
        try:
            state = api.state(flow_run_id)
        except Unreachable:
            state = {}  # the ledger goes on without it
        ended = state.get("type") in TERMINAL
        words = str(state.get("message") or state.get("name"))
        if change is None:
            if ended:
                return None, words
            if time.monotonic() - began > NO_WORKER_SECONDS and state.get("type") == "SCHEDULED":
                raise Unreachable(
                    f"no worker took the run in {NO_WORKER_SECONDS}s; it stays scheduled, nothing "
                    "was changed. See dafnck doctor"
                )
        elif ledger.lease(change.service, change.environment):
            unled_since = None
        else:
            unled_since = unled_since or time.monotonic()
            if time.monotonic() - unled_since > LED_AGAIN_SECONDS:
                return change, words
        time.sleep(0.25)


class Story:
    """Each decision about each service, as it falls, and why the change goes back if it does."""

    def __init__(
        self, ledger: Ledger, line: Callable[[str], None], now: Callable[[str], None]
    ) -> None:
        self._ledger, self._line, self._now = ledger, line, now
        self._told: dict[int, int] = {}  # rollout -> decisions
        self._said: set[str] = set()

    def more(self, change: ChangeRecord) -> None:
        rollouts = self._ledger.rollouts_of_change(change.id)
        for rollout in reversed(rollouts):
            for row in self._ledger.decisions(rollout.id)[self._told.get(rollout.id, 0) :]:
                self._told[rollout.id] = self._told.get(rollout.id, 0) + 1
                after = row["at"] - change.started_at
                way = "←" if rollout.kind == "rollback" else "→"
                what = f"{rollout.service:16} {way} {row['share']:3d}%  {row['action']:12}"
                self._line(f"{after:6.1f}s {what} {row['reason']}")
        if change.trouble:
            self._once(f"goes back: {change.trouble}")
        members = self._ledger.members(change.id)
        for member in members:
            if member.kept:
                self._once(f"{member.service} is left as it is: {member.kept}")
        phases = {r.service: str(r.phase) for r in reversed(rollouts)}
        words = (f"{m.service} {phases.get(m.service, _asked(m.asked_at))}" for m in members)
        self._now(" · ".join(words))

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._line(f"        {line}")


def _asked(at: float | None) -> str:
    return "waits" if at is None else "waits for a worker"


def _conclude(ledger: Ledger, done: ChangeRecord | None, message: str, as_json: bool) -> None:
    if done is None:
        raise Refused(message)
    if as_json:
        print(json.dumps(document(ledger, done), indent=1))
    if done.verdict is None:
        raise Unreachable(
            f"the change {done.id} of {done.stack} is not over, and nobody leads it: {message}\n"
            "The guard ends it when Prefect answers (dafnck doctor), and so does the next "
            f"dafnck release {done.file}"
        )
    words = what_is_true(ledger, done)
    if done.verdict == ChangeVerdict.ROLLED_BACK:
        raise RolledBack(words)
    if done.verdict == ChangeVerdict.INCONSISTENT:
        raise Inconsistent(words)
    if not as_json:
        for row in rows(ledger, done):
            print(f"{row['service']} serves {row['serves now']}")
        print(words)


def document(ledger: Ledger, change: ChangeRecord) -> dict[str, Any]:
    """All of it, for machines."""
    rollouts = ledger.rollouts_of_change(change.id)

    def newest(service: str, kind: str) -> dict[str, Any] | None:
        of: list[RolloutRecord] = [r for r in rollouts if (r.service, r.kind) == (service, kind)]
        return asdict(of[0]) if of else None

    services = [
        {
            "service": row["service"],
            "wave": row["wave"],
            "after": [name for name in row["after"].split(", ") if name],
            "release": newest(row["service"], "release"),
            "rollback": newest(row["service"], "rollback"),
            "taken_back": row["taken back"],
            "serves": row["serves now"],
        }
        for row in rows(ledger, change)
    ]
    return {**asdict(change), "services": services}


def validate(file: Path, as_json: bool) -> None:
    everywhere = read_stack_everywhere(file)
    if as_json:
        documents = {e: wanted.stack.model_dump(mode="json") for e, wanted in everywhere.items()}
        print(json.dumps(documents, indent=1))
        return
    wanted = next(iter(everywhere.values()))
    for number, wave in enumerate(waves(wanted.after), 1):
        print(f"wave {number}: {', '.join(wave)}")
    print(f"{wanted.stack.stack} in {', '.join(everywhere)}: good")
