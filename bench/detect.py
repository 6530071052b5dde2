"""The judge on the real local stack: bad releases found, good ones left alone.

python -m bench.detect [--runs N] [--json FILE]

100 requests a second. N canary releases whose new version fails a fifth of its answers, at 10 %:
from the first failed answer that a client saw to the router's own word that stable has all traffic.
Then N good releases (A/A), which must all be promoted."""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.stage import Stage, stage
from blocks.load import SteadyLoad
from policy.release import Phase

PER_SECOND = 100
CANARY = {
    "strategy": "canary",
    "steps": ["10%", "50%", "100%"],
    "bake": "10s",
    "judge": {
        "errors": "at most 1.5x stable",
        "p95": "at most 2x stable",
        "good_enough": "2%",
    },
}
RUN = {"drain": "3s", "grace": "3s", "env": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as here:
        here.release(here.service("detect", {"run": RUN}))
        figures = {"bad": bad(here, wanted.runs), "good": good(here, wanted.runs)}
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")


def bad(here: Stage, runs: int) -> dict[str, Any]:
    file = here.service("detect", {"run": RUN | {"env": {"EVERY": "5"}}, "rollout": CANARY})
    took, failed, reasons = [], [], []
    for _ in range(runs):
        with steady(here) as load:
            rollout = here.release(file)
            assert rollout.phase is Phase.ROLLED_BACK, rollout.reason
            back = [a for a in here.ledger.intents(rollout.id) if a.act == "traffic to stable"]
            assert back[0].outcome_at
            assert load.answers.first_failed_at
            took.append(back[0].outcome_at - load.answers.first_failed_at)
        failed.append(sum(load.answers.failed_else.values()))
        reasons.append(rollout.reason)
        print(
            f"  bad {len(took)}: {took[-1]:.1f} s, {failed[-1]} failed: {reasons[-1]}", flush=True
        )
    return {
        "runs": runs,
        "seconds_median": round(median(took), 2),
        "seconds_max": round(max(took), 2),
        "failed_requests_median": median(failed),
        "by_evidence": sum("by luck" in reason for reason in reasons),
    }


def good(here: Stage, runs: int) -> dict[str, Any]:
    file = here.service("detect", {"run": RUN, "rollout": CANARY})
    promoted, took, failed = 0, [], 0
    with steady(here) as load:
        for number in range(1, runs + 1):
            began = time.monotonic()
            rollout = here.release(file)
            took.append(time.monotonic() - began)
            promoted += rollout.phase is Phase.PROMOTED
            print(
                f"  good {number}: {rollout.phase} in {took[-1]:.0f} s: {rollout.reason}",
                flush=True,
            )
        failed = sum(load.answers.failed_else.values())
    return {
        "runs": runs,
        "promoted": promoted,
        "seconds_median": round(median(took), 1),
        "requests": load.answers.sent,
        "failed_requests": failed,
    }


@contextmanager
def steady(here: Stage) -> Iterator[SteadyLoad]:
    url = f"http://127.0.0.1:{here.stack.ports.web}/"
    with SteadyLoad(url, "detect.local.localhost", per_second=PER_SECOND) as load:
        time.sleep(1)
        yield load


if __name__ == "__main__":
    main()
