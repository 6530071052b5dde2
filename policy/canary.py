"""The judge: is the new release worse than the stable one, better said: what do the counts prove?

Pure: samples in, verdict with evidence out. Three answers: PASS, FAIL, UNSURE. No data, a metrics
source that is down and too few requests are UNSURE; never PASS, never FAIL.

`method: threshold` cuts the time since the last shift into intervals, takes one measurement in each
and fails when more than `failure_limit` of them miss a limit (Argo Rollouts' `failureLimit`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

from policy.quantities import in_words
from policy.release import Verdict
from policy.service_file import Judge, Limit

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Counters:
    """Monotone totals of one release. `buckets`: upper bound in seconds -> requests at most so slow
    (cumulative, as Prometheus has them; the bound inf counts all timed requests)."""

    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)

    def since(self, before: "Counters") -> "Counters":
        """What was added since `before`. A total that fell was reset: it counts from zero."""
        if self.requests < before.requests or self.errors < before.errors:
            before = Counters()
        return Counters(
            self.requests - before.requests,
            self.errors - before.errors,
            {bound: n - before.buckets.get(bound, 0) for bound, n in self.buckets.items()},
        )

    def plus(self, other: "Counters") -> "Counters":
        bounds = {*self.buckets, *other.buckets}
        return Counters(
            self.requests + other.requests,
            self.errors + other.errors,
            {b: self.buckets.get(b, 0) + other.buckets.get(b, 0) for b in sorted(bounds)},
        )

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, q: float) -> float | None:
        """Latency in seconds by linear interpolation in the bucket, as PromQL's
        histogram_quantile does; None without data, the highest finite bound beyond it."""
        bounds = sorted(self.buckets)
        total = self.buckets.get(bounds[-1], 0) if bounds else 0
        if total <= 0:
            return None
        rank, lower, below = q * total, 0.0, 0.0
        for bound in bounds:
            count = self.buckets[bound]
            if count >= rank:
                if bound == float("inf"):
                    return lower
                inside = count - below
                return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
            lower, below = bound, count
        return lower


@dataclass(frozen=True)
class Sample:
    """What one look added, per release. `new` is None when the source did not answer."""

    at: float
    new: Counters | None
    stable: Counters | None
    share: int = 0  # of the new release, in percent, as the router held it


@dataclass(frozen=True)
class Measurement:
    """One metric over one interval, against its limit."""

    metric: str
    at: float
    value: float | None
    limit: float | None  # in the unit of value
    verdict: Verdict
    words: str


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reason: str
    measurements: tuple[Measurement, ...] = ()


def judge(
    samples: Sequence[Sample], policy: Judge, *, since: float, now: float, first: bool = False
) -> Judgement:
    """Judge what came in since the last shift of traffic.

    `since`, `now`: seconds since the epoch; only samples in between count. `first`: there is no
    stable release to compare with, so limits relative to it do not apply.
    """
    measured: list[Measurement] = []
    limits = _limits(policy)
    if first:
        limits = {metric: limit for metric, limit in limits.items() if limit.of != "stable"}
        if not limits:
            return Judgement(Verdict.UNSURE, "there is no stable release to compare with")
    start = since
    while start + policy.interval <= now + 1e-9:
        end = start + policy.interval
        inside = [s for s in samples if start < s.at <= end]
        before = _total([s.stable for s in samples if s.at <= since])
        measured += [_measure(m, lim, inside, before, policy, end) for m, lim in limits.items()]
        start = end
    evidence = tuple(measured)
    for metric in limits:
        failed = [m for m in measured if m.metric == metric and m.verdict is Verdict.FAIL]
        if len(failed) > policy.failure_limit:
            return Judgement(Verdict.FAIL, failed[-1].words, evidence)
    for metric in limits:
        of_metric = [m for m in measured if m.metric == metric]
        if not of_metric:
            wait = in_words(max(0.0, since + policy.interval - now))
            return Judgement(Verdict.UNSURE, f"first measurement in {wait}", evidence)
        if of_metric[-1].verdict is Verdict.UNSURE:
            return Judgement(Verdict.UNSURE, of_metric[-1].words, evidence)
    return Judgement(Verdict.PASS, "; ".join(m.words for m in measured[-len(limits) :]), evidence)


def _limits(policy: Judge) -> dict[str, Limit]:
    limits = {m: getattr(policy, m) for m in ("errors", *QUANTILES)}
    return {metric: limit for metric, limit in limits.items() if limit is not None}


def _total(counters: Sequence[Counters | None]) -> Counters:
    total = Counters()
    for one in counters:
        total = total.plus(one) if one else total
    return total


def _measure(
    metric: str,
    limit: Limit,
    samples: Sequence[Sample],
    stable_before: Counters,
    policy: Judge,
    at: float,
) -> Measurement:
    def unsure(words: str) -> Measurement:
        return Measurement(metric, at, None, None, Verdict.UNSURE, words)

    if not samples or all(sample.new is None for sample in samples):
        return unsure("the metrics source did not answer")
    new, stable = _total([s.new for s in samples]), _total([s.stable for s in samples])
    if new.requests < policy.min_requests:
        return unsure(
            f"the new release had {new.requests:.0f} requests in {in_words(policy.interval)}, "
            f"{policy.min_requests} needed"
        )
    if stable.requests < policy.min_requests:
        # With all traffic on the new release, the stable one is known by what it did before.
        stable = stable_before
    if limit.of == "stable" and stable.requests < policy.min_requests:
        return unsure(
            f"the stable release had {stable.requests:.0f} requests in "
            f"{in_words(policy.interval)}, {policy.min_requests} needed to compare"
        )
    value = new.error_rate if metric == "errors" else new.quantile(QUANTILES[metric])
    bound: float | None = limit.at_most
    if limit.of == "stable":
        of_stable = stable.error_rate if metric == "errors" else stable.quantile(QUANTILES[metric])
        bound = None if of_stable is None else of_stable * limit.at_most
    if value is None or bound is None:
        return unsure(f"{metric}: no latencies were counted")
    verdict = Verdict.PASS if value <= bound else Verdict.FAIL
    sign = "is within" if verdict is Verdict.PASS else "is over"
    shown = _shown(metric, value), _shown(metric, bound)
    words = f"{metric} {shown[0]} {sign} {shown[1]} ({limit}; {new.requests:.0f} requests)"
    return Measurement(metric, at, value, bound, verdict, words)


def _shown(metric: str, value: float) -> str:
    return f"{value * 100:.2f}%" if metric == "errors" else f"{value * 1000:.0f}ms"


def routing_doubt(new_requests: float, stable_requests: float, share: int) -> str | None:
    """Why the observed split contradicts the configured share; None when it does not.

    Weighted round robin keeps much closer to the share than independent draws, so five binomial
    standard deviations, plus ten requests that were long on their way, are a generous bound.
    """
    total = new_requests + stable_requests
    if total < 50:
        return None
    expected = share / 100
    slack = 5 * sqrt(expected * (1 - expected) / total) + 10 / total
    observed = new_requests / total
    if abs(observed - expected) <= slack:
        return None
    return (
        f"the router holds {share}% for the new release, but {observed * 100:.1f}% of "
        f"{total:.0f} requests arrived there"
    )
