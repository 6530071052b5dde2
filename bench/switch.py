"""What a switch costs the people behind the router: a mixed load while releases come and go.

    python -m bench.switch [--requests N] [--json FILE]

Releases promoted blue-green and by canary, and releases that are rolled back, one after the other,
first at 150 requests a second, then flat out, until N requests were answered and 50 rollbacks done.
In the same run, for comparison: a restart that stops the old release and starts the new one, and a
router switch that stops the old release at once. The release that is rolled back is slow, not
wrong, so that every failed request is one of the switch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.stage import Stage, stage
from policy.release import Phase, RolloutRecord
from tasks.site import local_site
from tasks.workloads import wait_ready

NAME = "switch"
RUN = {"drain": "10s", "grace": "5s", "replicas": 2}
WAYS: dict[str, dict[str, Any]] = {
    "blue-green": {"run": RUN, "rollout": {"strategy": "blue-green"}},
    "canary": {
        "run": RUN,
        "rollout": {"strategy": "canary", "steps": ["20%", "60%", "100%"], "bake": "300ms"},
    },
    "rolled back": {
        "run": RUN | {"env": {"DELAY": "0.6"}},
        "rollout": {
            "strategy": "canary",
            "steps": ["20%", "100%"],
            "bake": "60s",
            "judge": {
                "method": "threshold",
                "p50": "at most 400ms",
                "interval": "1s",
                "min_requests": 5,
            },
        },
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=250_000)
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as here:
        figures = measure(here, wanted.requests, wanted.rollbacks)
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")
    ours = [figures["150 a second"], figures["flat out"]]
    sys.exit(any(part["failed"] or part["websockets_cut"] for part in ours))


def measure(here: Stage, requests: int, rollbacks: int) -> dict[str, Any]:
    here.release(here.service(NAME, WAYS["blue-green"]))
    back: list[RolloutRecord] = []
    switches = 0
    figures: dict[str, Any] = {}
    answered = 0
    for title, rate, share in (("150 a second", "150", 0.25), ("flat out", "max", 1.0)):
        with load(here, rate) as result:
            began = time.monotonic()
            # The rate of answers is known when they are counted, at the end; guess it meanwhile.
            guess = 140 if rate == "150" else 800
            while len(back) < rollbacks * share or (
                share == 1.0 and answered + guess * (time.monotonic() - began) < requests
            ):
                for way in ("blue-green", "rolled back", "canary", "rolled back"):
                    rollout = here.release(here.service(NAME, WAYS[way]))
                    expected = Phase.ROLLED_BACK if way == "rolled back" else Phase.PROMOTED
                    if rollout.phase is not expected:
                        raise SystemExit(f"{way}: {rollout.phase}: {rollout.reason}")
                    back += [rollout] if way == "rolled back" else []
                    switches += way != "rolled back"
                print(f"  {title}: {switches} promoted, {len(back)} back", file=sys.stderr)
        figures[title] = result
        answered += result["requests"]
    figures["requests"] = answered
    figures["promotions"] = switches
    figures["rollbacks"] = len(back)
    figures["verdict to all traffic on stable, seconds"] = verdict_to_stable(here, back)
    for title, swap in (("stop and start", stop_and_start), ("switch without drain", no_drain)):
        with load(here, "150") as result:
            for _ in range(10):
                swap(here)
        figures[f"for comparison: {title}, 10 times"] = result
    return figures


def verdict_to_stable(here: Stage, back: list[RolloutRecord]) -> dict[str, float]:
    """From the intent, written when the verdict fell, to the router's own answer."""
    took = []
    for rollout in back:
        acts = here.ledger.intents(rollout.id)
        act = next(act for act in acts if act.act == "traffic to stable")
        took.append((act.outcome_at or 0) - act.at)
    return {"median": round(median(took), 3), "max": round(max(took), 3), "runs": len(took)}


def stop_and_start(here: Stage) -> None:
    """What a restart does: the old one ends, the new one begins."""
    site, release = _stable(here)
    site.platform.workloads.stop(release.id, release.run.grace)
    site.platform.workloads.start(release, release.run.replicas)
    site.platform.router.attach(wait_ready(site, release, release.run.replicas))


def no_drain(here: Stage) -> None:
    """What a script does that knows of the router alone: switch it, stop the old one."""
    site, old = _stable(here)
    other = next(r for r in here.ledger.releases(NAME, "local", promoted=True) if r != old.id)
    new = here.ledger.release(other)
    running, waiting = (old, new) if old.id in site.platform.workloads.running() else (new, old)
    site.platform.workloads.start(waiting, waiting.run.replicas)
    site.platform.router.attach(wait_ready(site, waiting, waiting.run.replicas))
    site.platform.router.set_shares({waiting.id: 100})
    site.platform.workloads.stop(running.id, 0)
    time.sleep(1)


def _stable(here: Stage) -> Any:
    stable = here.ledger.stable(NAME, "local")
    assert stable
    return local_site(here.stack, here.ledger, NAME, "local"), here.ledger.release(stable)


@contextmanager
def load(here: Stage, rate: str) -> Iterator[dict[str, Any]]:
    """Load on the router while the body runs; the mapping is filled at its end."""
    url = f"http://127.0.0.1:{here.stack.ports.web}"
    words = ["-m", "bench.load", url, f"{NAME}.local.localhost", "--rate", rate]
    process = subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = {}
    time.sleep(2)
    try:
        yield result
    finally:
        out, _ = process.communicate(timeout=60)
        result |= json.loads(out)


if __name__ == "__main__":
    main()
