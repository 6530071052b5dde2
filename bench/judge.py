"""How often the judge is wrong, how fast it is right, and what a decision costs.

    python -m bench.judge [--trials N] [--quick] [--only REGEX] [--json FILE]

Everything is decided by the code that decides releases, one look a second, seeded. Shares have 95 %
intervals (Wilson), medians 95 % intervals by order statistics. Beside it models of the published
defaults of other tools (bench/rivals.py) on the same kind of traces (bench/traces.py).
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import rivals
from bench.traces import SHAPES, ticks
from policy.bets import Terms, simulated
from policy.canary import judge_of
from policy.e_process import Array, Dispersion
from policy.judge import Judge
from policy.samples import Counters, Sample
from policy.simulation import NewRelease, Traffic, Weather
from tasks.simulate import wilson

STABLE = 0.005
HOUR = 3600
LIMIT = 1.5
CONFIGURED = "textbook by the configured share"
TEXTBOOK = ("textbook", CONFIGURED)
Job = tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="few trials, to see that it runs")
    parser.add_argument("--only", default="", help="lines that hold this regular expression")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    trials = 20 if wanted.quick else wanted.trials
    began, results = time.monotonic(), []
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            (name, pool.submit(do, **given))
            for name, do, given in every_job(trials)
            if re.search(wanted.only, name)
        ]
        for number, (name, job) in enumerate(jobs, 1):
            result = {"what": name, **job.result()}
            results.append(result)
            words = "  ".join(f"{k} {v}" for k, v in result.items() if k != "what")
            print(f"{name:72} {words}", flush=True)
            print(f"  {number} of {len(jobs)}", end="\r", file=sys.stderr)
    results.append({"what": "a decision on ten limits", **cost()})
    print(results[-1])
    print(f"took {time.monotonic() - began:.0f} s, {trials} trials a line")
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=1) + "\n")


def every_job(trials: int) -> list[Job]:
    jobs: list[Job] = []
    for load, share in ((1, 0.1), (10, 0.1), (100, 0.1), (10, 0.5)):
        for rate in (0.02, 0.05, 0.2, 0.5):
            name = f"found: {load} rps, {share:.0%}, new release {rate:.0%}, at most 1x"
            given = {"load": load, "share": share, "rate": rate, "limit": 1.0, "trials": trials}
            jobs.append((name, found, given))
            jobs += [(f"  {name}, {how}", found, given | {"how": how}) for how in TEXTBOOK]
            if (load, share) == (100, 0.1):
                name = name.replace("1x", "1.5x (the default)")
                jobs.append((name, found, given | {"limit": LIMIT}))
    for alpha in (0.01, 0.05):
        for load in (10, 100):
            name = f"false: A/A, {load} rps, 10%, two hours, alpha {alpha:.0%}, at most 1x"
            given = {"shape": "Poisson", "load": load, "limit": 1.0, "alpha": alpha}
            jobs.append((name, false_alarms, given | {"seconds": 2 * HOUR, "trials": trials}))
    for shape in SHAPES:
        for load in (10, 100):
            for how in ("fresh", "history", "bursts: 30s"):
                name = f"false: {shape}, {load} rps, an hour, alpha 1%, at most 1.5x, {how}"
                given = {"shape": shape, "load": load, "limit": LIMIT, "alpha": 0.01, "how": how}
                jobs.append((name, false_alarms, given | {"seconds": HOUR, "trials": trials}))
                if load == 100:
                    cost_of = {"load": load, "share": 0.1, "limit": LIMIT, "trials": trials // 4}
                    name = f"  its price: {shape}, {load} rps, new release 20% found, {how}"
                    jobs.append((name, found, cost_of | {"rate": 0.2, "shape": shape, "how": how}))
    for slower in (1.2, 1.5, 2.0, 4.0):
        for load in (10, 100):
            name = f"found: latency x{slower:g}, {load} rps, 10%, at most 1.05x"
            given = {"slower": slower, "load": load, "trials": max(10, trials // 10)}
            jobs.append((name, found_slow, given))
    given = {"slower": 1.0, "load": 10, "trials": max(10, trials // 4), "alpha": 0.05}
    jobs.append(("false: latency, A/A, 10 min, alpha 5%, at most 1.05x", found_slow, given))
    for name, given in (
        ("Flagger, threshold 5", {"threshold": 5}),
        ("Flagger, threshold unset", {"threshold": 0}),
        ("Argo Rollouts, failureLimit 0", {"threshold": None}),
    ):
        for rate in (0.005, 0.008, 0.05):
            line = f"rival: {name}, 10 rps, both releases {rate:.1%}"
            jobs.append((line, rival, {**given, "rate": rate, "load": 10, "trials": trials * 50}))
        line = f"rival: {name}, 100 rps, from 0.1% to 0.8%"
        jobs.append((line, rival, {**given, "rate": 0.008, "load": 100, "trials": trials * 50}))
    name = "found: 100 rps, 10%, from 0.1% to 0.8%, at most 1.5x"
    given = {"load": 100, "share": 0.1, "rate": 0.008, "limit": LIMIT, "trials": trials}
    jobs.append((name, found, given | {"stable": 0.001, "longest": 1800}))
    for metrics in (1, 10):
        line = f"rival: Kayenta, A/A, autocorrelation 0.5, {metrics} metrics, looks every 10 min"
        jobs.append((line, kayenta, {"metrics": metrics, "trials": trials}))
    return jobs


# -- ours -------------------------------------------------------------------------------------


def found(
    *,
    load: float,
    share: float,
    rate: float,
    limit: float,
    trials: int,
    shape: str = "Poisson",
    how: str = "fresh",
    stable: float = STABLE,
    longest: int = HOUR,
) -> dict[str, Any]:
    quick = how in ("fresh", *TEXTBOOK) and rate >= 0.05 and load >= 10
    seconds = 900 if quick else longest
    at = run(shape, load, share, (rate, stable), limit, 0.01, seconds, trials, how)
    caught = np.sort(at[np.isfinite(at)])
    result = {"found": share_of(len(caught), trials), "within": f"{seconds} s"}
    if len(caught) > trials / 2:
        low, high = order_interval(trials)
        whole = np.sort(at)
        result["median"] = f"{np.median(whole):g} s ({whole[low]:g}-{whole[high]:g})"
        result["95%"] = f"{whole[int(0.95 * (trials - 1))]:g} s"
    return result


def false_alarms(
    *,
    shape: str,
    load: float,
    limit: float,
    alpha: float,
    seconds: int,
    trials: int,
    how: str = "fresh",
) -> dict[str, Any]:
    at = run(shape, load, 0.1, (STABLE, STABLE), limit, alpha, seconds, trials, how)
    return {"rolled back": share_of(int(np.isfinite(at).sum()), trials)}


def run(
    shape: str,
    load: float,
    share: float,
    rates: tuple[float, float],
    limit: float,
    alpha: float,
    seconds: int,
    lanes: int,
    how: str,
) -> Array:
    """-> the second at which each trial was rolled back, infinite where it was not. `history`: two
    hours of earlier rollouts of the same shape teach how errors scatter."""
    kind = len("fresh" if how in TEXTBOOK else how)  # the same traffic for all of these
    seed = [int(load), int(share * 100), int(rates[0] * 1e4), seconds, len(shape), kind]
    random = np.random.default_rng(seed)

    def traffic(count: int, of: tuple[float, float], long: int) -> Any:
        return ticks(
            shape,
            random,
            lanes=count,
            seconds=long,
            per_second=load,
            share=share,
            rates=of,
        )

    bursts, index = np.zeros(lanes), np.ones(lanes)
    if how in TEXTBOOK:
        configured = share if how == CONFIGURED else None
        return rivals.textbook(traffic(lanes, rates, seconds), limit, alpha, seconds, configured)
    if how == "history":
        past = Dispersion(lanes)
        before = traffic(lanes, (rates[1], rates[1]), 2 * HOUR)
        for second in range(2 * HOUR):
            past.add(before(second))
        bursts, index = past.burst_seconds(), past.index()
    elif how.startswith("bursts"):
        bursts = np.full(lanes, 30.0)
    at = np.full(lanes, np.inf)
    for length in np.unique(bursts):
        of = bursts == length
        count = int(of.sum())
        terms = Terms(alpha, 0.05, float(length))
        at[of], _ = simulated(
            np.full(count, limit), terms, traffic(count, rates, seconds), learned=index[of]
        )
    return at


def found_slow(*, slower: float, load: float, trials: int, alpha: float = 0.01) -> dict[str, Any]:
    """The judge itself on lognormal latencies (sigma 0.8), all of the histogram."""
    policy = Judge.model_validate({"latency": "at most 1.05x stable", "false_rollbacks": alpha})
    seconds, at = 600 if slower == 1 else 900, []
    for number in range(trials):
        random = np.random.default_rng([number, int(load), int(slower * 10)])
        weather = Weather(Traffic(load, 0.0), random)
        judge = judge_of(policy, at=0.0)
        for second in range(1, 31):
            judge.add(Sample(float(second), Counters(), weather.second(second, 0, NewRelease())[1]))
        judge.shifted(30.0)
        for second in range(31, seconds + 31):
            both = weather.second(second, 10, NewRelease(slower=slower))
            judge.add(Sample(float(second), *both, 10))
            if judge.evidence() >= 1 / alpha:
                at.append(second - 30)
                break
    result = {"found": share_of(len(at), trials), "within": f"{seconds} s"}
    if len(at) > trials / 2:
        result["median"] = f"{median(sorted([*at, *[seconds] * (trials - len(at))])):g} s"
    return result


def cost() -> dict[str, Any]:
    """Of one look at ten limits: take the sample in, decide; after ten minutes of samples."""
    policy = Judge.model_validate(
        {
            "errors": "at most 1.5x stable and at most 5%",
            "p50": "at most 1.3x stable",
            "p90": "at most 1.3x stable and at most 1s",
            "p95": "at most 1.3x stable and at most 1s",
            "p99": "at most 1.3x stable and at most 2s",
            "latency": "at most 1.3x stable",
        }
    )
    weather = Weather(Traffic(100, STABLE), np.random.default_rng(1))
    judge = judge_of(policy, at=0.0)
    added, decided = [], []
    for second in range(1, 601):
        sample = Sample(float(second), *weather.second(second, 10, NewRelease()), 10)
        began = time.perf_counter()
        judge.add(sample)
        between = time.perf_counter()
        judge.judgement(float(second))
        added.append(between - began)
        decided.append(time.perf_counter() - between)
    return {
        "limits": len(policy.limits()),
        "taking a sample in": f"{median(added) * 1000:.2f} ms",
        "deciding": f"{median(decided) * 1000:.2f} ms",
    }


# -- the others -------------------------------------------------------------------------------


def rival(*, threshold: int | None, rate: float, load: float, trials: int) -> dict[str, Any]:
    random = np.random.default_rng([int(rate * 1e4), int(load), threshold or 0])
    if threshold is None:
        back, minutes = rivals.argo(rate, load, 0.1, trials, random)
    else:
        back, minutes = rivals.flagger(rate, load, threshold, trials, random)
    result = {"rolled back": share_of(int(back.sum()), trials)}
    if back.any():
        result["after"] = f"{minutes[back].mean():.1f} min on average"
    return result


def kayenta(*, metrics: int, trials: int) -> dict[str, Any]:
    random = np.random.default_rng(metrics)
    looks = tuple(range(50, 121, 10))
    new, stable = rivals.wandering_points(120, trials, metrics, random)
    flagged = np.zeros(trials, bool)
    for metric in range(metrics):
        flagged |= rivals.kayenta(new[..., metric], stable[..., metric], looks)
    return {"flagged": share_of(int(flagged.sum()), trials)}


# -- figures ----------------------------------------------------------------------------------


def share_of(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits / of:.1%} ({low:.1%}-{high:.1%})"


def order_interval(of: int) -> tuple[int, int]:
    """Ranks between which the median lies in 95 % of samples of this size."""
    half = 1.96 * np.sqrt(of) / 2
    return max(0, int(of / 2 - half)), min(of - 1, int(of / 2 + half))


if __name__ == "__main__":
    main()
