"""The judge: is the new release worse than the stable one, better said: what do the counts prove?

Pure: samples in, verdict with evidence out. Three answers: PASS, FAIL, UNSURE. No data, a metrics
source that is down and too few requests are UNSURE; never PASS, never FAIL.

`method: sequential` bets (policy/bets.py) and fails at once when the bets prove a limit missed; its
promise about false rollbacks holds for all limits of a release together, because evidence is
averaged over them. It passes a step when every limit is shown to be kept. docs/the-judge.md has the
derivation."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isclose, isinf, log
from typing import Protocol

import numpy as np

from policy import threshold
from policy.bets import KNOWN, NO_LIMIT, Bets, Terms
from policy.custom_metrics import CustomMetrics
from policy.e_process import Array, Dispersion, Tick, log_mean_exp
from policy.judge import QUANTILES, Judge, Limit
from policy.quantities import in_words
from policy.release import Verdict
from policy.samples import Counters, Judgement, Measurement, Sample

LONGEST_LOOK = 300.0  # seconds between two looks; more is a clock that was set
LOOK_SECONDS = 0.9  # shorter looks are joined before they are bet on
BOUNDARIES = 6  # of the histogram, that one relative limit of latency is followed at
TIMED_ENOUGH = 200  # answers of stable, before boundaries are chosen
# Which part of stable's answers is slower than a boundary that tells about a metric.
TAILS = {
    "p50": (0.2, 0.8),
    "p90": (0.03, 0.3),
    "p95": (0.015, 0.15),
    "p99": (0.003, 0.04),
    "latency": (0.02, 0.6),
}


class CanaryJudge(Protocol):
    """Is told every sample once, in order, and when the share changed; says what that proves."""

    def add(self, sample: Sample) -> None: ...

    def shifted(self, at: float) -> None: ...

    def judgement(self, now: float) -> Judgement: ...

    def evidence(self) -> float: ...


@dataclass(frozen=True)
class Learned:
    """How errors of a service scattered in rollouts that ended well."""

    index: float = 1.0
    burst_seconds: float = 0.0


def learned_from(history: Sequence[Sample]) -> Learned:
    dispersion = Dispersion(1)
    for sample in history:
        if sample.new and sample.stable and 0 < sample.share < 100:
            new, stable = sample.new, sample.stable
            counts = (new.errors, new.requests, stable.errors, stable.requests)
            dispersion.add(Tick(*(np.array([count], dtype=float) for count in counts)))
    return Learned(float(dispersion.index()[0]), float(dispersion.burst_seconds()[0]))


NOTHING_LEARNED = Learned()


def judge_of(
    policy: Judge, *, at: float, first: bool = False, learned: Learned = NOTHING_LEARNED
) -> CanaryJudge:
    """`at`: when the rollout begins, in seconds. `first`: there is no stable release."""
    if policy.method == "threshold":
        return ThresholdJudge(policy, at, first)
    return SequentialJudge(policy, at, first, learned)


class ThresholdJudge:
    def __init__(self, policy: Judge, at: float, first: bool) -> None:
        self._policy, self._since, self._first = policy, at, first
        self._samples: list[Sample] = []
        self._custom = CustomMetrics(policy.metrics)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._custom.add(sample)

    def shifted(self, at: float) -> None:
        self._since = at
        self._custom.shifted()

    def judgement(self, now: float) -> Judgement:
        of_limits = Judgement(Verdict.PASS, "no limits but of your own numbers")
        if self._policy.limits():
            of_limits = threshold.judge(
                self._samples, self._policy, since=self._since, now=now, first=self._first
            )
        return self._custom.joined(of_limits, now)

    def evidence(self) -> float:
        return 1.0  # thresholds know none


@dataclass(frozen=True)
class Asked:
    """One limit, and the lanes that follow it: one, or one for each boundary of the histogram."""

    metric: str
    limit: Limit
    lanes: slice

    @property
    def by_boundaries(self) -> bool:
        return self.metric != "errors" and self.limit.of == "stable"

    @property
    def by_two(self) -> bool:
        """A time between two boundaries: slower than the one above speaks against the release,
        faster than the one below for it."""
        return self.limit.of == "seconds"


class SequentialJudge:
    def __init__(
        self, policy: Judge, at: float, first: bool, learned: Learned = NOTHING_LEARNED
    ) -> None:
        self._policy = policy
        self._asked, limits, relative, enough = _lanes(policy, first)
        self.burst_seconds = policy.bursts or learned.burst_seconds
        terms = Terms(policy.false_rollbacks, policy.false_passes, self.burst_seconds)
        self._bets = Bets(np.array(limits), np.array(relative), np.array(enough), terms, at)
        self._bets.learn(learned.index)
        self._boundaries: dict[int, Array] = {}  # which limit -> its boundaries, once chosen
        self._decisive: dict[int, int] = {}  # of these, the one that is nearest to the quantile
        self._buckets: Array = np.array([])  # upper bounds, in seconds
        self._stable = Counters()  # its answers since boundaries were looked at
        self._timed_enough = TIMED_ENOUGH
        self._waiting = Sample(at, Counters(), Counters())
        # Seconds that passed by the looks themselves: clocks are set, forward and back.
        self._now = self._bet_at = at
        self._looked_at = at
        self._alone = False
        self._silent = True  # the newest look got no answer
        self._custom = CustomMetrics(policy.metrics)

    # -- samples in ------------------------------------------------------------------------------

    def add(self, sample: Sample) -> None:
        self._custom.add(sample)
        self._silent = sample.new is None
        passed = sample.at - self._looked_at
        self._now += passed if 0 <= passed <= LONGEST_LOOK else 1.0
        self._looked_at = sample.at
        waits = self._waiting
        self._waiting = Sample(
            self._now,
            (waits.new or Counters()).plus(sample.new or Counters()),
            (waits.stable or Counters()).plus(sample.stable or Counters()),
            sample.share,
        )
        if self._now - self._bet_at >= LOOK_SECONDS:
            self._bet()

    def shifted(self, at: float) -> None:
        self._bet()
        self._bets.shift(self._now)
        self._custom.shifted()

    def _bet(self) -> None:
        sample, self._waiting = self._waiting, Sample(self._now, Counters(), Counters())
        self._bet_at = self._now
        new, stable = sample.new or Counters(), sample.stable or Counters()
        if not self._asked or not (new.requests or stable.requests):
            return
        if not self._buckets.size and (known := stable.buckets or new.buckets):
            self._buckets = np.array([bound for bound in known if not isinf(bound)])
        if sample.share == 0:
            new = Counters()  # a preview; who asked for it is not those who will
        self._alone = sample.share == 100
        self._bets.add(self._now, self._tick(new, stable), alone=self._alone)
        self._stable = self._stable.plus(stable)
        self._choose_boundaries()

    def _tick(self, new: Counters, stable: Counters) -> Tick:
        counts = np.zeros((4, self._bets.lanes))
        for number, asked in enumerate(self._asked):
            lanes = asked.lanes
            if asked.metric == "errors":
                counts[:, lanes] = np.array(
                    [[new.errors], [new.requests], [stable.errors], [stable.requests]]
                )
            elif asked.by_two:
                at = np.searchsorted(self._buckets, asked.limit.at_most * (1 - 1e-9))
                around = np.concatenate([[0.0], self._buckets, [inf]])
                exact = at < self._buckets.size and isclose(
                    self._buckets[at], asked.limit.at_most, rel_tol=1e-6
                )
                pair = np.array([around[at + 1], around[at + 1 if exact else at]])
                counts[:2, lanes] = _slower(new, self._buckets, pair)
            elif (chosen := self._boundaries.get(number)) is not None:
                into = slice(lanes.start, lanes.start + len(chosen))
                counts[:2, into] = _slower(new, self._buckets, chosen)
                counts[2:, into] = _slower(stable, self._buckets, chosen / asked.limit.at_most)
        return Tick(*counts)

    def _choose_boundaries(self) -> None:
        """From stable's latest answers, before anything is bet on them; looked at again when twice
        as many have come, because the first ones after a start are not like the others."""
        if not self._buckets.size or not any(asked.by_boundaries for asked in self._asked):
            return
        timed = _slower(self._stable, self._buckets, self._buckets)[1]
        if timed[0] < self._timed_enough:
            return
        for number, asked in enumerate(self._asked):
            if asked.by_boundaries:
                than = self._buckets / asked.limit.at_most
                slow = _slower(self._stable, self._buckets, than)[0]
                self._choose(number, asked, slow, timed)
        self._stable = Counters()
        self._timed_enough *= 2

    def _choose(self, number: int, asked: Asked, slow: Array, timed: Array) -> None:
        """`slow`, of so many `timed`: stable's answers slower than each boundary over the limit."""
        tails = slow / timed
        low, high = TAILS[asked.metric]
        inside = (tails >= low) & (tails <= high)
        present = self._boundaries.get(number)
        if present is not None and inside[np.isin(self._buckets, present)].all():
            return
        candidates = np.flatnonzero(inside)
        if not candidates.size:
            aim = 1 - QUANTILES.get(asked.metric, 0.5)
            candidates = np.array([np.abs(np.log((tails + 1e-4) / aim)).argmin()])
        count = min(BOUNDARIES, candidates.size) if present is None else len(present)
        picked = candidates[np.linspace(0, candidates.size - 1, count).astype(int)]
        self._boundaries[number] = self._buckets[picked]
        if asked.metric in QUANTILES:
            aims = np.abs(np.log((tails[picked] + 1e-4) / (1 - QUANTILES[asked.metric])))
            self._decisive[number] = int(aims.argmin())
        into = slice(asked.lanes.start, asked.lanes.start + count)
        self._bets.count_anew(into, slow[picked], timed[picked])

    # -- verdict out -------------------------------------------------------------------------------

    def judgement(self, now: float) -> Judgement:
        return self._custom.joined(self._of_limits(now), now)

    def evidence(self) -> float:
        """The e-value against the release over all limits: at 1 / false_rollbacks it fails."""
        if not self._asked:
            return 1.0
        together = log_mean_exp(np.array(self._means(self._bets.log_against())), axis=0)
        return float(np.exp(np.minimum(together, 700.0)))

    def _of_limits(self, now: float) -> Judgement:
        if not self._asked:
            if self._policy.limits():
                return Judgement(Verdict.UNSURE, "there is no stable release to compare with")
            return Judgement(Verdict.PASS, "no limits but of your own numbers")
        log_against = self._bets.log_against()
        against = self._means(log_against)
        if log_mean_exp(np.array(against), axis=0) >= -log(self._policy.false_rollbacks):
            worst = int(np.argmax(against))
            measured = [
                self._measure(n, now, log_against, Verdict.FAIL if n == worst else Verdict.UNSURE)
                for n in range(len(self._asked))
            ]
            luck = f"by luck in at most {self._policy.false_rollbacks * 100:g}% of good releases"
            if self._alone and self._asked[worst].limit.of == "stable":
                luck = "compared with stable's past, as it has no traffic now"
            words = f"{measured[worst].words}; {luck}"
            return Judgement(Verdict.FAIL, words, tuple(measured))
        enough = -log(self._policy.false_passes)
        of_all, of_step = self._shown(self._bets.log_for()), self._shown(self._bets.log_for_step())
        # What the rollout has shown stands only while this step, for its part, points there too.
        kept = [a >= enough and s >= enough / 2 for a, s in zip(of_all, of_step, strict=True)]
        measured = [
            self._measure(n, now, log_against, Verdict.PASS if kept[n] else Verdict.UNSURE)
            for n in range(len(self._asked))
        ]
        if self._silent:
            return Judgement(Verdict.UNSURE, "the metrics source did not answer", tuple(measured))
        if not all(kept):
            missing = [m if not ok else 0.0 for m, ok in zip(self._missing(), kept, strict=True)]
            slowest = int(np.argmax(missing))
            words = f"{measured[slowest].words}; {self._missing_words(slowest, missing[slowest])}"
            return Judgement(Verdict.UNSURE, words, tuple(measured))
        early = self._policy.early and min(of_step) >= enough
        words = "; ".join(measurement.words for measurement in measured)
        return Judgement(Verdict.PASS, words, tuple(measured), early)

    def _active(self, number: int) -> slice:
        """The lanes that speak against the release."""
        lanes = self._asked[number].lanes
        if self._asked[number].by_two:
            return slice(lanes.start, lanes.start + 1)
        if not self._asked[number].by_boundaries:
            return lanes
        chosen = len(self._boundaries.get(number, ()))
        return slice(lanes.start, lanes.start + max(1, chosen))

    def _means(self, of_lanes: Array) -> list[float]:
        """The evidence against is the mean over a limit's lanes: of e-values one again."""
        of_lanes = np.maximum(of_lanes, -700.0)
        return [
            float(of_lanes[lanes.start])
            if lanes.stop - lanes.start == 1
            else float(log_mean_exp(of_lanes[lanes], axis=0))
            for lanes in map(self._active, range(len(self._asked)))
        ]

    def _shown(self, of_lanes: Array) -> list[float]:
        """The evidence for is that of the quantile's own boundary; of all latencies, the least."""
        log_against, shown = self._bets.log_against(), []
        for number, asked in enumerate(self._asked):
            lanes = self._active(number)
            if asked.by_two:
                value = float(of_lanes[lanes.start + 1])
            elif number in self._decisive:
                value = float(of_lanes[lanes.start + self._decisive[number]])
            else:
                value = float(of_lanes[lanes].min())
            # A boundary beside it that speaks clearly against the release is not outvoted.
            doubted = log_against[lanes].max() >= -log(self._policy.false_passes)
            shown.append(min(value, 0.0) if doubted else value)
        return shown

    def _measure(
        self, number: int, now: float, log_against: Array, verdict: Verdict
    ) -> Measurement:
        asked = self._asked[number]
        lanes = self._active(number)
        lane = lanes.start + int(np.argmax(log_against[lanes]))
        counts = self._bets.step if self._bets.step[1, lane] else self._bets.totals
        bad, new, stable_bad, stable = (float(count[lane]) for count in counts)
        value = bad / new if new else None
        limit = asked.limit.at_most if asked.metric == "errors" else None
        words = self._said(number, lane, bad, new, stable_bad, stable)
        if verdict is Verdict.FAIL:
            words += f": that is not {asked.limit}"
        elif verdict is Verdict.PASS:
            words += ": good enough" if self._passes_by_rate(number) else f": {asked.limit}"
        else:
            words += f": {asked.limit} is not shown yet"
        return Measurement(asked.metric, str(asked.limit), now, value, limit, verdict, words)

    def _passes_by_rate(self, number: int) -> bool:
        asked = self._asked[number]
        if asked.metric != "errors" or asked.limit.of != "stable":
            return False
        return bool(self._bets.passes_by_rate()[asked.lanes][0])

    def _missing(self) -> list[float]:
        """Requests to the new release that each limit needs about, to be shown kept."""
        missing = self._bets.requests_missing()
        return [float(missing[self._active(n)].min()) for n in range(len(self._asked))]

    def _missing_words(self, number: int, missing: float) -> str:
        lanes = self._active(number)
        if not self._bets.totals[1].any():
            return "no requests came to the new release"
        if self._alone and not self._bets.known_alone()[lanes].any():
            came = self._bets.totals[3, lanes].max()
            return f"stable had {came:,.0f} requests before, {KNOWN} are needed to compare"
        if missing < 10:
            return "this step has shown little yet"
        if missing > 1e7:
            return "so far the rates are too near the limit to tell them apart"
        return f"about {round(missing, -1):,.0f} more requests to the new release are missing"

    def _said(
        self, number: int, lane: int, bad: float, new: float, stable_bad: float, stable: float
    ) -> str:
        asked = self._asked[number]
        compared = asked.limit.of == "stable" and stable > 0
        if asked.metric == "errors":
            words = f"errors {_share(bad, new)} of {new:,.0f}"
            return words + (f", stable {_share(stable_bad, stable)}" if compared else "")
        if asked.limit.of == "seconds":
            over = self._buckets[self._buckets >= asked.limit.at_most * (1 - 1e-9)]
            time = in_words(float(over[0]) if over.size else asked.limit.at_most)
            return f"{asked.metric}: {_share(bad, new)} of {new:,.0f} took longer than {time}"
        chosen = self._boundaries.get(number)
        if chosen is None:
            return f"{asked.metric}: stable's latencies are not known yet"
        bound = float(chosen[lane - asked.lanes.start])
        words = (
            f"{asked.metric}: {_share(bad, new)} of {new:,.0f} took longer than {in_words(bound)}"
        )
        if compared:
            same = in_words(bound / asked.limit.at_most)
            words += f", of stable {_share(stable_bad, stable)} longer than {same}"
        return words


def _lanes(policy: Judge, first: bool) -> tuple[list[Asked], list[float], list[bool], list[float]]:
    asked: list[Asked] = []
    limits: list[float] = []
    relative: list[bool] = []
    enough: list[float] = []
    for metric, limit in policy.limits():
        of_stable = limit.of == "stable"
        if first and of_stable:
            continue
        lanes = 1
        if metric != "errors":
            lanes = BOUNDARIES if of_stable else 2
        asked.append(Asked(metric, limit, slice(len(limits), len(limits) + lanes)))
        rate = limit.at_most
        if metric != "errors":
            # A release that is at most x times slower passes t no more often than stable t / x.
            rate = 1.0 if of_stable else 1 - QUANTILES[metric]
        limits += [rate] * lanes
        relative += [of_stable] * lanes
        by_rate = metric == "errors" and of_stable and policy.good_enough > 0
        enough += [policy.good_enough if by_rate else NO_LIMIT] * lanes
    return asked, limits, relative, enough


def _slower(counters: Counters, bounds: Array, than: Array) -> Array:
    """Answers that took longer than each of these times, interpolated within a bucket, and all that
    were timed. -> (2, times)"""
    timed = counters.buckets.get(inf, 0.0)
    if not bounds.size or not timed:
        return np.zeros((2, len(than)))
    within = np.array([counters.buckets.get(float(bound), 0.0) for bound in bounds])
    at_most = np.interp(than, np.concatenate([[0.0], bounds]), np.concatenate([[0.0], within]))
    return np.stack([np.maximum(timed - at_most, 0.0), np.full(len(than), timed)])


def _share(part: float, whole: float) -> str:
    return f"{part / whole * 100:.2f}%" if whole else "none"
