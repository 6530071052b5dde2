"""What a switch costs the people behind the router: a mixed load while releases come and go.

    python -m bench.switch [--platform local|docker] [--requests N] [--rollbacks N] [--json FILE]

Releases promoted blue-green and by canary, and releases that are rolled back, one after the other,
first at 150 requests a second, then flat out, until N requests were answered and 50 rollbacks done.
In the same run, for comparison: a restart that stops the old release and starts the new one, and a
router switch that stops the old release at once. The release that is rolled back is slow, not
wrong, so that every failed request is one of the switch. Each that failed is told with what the
release did meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.probe_image import image_file, image_source
from bench.stage import Stage, stage
from policy.release import Phase, RolloutRecord
from tasks.site import site_of
from tasks.workloads import wait_ready

NAME, HOST = "switch", "switch.local.localhost"
PARTS = ("150 a second", "flat out")
RUN: dict[str, Any] = {"drain": "10s", "grace": "5s", "replicas": 2, "start": "2m"}
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
    parser.add_argument("--platform", choices=["local", "docker"], default="local")
    parser.add_argument("--requests", type=int, default=250_000)
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    begin = {"local": stage, "docker": docker_stage}[wanted.platform]
    with tempfile.TemporaryDirectory() as folder, begin(Path(folder)) as here:
        figures = measure(here, wanted.requests, wanted.rollbacks)
        for title, swap in (("stop and start", stop_and_start), ("switch without drain", no_drain)):
            with load(here.url, HOST, "150") as result:
                for _ in range(10):
                    swap(here)
            figures[f"for comparison: {title}, 10 times"] = result | {"failures": "not told"}
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(figures[part]["failed"] or figures[part]["websockets_cut"] for part in PARTS))


def measure(here: Stage, requests: int, rollbacks: int) -> dict[str, Any]:
    first = here.release(here.service(NAME, WAYS["blue-green"]))
    if first.phase is not Phase.PROMOTED:
        raise SystemExit(f"{first.version}: {first.phase}: {first.reason}")
    back: list[RolloutRecord] = []
    switches = 0
    figures: dict[str, Any] = {}
    answered = 0
    for title, rate, share in (("150 a second", "150", 0.25), ("flat out", "max", 1.0)):
        with load(here.url, HOST, rate) as result:
            while len(back) < rollbacks * share or (
                share == 1.0 and answered + result["requests"] < requests
            ):
                for way in ("blue-green", "rolled back", "canary", "rolled back"):
                    rollout = here.release(here.service(NAME, WAYS[way]), version=way)
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
    for part in PARTS:
        figures[part]["failures"] = [told(here, one) for one in figures[part]["failures"]]
    return figures


@contextmanager
def docker_stage(folder: Path) -> Iterator[Stage]:
    """The same, its releases in containers, which are gone afterwards."""
    with stage(folder, image_file) as here:
        image_source(here.folder / "image")
        try:
            yield here
        finally:
            remove_releases(here)


def remove_releases(here: Stage) -> None:
    """With their images, of an engine and a cluster that outlive the stack."""
    site = site_of(here.stack, here.ledger, NAME, "local")
    for release_id in here.ledger.releases(NAME, "local"):
        site.platform.workloads.stop(release_id, 1)
        site.platform.workloads.remove(release_id)
        here.ledger.mark_removed(release_id)
    site.builder.remove_unused(set(), idle_seconds=0)


def told(here: Stage, failure: dict[str, Any]) -> dict[str, Any]:
    """What was done between the request and its failure, by the ledger."""
    acts = []
    for rollout in here.ledger.history(NAME, limit=10_000):
        ended = rollout.finished_at or failure["failed"]
        if rollout.started_at <= failure["failed"] and failure["sent"] <= ended:
            for act in here.ledger.intents(rollout.id):
                over = act.outcome_at or failure["failed"]
                if act.at <= failure["failed"] and failure["sent"] <= over:
                    since = round(failure["failed"] - act.at, 3)
                    acts.append(
                        f"{rollout.version}: {act.act} {act.detail}, begun {since} s before"
                    )
    lasted = round(failure["failed"] - failure["sent"], 3)
    return {**failure, "lasted": lasted, "meanwhile": acts}


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
    return site_of(here.stack, here.ledger, NAME, "local"), here.ledger.release(stable)


@contextmanager
def load(url: str, host: str, rate: str) -> Iterator[dict[str, Any]]:
    """Load on a router while the body runs; the mapping counts, and is filled at the end."""
    words = ["-m", "bench.load", url, host, "--rate", rate]
    process = subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    result: dict[str, Any] = {"requests": 0}

    def follow(lines: Iterable[str]) -> None:
        for line in lines:
            result.update(json.loads(line))

    reader = threading.Thread(target=follow, args=(process.stdout,))
    reader.start()
    time.sleep(2)
    try:
        yield result
    finally:
        process.stdin.close()
        reader.join()
        process.wait()


if __name__ == "__main__":
    main()
