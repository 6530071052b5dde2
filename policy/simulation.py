"""A rollout on traffic that is made up or was recorded, decided by the shipped code, second by
second.

Pure: whatever is random comes from the generator that is handed in.
"""

from dataclasses import dataclass, field
from math import inf, pi, sin

import numpy as np

from policy.canary import NOTHING_LEARNED, Learned, judge_of
from policy.e_process import Array
from policy.release import Phase
from policy.rollout import (
    Promote,
    RollBack,
    Seen,
    Shift,
    ShrinkStable,
    StartNew,
    Wait,
    next_action,
    plan,
)
from policy.samples import Counters, Sample
from policy.service_file import Rollout

BOUNDS: Array = np.array(
    [
        *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.014, 0.02, 0.03, 0.04, 0.055, 0.075, 0.1),
        *(0.14, 0.2, 0.28, 0.4, 0.55, 0.75, 1, 1.4, 2, 3, 5, 10, 30),
    ]
)
SHAPES = ("steady", "day", "wandering", "clumps", "bursts", "outage")


@dataclass(frozen=True)
class Traffic:
    """Requests and how the stable release answers them."""

    per_second: float
    errors: float  # fraction of the answers
    latency_seconds: float = 0.05  # median; lognormal
    spread: float = 0.8  # standard deviation of its logarithm
    shape: str = "steady"
    recorded: tuple[Counters, ...] = ()  # of a stable release, a second each; instead of the above


@dataclass(frozen=True)
class NewRelease:
    """How the new release differs from the stable one: not at all, if nothing is said."""

    errors: float | None = None  # fraction of the answers
    slower: float = 1.0  # times as slow


@dataclass(frozen=True)
class Trial:
    end: str  # promoted | rolled back | held
    seconds: float  # from the first request to the new release
    requests: int  # to the new release
    failed: int  # of these
    reason: str
    timeline: tuple[tuple[float, int, float], ...] = field(default=())  # second, share, evidence


class Weather:
    """What happens to the traffic of one trial, the same laws for both releases."""

    def __init__(self, traffic: Traffic, random: np.random.Generator) -> None:
        self._traffic, self._random = traffic, random
        self._phase = random.uniform(0, 2 * pi)
        self._wander = random.normal(0, 1, 2)
        self._burst_until = np.zeros(2)
        self._outage_at = random.uniform(0, 300)
        self._offset = int(random.integers(0, max(1, len(traffic.recorded))))

    def second(self, at: int, share: int, new: NewRelease) -> tuple[Counters, Counters]:
        """-> counts of the new release and of the stable one."""
        traffic, random = self._traffic, self._random
        if traffic.recorded:
            return self._recorded(at, share, new)
        per_second, rates = traffic.per_second, np.full(2, traffic.errors)
        rates[0] = traffic.errors if new.errors is None else new.errors
        clump = 1
        match traffic.shape:
            case "day":
                tide = sin(2 * pi * at / 7200 + self._phase)
                per_second *= 1 + 0.8 * tide
                rates = rates * (1 - 0.7 * tide)
            case "wandering":
                self._wander = 0.9 * self._wander + 0.436 * random.normal(0, 1, 2)
                rates = rates * np.exp(self._wander - 0.5)
            case "clumps":
                clump = 4
            case "bursts":
                begins = random.random(2) < 1 / 600
                until = at + random.exponential(5, 2)
                self._burst_until = np.where(begins, until, self._burst_until)
                rates = np.where(self._burst_until > at, np.maximum(rates, 0.5), rates)
            case "outage":
                if self._outage_at <= at < self._outage_at + 30:
                    rates = np.maximum(rates, 0.5)
        requests = random.poisson(per_second * np.array([share, 100 - share]) / 100)
        slower = (new.slower, 1.0)
        both = [self._answers(int(requests[i]), float(rates[i]), slower[i], clump) for i in (0, 1)]
        return both[0], both[1]

    def _answers(self, requests: int, rate: float, slower: float, clump: int) -> Counters:
        random, traffic = self._random, self._traffic
        errors = int(random.binomial(requests, min(1.0, rate / clump)))
        if clump > 1:  # a call that fails is tried again by its caller, and fails again
            errors = min(requests, int(random.geometric(1 / clump, errors).sum()))
        median = traffic.latency_seconds * slower
        below = _normal_cdf(np.log(BOUNDS / median) / traffic.spread)
        return _counted(requests, errors, np.diff(below, prepend=0.0, append=1.0), random)

    def _recorded(self, at: int, share: int, new: NewRelease) -> tuple[Counters, Counters]:
        """The recorded answers of that second, dealt to both releases by the share."""
        recorded = self._traffic.recorded
        was = recorded[(self._offset + at) % len(recorded)]
        requests = int(was.requests)
        to_new = int(self._random.binomial(requests, share / 100))
        rate = was.error_rate
        both = []
        for count, own_rate, slower in (
            (to_new, rate if new.errors is None else new.errors, new.slower),
            (requests - to_new, rate, 1.0),
        ):
            errors = float(self._random.binomial(count, min(1.0, own_rate)))
            both.append(_counted(count, errors, _parts(was, slower), self._random))
        return both[0], both[1]


def trial(
    rollout: Rollout,
    traffic: Traffic,
    new: NewRelease,
    random: np.random.Generator,
    learned: Learned = NOTHING_LEARNED,
) -> Trial:
    """One release of `new` over a stable release of one replica, which is always ready."""
    assert rollout.judge is not None
    weather = Weather(traffic, random)
    steps = plan(rollout, replicas=1, stable_replicas=1, now=0.0)
    judge = judge_of(rollout.judge, at=0.0, learned=learned)
    at, share, shifted_at, requests, failed = 0, 0, 0.0, 0.0, 0.0
    timeline: list[tuple[float, int, float]] = []
    for _ in range(3):  # what is seen of stable while the new release starts
        at += 1
        judge.add(Sample(float(at), Counters(), weather.second(at, 0, new)[1], 0))
    began = at
    while True:
        judgement = judge.judgement(float(at)) if share else None
        action = next_action(
            steps,
            Seen(
                now=float(at),
                phase=Phase.SHIFTING,
                share=share,
                shifted_at=shifted_at,
                new_ready=1,
                new_dead=False,
                restarts=0,
                stable_running=1,
                verdict=judgement.verdict if judgement else None,
                verdict_reason=judgement.reason if judgement else "",
                early=judgement.early if judgement else False,
                # A person who approves does so before 100%; one who has to decide stays away.
                approved_at=float(at) if rollout.approve and at <= rollout.within else None,
            ),
        )
        if isinstance(action, Wait) and action.for_person:
            return Trial("held", at - began, int(requests), int(failed), action.reason, ())
        if isinstance(action, Promote | RollBack):
            end = "promoted" if isinstance(action, Promote) else "rolled back"
            return Trial(
                end, at - began, int(requests), int(failed), action.reason, tuple(timeline)
            )
        if isinstance(action, Shift):
            share, shifted_at = action.share, float(at)
            judge.shifted(shifted_at)
            continue
        assert not isinstance(action, StartNew | ShrinkStable)
        at += 1
        counts = weather.second(at, share, new)
        requests, failed = requests + counts[0].requests, failed + counts[0].errors
        judge.add(Sample(float(at), *counts, share))
        timeline.append((float(at - began), share, judge.evidence()))


def _counted(requests: int, errors: float, parts: Array, random: np.random.Generator) -> Counters:
    within = np.cumsum(random.multinomial(requests, parts))
    buckets = {float(b): float(n) for b, n in zip(BOUNDS, within, strict=False)}
    return Counters(float(requests), errors, buckets | {inf: float(requests)})


def _parts(counters: Counters, slower: float) -> Array:
    """How recorded latencies spread over BOUNDS, each made so many times as long."""
    bounds = sorted(bound for bound in counters.buckets if bound != inf)
    total = counters.buckets.get(inf, 0.0)
    if not bounds or not total:
        return np.asarray(np.diff(_normal_cdf(np.log(BOUNDS / 0.05)), prepend=0.0, append=1.0))
    known = np.array([counters.buckets[bound] for bound in bounds]) / total
    below = np.interp(BOUNDS, np.array([0.0, *bounds]) * slower, [0.0, *known])
    return np.asarray(np.clip(np.diff(below, prepend=0.0, append=1.0), 0.0, 1.0))


def _normal_cdf(z: Array) -> Array:
    """Abramowitz & Stegun 26.2.17; off by less than 1e-7."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    poly = t * (
        0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    )
    tail = np.exp(-z * z / 2) / np.sqrt(2 * pi) * poly
    return np.asarray(np.where(z > 0, 1 - tail, tail))
