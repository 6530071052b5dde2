"""Models of how other tools decide, by their published defaults, on the same kind of traces.

Flagger: request-success-rate at least 99 % over each minute of the canary's own requests, at
weights of 10 to 50 % in steps of 10, rolled back when `threshold` checks have failed
(docs.flagger.app, "Canary analysis"; threshold 5 as in its examples, 0 when it is not set).

Argo Rollouts: the same success condition, five measurements a minute apart at 10 %, failureLimit 0,
the default (argo-rollouts docs, "Analysis & Progressive Delivery").

Kayenta: Mann-Whitney on points of a minute, confidence 98 %, a metric is High when the lower bound
of the shift is over 0.25 of its Hodges-Lehmann estimate (kayenta, NetflixACAJudge.scala and
MannWhitneyClassifier.scala), judged from 50 points on, every 10 minutes.

Textbook: the e-process of counts as it is published (Lindon & Malek 2022), the same alternatives as
ours, without what ours adds to it; by the share of the requests that arrived, or by the share that
was configured, which is quicker and convicts a good release when the router errs.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from policy.e_process import WORSE, Array, Tick, log_mean_exp, ratio_factors

SUCCESS = 0.99


def flagger(
    rate: float, per_second: float, threshold: int, lanes: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """-> (rolled back, minutes until then) of releases with this error rate."""
    step, failed = np.zeros(lanes, int), np.zeros(lanes, int)
    ended, back, minutes = np.zeros(lanes, bool), np.zeros(lanes, bool), np.zeros(lanes)
    for minute in range(1, 121):
        weight = 10 * (np.minimum(step, 4) + 1)
        requests = random.poisson(per_second * 60 * weight / 100)
        bad = random.binomial(requests, rate)
        misses = (requests > 0) & (1 - bad / np.maximum(requests, 1) < SUCCESS) & ~ended
        failed += misses
        now = misses & (failed >= max(1, threshold)) & ~ended
        back |= now
        minutes = np.where(now, minute, minutes)
        step += ~misses & ~ended
        ended |= now | (step >= 5)
    return back, minutes


def argo(
    rate: float, per_second: float, share: float, lanes: int, random: np.random.Generator
) -> tuple[Array, Array]:
    requests = random.poisson(per_second * 60 * share, (5, lanes))
    bad = random.binomial(requests, rate)
    misses = (requests > 0) & (1 - bad / np.maximum(requests, 1) < SUCCESS)
    return misses.any(axis=0), np.where(misses.any(axis=0), misses.argmax(axis=0) + 1.0, 0.0)


def kayenta(new: Array, stable: Array, looks: tuple[int, ...]) -> Array:
    """Whether any look flags each lane. `new`, `stable`: (minutes, lanes), one metric."""
    flagged = np.zeros(new.shape[1], bool)
    for points in looks:
        a, b = new[:points], stable[:points]
        shift = np.sort((a[:, None] - b[None, :]).reshape(points * points, -1), axis=0)
        z = 2.326  # 98 %
        deviation = np.sqrt(points * points * (2 * points + 1) / 12)
        rank = max(0, int(points * points / 2 - z * deviation))
        lower, estimate = shift[rank], np.median(shift, axis=0)
        flagged |= lower > np.maximum(0.25 * np.abs(estimate), 0)
    return flagged


def wandering_points(
    minutes: int, lanes: int, metrics: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """A/A points with autocorrelation 0.5 from minute to minute. -> (minutes, lanes, metrics)
    twice"""
    points = np.zeros((2, minutes, lanes, metrics))
    value = random.normal(size=(2, lanes, metrics))
    for minute in range(minutes):
        value = 0.5 * value + np.sqrt(0.75) * random.normal(size=value.shape)
        points[:, minute] = 10 + value
    return points[0], points[1]


def textbook(
    ticks: Callable[[int], Tick | None],
    limit: float,
    alpha: float,
    seconds: int,
    configured: float | None = None,
) -> Array:
    """-> the second at which each lane was rolled back, infinite where it was not."""
    log_e, at = np.zeros(1), np.zeros(0)
    for second in range(seconds):
        tick = ticks(second)
        if tick is None:
            break
        if not at.size:
            at = np.full(len(tick.new), np.inf)
            log_e = np.zeros((len(at), len(WORSE)))
        if configured is not None:
            new, stable = np.full(len(at), configured), np.full(len(at), 1 - configured)
            tick = replace(tick, new=new, stable=stable)
        log_e += ratio_factors(tick, np.full(len(at), limit), WORSE)
        over = log_mean_exp(log_e, axis=1) >= -np.log(alpha)
        at = np.where(over & np.isinf(at), second + 1, at)
    return at
