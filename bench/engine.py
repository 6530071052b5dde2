"""What the engine itself costs: a ready-built service, blue-green, no baking; trigger and cancel.

    python -m bench.engine [--runs N] [--json FILE]

Prints, as medians of N runs: the whole flow and its parts (ours, Prefect's, the application's
start), the time from an API call to the first phase through the worker, from a cancellation in
Prefect to all traffic on stable, and of the commands `--help` and `status`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.stage import Stage, stage
from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from policy.release import FINISHED


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as here:
        figures = {
            "in-process": in_process(here, wanted.runs),
            "through the worker": through_the_worker(here, wanted.runs),
            "cancel": cancel(here, wanted.runs),
            "commands": commands(here, wanted.runs),
        }
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median_seconds": round(median(values), 3),
        "max_seconds": round(max(values), 3),
        "runs": len(values),
    }


def in_process(here: Stage, runs: int) -> dict[str, Any]:
    """Flow start to finish, split by what the ledger saw."""
    file = here.service("engine", {"rollout": {"strategy": "blue-green"}})
    parts: dict[str, list[float]] = {}
    here.release(file)
    for _ in range(runs):
        began = time.time()
        rollout = here.release(file)
        whole = time.time() - began
        acts = {intent.act: intent for intent in here.ledger.intents(rollout.id)}
        took = {name: (act.outcome_at or act.at) - act.at for name, act in acts.items()}
        ours = (rollout.finished_at or 0) - rollout.started_at
        application = took["start"]
        draining = took["retire"]
        for name, value in (
            ("whole flow", whole),
            ("the application's start", application),
            ("draining the old release", draining),
            ("ours", ours - application - draining),
            ("before and after (Prefect, pruning, report)", whole - ours),
        ):
            parts.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in parts.items()}


def through_the_worker(here: Stage, runs: int) -> dict[str, Any]:
    file = here.service("engine", {"rollout": {"strategy": "blue-green"}})
    to_first, to_end = [], []
    with stack_api(here.stack) as api:
        for number in range(runs):
            began = time.time()
            run = start(api, file, f"w{number}")
            rollout = here.when(lambda run=run: here.ledger.rollout_of_flow_run(run))
            to_first.append(rollout.started_at - began)
            rollout = here.when(lambda run=run: ended(here.ledger, run))
            to_end.append((rollout.finished_at or 0) - began)
    return {"API call to the first phase": spread(to_first), "to the end": spread(to_end)}


def start(api: Any, file: Path, version: str) -> str:
    parameters = {"service_file": str(file), "environment": "local", "version": version}
    return str(api.start("release", "local", parameters, f"engine {version} → local"))


def ended(ledger: Ledger, run: str) -> Any:
    rollout = ledger.rollout_of_flow_run(run)
    return rollout if rollout and rollout.phase in FINISHED else None


def cancel(here: Stage, runs: int) -> dict[str, Any]:
    """From the state that the UI's button sets to the router's last write, in its own answer."""
    steps = {"strategy": "canary", "steps": ["10%", "100%"], "bake": "60s"}
    file = here.service("engine", {"rollout": steps})
    took = []
    with stack_api(here.stack) as api:
        for number in range(runs):
            run = start(api, file, f"c{number}")

            def at_ten(run: str = run) -> Any:
                rollout = here.ledger.rollout_of_flow_run(run)
                acts = here.ledger.intents(rollout.id) if rollout else []
                return rollout if any(a.act == "shift" and a.outcome for a in acts) else None

            stable = here.when(at_ten).stable_id
            time.sleep(1)
            began = time.monotonic()
            api.set_state(run, "CANCELLING")
            router = here.router("engine")
            here.when(lambda: router.shares().get(stable) == 100, pause=0.005)  # noqa: B023
            took.append(time.monotonic() - began)
            here.when(lambda run=run: ended(here.ledger, run))
    return {"cancelled in Prefect to 100% stable": spread(took)}


def commands(here: Stage, runs: int) -> dict[str, Any]:
    dafnck = str(Path(sys.executable).parent / "dafnck")

    def timed(*words: str) -> Callable[[], float]:
        def once() -> float:
            began = time.monotonic()
            subprocess.run(
                [dafnck, *words],
                check=True,
                capture_output=True,
                env={**os.environ, "DAFNCK_HOME": str(here.stack.home)},
            )
            return time.monotonic() - began

        return once

    return {
        f"dafnck {' '.join(words)}": spread([timed(*words)() for _ in range(runs)])
        for words in (("--help",), ("status",))
    }


if __name__ == "__main__":
    main()
