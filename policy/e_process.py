"""Anytime-valid tests: bets against "the new release is within its limit", as wealth that grows.

Under that hypothesis the expected wealth never exceeds 1, so it ever reaches 1/alpha with a chance
of at most alpha, however often one looks (Ville's inequality). The derivation, with sources and
with what is assumed, is docs/the-judge.md. Everything is done in logs, for many lanes at once: a
lane is one question, or one trial of a simulation.

Shapes: counts are (lanes,), factors (lanes, components), wealth (starts, lanes, components).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

# How much worse than the limit, and how much better: the alternatives that are bet on, equally.
WORSE = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0])
BETTER = np.array([0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.01])
STAKES = np.array([0.2, 0.5, 0.9])  # shares of the wealth that a bounded bet puts at risk
FIRST = 0.9  # of the initial wealth is bet from the beginning; the rest waits for later starts
RESTART_SECONDS = 60.0
NEARLY_ONE = 1 - 1e-9


@dataclass(frozen=True)
class Tick:
    """What one look added. `new_bad` and `stable_bad` count what must not happen (errors, or
    answers that were too slow; fractions of one are allowed) among so many requests."""

    new_bad: Array
    new: Array
    stable_bad: Array
    stable: Array


def ratio_factors(tick: Tick, limit: Array, times: Array) -> Array:
    """Log factors of the bets that the new release's rate is `limit * times` stable's, against
    `limit`.

    log f = c log(d/t) - (c+b) log((1-r+r d)/(1-r+r t)), with c and b the bad answers of the new and
    the stable release, r the share of the requests that the new one really had, t the limit and d =
    t*times. Its expectation is at most 1 for any common rate, known or not, of that tick. ->
    (lanes, components)."""
    requests = tick.new + tick.stable
    share = np.divide(tick.new, requests, out=np.zeros_like(requests), where=requests > 0)
    tilted = (1 - share + share * limit)[:, None]
    alternative = 1 - share[:, None] + (share * limit)[:, None] * times
    return np.asarray(
        tick.new_bad[:, None] * np.log(times)
        - (tick.new_bad + tick.stable_bad)[:, None] * np.log(alternative / tilted)
    )


def absolute_factors(bad: Array, requests: Array, limit: Array, times: Array) -> Array:
    """Log factors of the bets that the rate is `limit * times`, against `limit` (0 < limit < 1):
    the likelihood ratio of independent answers. -> (lanes, components)."""
    limit = np.clip(limit, 1e-9, NEARLY_ONE)[:, None]
    alternative = np.clip(limit * times, 1e-12, (1 + limit) / 2)
    good = (requests - bad)[:, None]
    return np.asarray(
        bad[:, None] * np.log(alternative / limit) + good * np.log((1 - alternative) / (1 - limit))
    )


def bounded_factors(new_rate: Array, stable_rate: Array, ceiling: Array) -> Array:
    """Log factors of bets that can at most double, one for each block of ticks: valid whatever the
    dependence within a block, as long as the rate of the new release in a block is not above
    `stable_rate` (the limit times stable's, or an absolute limit) in distribution. Rates are cut at
    `ceiling`, known before the block. -> (lanes, stakes)."""
    gain = (np.minimum(new_rate, ceiling) - np.minimum(stable_rate, ceiling)) / ceiling
    return np.asarray(np.log1p(gain[:, None] * STAKES))


class Wealth:
    """The wealth of bets that begin anew now and then, so that an hour of good answers does not
    have to be outweighed first by a release that goes bad late. Start number j gets its own share
    of the initial wealth; what has not started is kept. The sum is an e-process."""

    def __init__(self, lanes: int, components: int) -> None:
        self._log = np.zeros((1, lanes, components))

    def start(self) -> None:
        self._log = np.concatenate([self._log, np.zeros((1, *self._log.shape[1:]))])

    def add(self, factors: Array) -> None:
        self._log += factors

    @property
    def starts(self) -> int:
        return int(self._log.shape[0])

    def log_e(self) -> Array:
        """-> (lanes,)"""
        number = np.arange(1, self.starts)
        shares = np.concatenate([[FIRST], (1 - FIRST) / (number * (number + 1))])
        kept = 1 - shares.sum()
        each = log_mean_exp(self._log, axis=2) + np.log(shares)[:, None]
        if kept > 0:
            each = np.concatenate([each, np.full((1, each.shape[1]), np.log(kept))])
        return log_sum_exp(each, axis=0)


class Dispersion:
    """How much more bad answers scatter than independent ones would, learned from the stable
    release alone: what the new one does must not be mistaken for the weather. Batches of 1, 10 and
    60 ticks are compared with their neighbours (an index of dispersion, as in quasi-likelihood,
    McCullagh & Nelder), so a rate that moves slowly is no scatter; a batch that was bad for both is
    left out."""

    BATCHES = (1, 10, 60)

    def __init__(self, lanes: int) -> None:
        shape = (len(self.BATCHES), lanes)
        self._ticks = 0
        self._open = np.zeros((4, *shape))  # counts of a batch, as in a Tick
        self._closed: list[list[Array]] = [[] for _ in self.BATCHES]  # the last two of each length
        self._scatter, self._usual = np.zeros(shape), np.zeros(shape)
        self._in_split, self._split = np.zeros(shape), np.zeros(shape)
        self._worst = np.zeros(shape)  # bad answers that the new release would get in such a batch
        self._batches = np.zeros(shape)

    def add(self, tick: Tick) -> None:
        self._ticks += 1
        self._open += np.stack([tick.new_bad, tick.new, tick.stable_bad, tick.stable])[:, None, :]
        for index, length in enumerate(self.BATCHES):
            if self._ticks % length == 0:
                self._close(index)

    def _close(self, index: int) -> None:
        last = self._closed[index]
        last.append(self._open[:, index].copy())
        self._open[:, index] = 0.0
        if len(last) < 3:
            return
        before, (new_bad, new, bad, requests), after = last
        around = before[2:] + after[2:]  # stable's bad answers and requests
        usual = requests * around[0] / np.maximum(around[1], 1)
        pooled = requests * (around[0] + bad) / np.maximum(around[1] + requests, 1)
        # Variance of the difference, were all independent: its own and its neighbours'.
        due = pooled * (1 + requests / np.maximum(around[1], 1))
        excess = bad - usual
        share = np.divide(new, new + requests, out=np.zeros_like(new), where=new > 0)
        split = (new_bad + bad) * share * (1 - share)
        both = (np.abs(excess) > 4 * np.sqrt(due + 1)) & (
            (new_bad - share * (new_bad + bad)) ** 2 < 9 * (split + 0.1)
        )
        counts = (requests > 0) & (around[1] > 0) & ~(both & (new > 0))
        squared = np.minimum(excess**2, 40 * (due + 1))  # one burst is no weather
        self._scatter[index] += np.where(counts, squared, 0.0)
        self._usual[index] += np.where(counts, due, 0.0)
        self._in_split[index] += np.where(counts, share**2 * (squared - due) / 1.5, 0.0)
        self._split[index] += np.where(counts, pooled * share, 0.0)
        self._worst[index] = np.maximum(self._worst[index], np.where(counts, share * excess, 0.0))
        self._batches[index] += counts
        del last[0]

    def _of_stable(self) -> Array:
        """Index of dispersion of stable's bad answers; 1 where it could be chance.
        -> (batches, lanes)"""
        usual = np.maximum(self._usual, 1e-9)
        index = self._scatter / usual
        each = usual / np.maximum(self._batches, 1)
        noise = 1 + 3.5 * np.sqrt((2 + 1 / np.maximum(each, 1e-9)) / np.maximum(self._batches, 1))
        return np.asarray(np.where((self._batches >= 5) & (index > noise), index, 1.0))

    def index(self) -> Array:
        """Of the split of bad answers between the releases: clumps within a tick, or rates that
        wander, in the new release as much as in the stable one. -> (lanes,), at least 1."""
        of_stable = self._of_stable()
        wander = 1 + 2 * np.maximum(self._in_split, 0.0) / np.maximum(self._split, 1e-9)
        wander = np.where(of_stable > 1, wander, 1.0)[1:]
        clumps = np.where(of_stable[1] > 2 * of_stable[0], 1.0, of_stable[0])
        return np.asarray(np.maximum(clumps, wander.max(axis=0)))

    def burst_seconds(self) -> Array:
        """How long bursts last that are better bet on in blocks, because the index would be too
        large for them or too small, for ticks of a second: 0, 10 or 60. -> (lanes,)"""
        _, ten, sixty = self._of_stable()
        index = self.index()
        rare = 2 * self._worst[1:].max(axis=0) / index > 2.5
        shown = (rare | (index > 10)) & (np.maximum(ten, sixty) > 1)
        return np.where(shown, np.where(ten >= 0.5 * sixty, 10.0, 60.0), 0.0)


def log_sum_exp(values: Array, axis: int) -> Array:
    top = values.max(axis=axis, keepdims=True)
    return np.asarray(np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis))


def log_mean_exp(values: Array, axis: int) -> Array:
    return np.asarray(log_sum_exp(values, axis) - np.log(values.shape[axis]))


def wilson(bad: Array, requests: Array, z: float = 2.33) -> tuple[Array, Array]:
    """Wilson's confidence bounds of a rate, each 99 % for z = 2.33. Without requests: 0 and 1."""
    n = np.maximum(requests, 1e-9)
    rate = np.clip(bad / n, 0, 1)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
    return np.where(requests > 0, low, 0.0), np.where(requests > 0, high, 1.0)
