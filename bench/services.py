"""Many services at once: how long until all are promoted, and what they need of memory.

    python -m bench.services [--at-once 1,5,10,20] [--json FILE]

Each is a service of one replica that exists already; a second release of all of them is asked for
at the same moment, through Prefect's API and the worker, as a team would. Exit code 1 when one was
not promoted.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.stage import Stage, stage
from blocks.prefect_api import stack_api
from policy.release import FINISHED, Phase, RolloutRecord

PARTS: dict[str, dict[str, Any]] = {
    "run": {"replicas": 1, "start": "5m", "drain": "5s", "grace": "3s"},
    "rollout": {"strategy": "blue-green"},
}
PATIENCE_SECONDS = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--at-once", default="1,5,10,20")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    sizes = [int(size) for size in wanted.at_once.split(",")]
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as here:
        for number in range(max(sizes)):
            here.release(here.service(f"many{number}", PARTS))
        figures = [at_once(here, size) for size in sizes]
    print(f"{'at once':>8}{'all done':>10}{'median':>9}{'per service':>13}{'peak MiB':>10}  failed")
    for one in figures:
        print(
            f"{one['at_once']:8d}{one['all_done_seconds']:9.1f}s{one['median_seconds']:8.1f}s"
            f"{one['seconds_per_service']:12.1f}s{one['peak_mib']:10.0f}  {one['failed'] or 'none'}"
        )
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(one["failed"] for one in figures))


def at_once(here: Stage, size: int) -> dict[str, Any]:
    files = {f"many{n}": here.service(f"many{n}", PARTS) for n in range(size)}

    def ask(name: str) -> str:
        file = str(files[name])
        parameters = {"service_file": file, "environment": "local", "version": str(size)}
        with stack_api(here.stack) as api:
            return str(api.start("release", "local", parameters, f"{name} {size} → local"))

    with Peak() as peak, ThreadPoolExecutor(size) as pool:
        began = time.time()
        runs = dict(zip(files, pool.map(ask, files), strict=True))
        ends = {
            name: here.when(lambda run=run: ended(here, run), 0.1, PATIENCE_SECONDS)
            for name, run in runs.items()
        }
    took = [(end.finished_at or 0) - began for end in ends.values()]
    return {
        "at_once": size,
        "all_done_seconds": round(max(took), 1),
        "median_seconds": round(median(took), 1),
        "seconds_per_service": round(max(took) / size, 1),
        "peak_mib": round((peak.highest - peak.before) / 2**20),
        "failed": {n: end.reason for n, end in ends.items() if end.phase is not Phase.PROMOTED},
    }


def ended(here: Stage, run: str) -> RolloutRecord | None:
    rollout = here.ledger.rollout_of_flow_run(run)
    return rollout if rollout and rollout.phase in FINISHED else None


class Peak:
    """Memory that is in use beyond what was at the start, of the whole machine, once a second."""

    def __init__(self) -> None:
        self.before = self.highest = _used()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1.0):
            self.highest = max(self.highest, _used())


def _used() -> int:
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)


if __name__ == "__main__":
    main()
