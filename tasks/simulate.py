"""Many simulated releases of a policy, good ones and bad ones, and what their ends say about it."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from blocks.files import write_atomically
from policy.canary import NOTHING_LEARNED, Learned
from policy.service_file import Rollout
from policy.simulation import NewRelease, Traffic, Trial, trial


@dataclass(frozen=True)
class Ends:
    """Of releases of one kind."""

    kind: str  # good | bad
    releases: int
    rolled_back: float  # share
    rolled_back_between: tuple[float, float]  # 95 % interval (Wilson)
    proved: float  # share that was rolled back by evidence, not by the end of its time
    seconds_median: float
    seconds_95: float
    failed_median: float  # requests that the new release failed
    failed_95: float


@dataclass(frozen=True)
class Result:
    rollout: Rollout
    traffic: Traffic
    bad: NewRelease
    good_ends: Ends
    bad_ends: Ends
    good_trials: list[Trial]
    bad_trials: list[Trial]

    def as_json(self) -> dict[str, Any]:
        return {
            "traffic": {k: v for k, v in asdict(self.traffic).items() if k != "recorded"},
            "recorded_seconds": len(self.traffic.recorded),
            "bad_release": asdict(self.bad),
            "good": asdict(self.good_ends),
            "bad": asdict(self.bad_ends),
        }


def simulate(
    rollout: Rollout,
    traffic: Traffic,
    bad: NewRelease,
    *,
    releases: int,
    seed: int,
    processes: int,
    learned: Learned = NOTHING_LEARNED,
    progress: Callable[[], None] = lambda: None,
) -> Result:
    """`releases` good and as many bad ones, in so many processes. The same seed gives the same."""
    trials: dict[str, list[Trial | None]] = {"good": [None] * releases, "bad": [None] * releases}
    with ProcessPoolExecutor(processes) as pool:
        jobs = {}
        for kind, new in (("good", NewRelease()), ("bad", bad)):
            for number in range(releases):
                seeds = [seed, number, kind == "bad"]
                job = pool.submit(_one, rollout, traffic, new, seeds, learned)
                jobs[job] = kind, number
        for job in as_completed(jobs):
            kind, number = jobs[job]
            trials[kind][number] = job.result()
            progress()
    good, ill = ([t for t in trials[kind] if t] for kind in ("good", "bad"))
    return Result(rollout, traffic, bad, _ends("good", good), _ends("bad", ill), good, ill)


def _one(
    rollout: Rollout,
    traffic: Traffic,
    new: NewRelease,
    seeds: list[int],
    learned: Learned,
) -> Trial:
    return trial(rollout, traffic, new, np.random.default_rng(seeds), learned)


def _ends(kind: str, trials: list[Trial]) -> Ends:
    back = [t for t in trials if t.end == "rolled back"]
    proved = [t for t in back if not t.reason.startswith("still unsure")]
    seconds = [t.seconds for t in (back if kind == "bad" and back else trials)]
    failed = [float(t.failed) for t in trials]
    return Ends(
        kind,
        len(trials),
        len(back) / len(trials),
        wilson(len(back), len(trials)),
        len(proved) / len(trials),
        median(seconds),
        _95(seconds),
        median(failed),
        _95(failed),
    )


def _95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    rate = hits / of
    middle = (rate + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * sqrt(rate * (1 - rate) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def write_page(result: Result, title: str, facts: list[tuple[str, str]], path: Path) -> None:
    """An HTML page with the figures and charts of both kinds."""
    from jinja2 import Environment, FileSystemLoader

    from tasks.charts import ends_over_time, evidence_over_time

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True
    ).get_template("simulation.html.j2")
    judge = result.rollout.judge
    charts = [
        ("Rolled back, % of releases, over seconds", ends_over_time(result)),
    ]
    if judge and judge.method == "sequential":
        alarm = 1 / judge.false_rollbacks
        caption = "Evidence against ten releases of each kind"
        charts.append((caption, evidence_over_time(result, alarm)))
    page = template.render(
        title=title, facts=facts, charts=charts, ends=[result.good_ends, result.bad_ends]
    )
    write_atomically(path, page)
