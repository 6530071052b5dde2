"""`method: threshold`: the time since the last shift is cut into intervals, each metric is measured
once in each, and more than `failure_limit` misses fail (Argo Rollouts' `failureLimit`). Known from
other tools and easy to follow; it makes no promise about how often it is wrong."""

from collections.abc import Sequence
from math import ceil

from policy.judge import QUANTILES, Judge, Limit
from policy.quantities import in_words
from policy.release import Verdict
from policy.samples import Counters, Judgement, Measurement, Sample


def judge(
    samples: Sequence[Sample], policy: Judge, *, since: float, now: float, first: bool = False
) -> Judgement:
    """Judge what came in since the last shift of traffic.

    `since`, `now`: seconds since the epoch; only samples in between count. `first`: there is no
    stable release to compare with, so limits relative to it do not apply.
    """
    measured: list[Measurement] = []
    limits = policy.limits()
    if first:
        limits = [(metric, limit) for metric, limit in limits if limit.of != "stable"]
        if not limits:
            return Judgement(Verdict.UNSURE, "there is no stable release to compare with")
    before = _total([s.stable for s in samples if s.at <= since])
    inside: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.at > since:
            number = ceil((sample.at - since) / policy.interval - 1e-9) - 1
            inside.setdefault(number, []).append(sample)
    start = since
    while start + policy.interval <= now + 1e-9:
        end = start + policy.interval
        of_interval = inside.get(round((start - since) / policy.interval), [])
        measured += [_measure(m, lim, of_interval, before, policy, end) for m, lim in limits]
        start = end
    evidence = tuple(measured)
    for metric, limit in limits:
        of_limit = [m for m in measured if (m.metric, m.asked) == (metric, str(limit))]
        failed = [m for m in of_limit if m.verdict is Verdict.FAIL]
        if len(failed) > policy.failure_limit:
            return Judgement(Verdict.FAIL, failed[-1].words, evidence)
    for metric, limit in limits:
        of_limit = [m for m in measured if (m.metric, m.asked) == (metric, str(limit))]
        if not of_limit:
            wait = in_words(max(0.0, since + policy.interval - now))
            return Judgement(Verdict.UNSURE, f"first measurement in {wait}", evidence)
        if of_limit[-1].verdict is Verdict.UNSURE:
            return Judgement(Verdict.UNSURE, of_limit[-1].words, evidence)
    return Judgement(Verdict.PASS, "; ".join(m.words for m in measured[-len(limits) :]), evidence)


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
        return Measurement(metric, str(limit), at, None, None, Verdict.UNSURE, words)

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
    return Measurement(metric, str(limit), at, value, bound, verdict, words)


def _shown(metric: str, value: float) -> str:
    return f"{value * 100:.2f}%" if metric == "errors" else f"{value * 1000:.0f}ms"
