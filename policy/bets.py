"""The bets of one rollout: for each limit one lane, against the release, for it, and for it in the
present step alone.

Against: evidence that the limit is missed, over the whole rollout, never reset: its promise (alpha)
holds for the release, not for a look or a step. For: evidence that the limit is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.e_process import (
    BETTER,
    RESTART_SECONDS,
    STAKES,
    WORSE,
    Array,
    Dispersion,
    Tick,
    Wealth,
    absolute_factors,
    bounded_factors,
    log_mean_exp,
    ratio_factors,
    wilson,
)

NO_LIMIT = np.nan
COMPARED = 10  # requests to both at least: of one or two nobody can tell whose share they are
KNOWN = 200  # requests to stable, before its past can stand in for it
MOST_OF_A_LOOK = 0.75  # of the evidence that convicts, in logs: one look alone never does
MOST_SCATTER = 8.0  # one bad hour of stable's must not blind the judge for the next


@dataclass(frozen=True)
class Terms:
    alpha: float  # chance of ever failing a release that keeps its limits
    beta: float  # chance of passing one that misses a limit
    burst_seconds: float = 0.0


class Bets:
    def __init__(
        self, limits: Array, relative: NDArray[np.bool_], enough: Array, terms: Terms, at: float
    ) -> None:
        """`limits`: a ratio where `relative`, else a rate; `enough`: a rate below which a lane
        passes in any case, NaN for none. All of shape (lanes,). `at`: seconds, when it begins."""
        self.limits, self.relative, self.enough, self.terms = limits, relative, enough, terms
        self.lanes = lanes = len(limits)
        self._against = Wealth(lanes, len(STAKES if terms.burst_seconds else WORSE))
        # Evidence for: by the limit and by `enough`, over the whole rollout and in this step.
        self._for, self._for_step = np.zeros((2, 2, lanes, len(BETTER)))
        self._shown = np.full(lanes, -np.inf)  # the most that was ever shown for it
        self._shown_step = np.full(lanes, -np.inf)
        self.dispersion = Dispersion(lanes)
        self._known_index: float | Array = 1.0
        self._began = self._started = self._block_at = at
        self._block = np.zeros((4, lanes))
        self._ceiling = self._new_ceiling(np.zeros((4, lanes)))
        self._waiting = np.zeros((4, lanes))  # too few to compare yet
        self.totals = np.zeros((4, lanes))
        self.step = np.zeros((4, lanes))
        self._log_against: Array | None = None  # until the next tick
        # While stable has no traffic: what its past says the limit is, at most and at least.
        self._alone: tuple[Array, Array] | None = None

    def learn(self, index: float | Array) -> None:
        """How much more than independent answers the errors of earlier rollouts scattered."""
        self._known_index = index

    def add(self, at: float, tick: Tick, alone: bool = False) -> None:
        """What one look at `at` added. `alone`: all traffic is the new release's."""
        counts = np.stack([tick.new_bad, tick.new, tick.stable_bad, tick.stable])
        self._log_against = None
        if alone and self._alone is None:
            self._flush()
            low, high = wilson(self.totals[2], self.totals[3])
            self._alone = np.minimum(self.limits * high, 0.99), np.minimum(self.limits * low, 0.99)
        if at - self._started >= max(RESTART_SECONDS, (at - self._began) / 8):
            self._start(at)
        self._waiting += counts
        ready = (self._waiting[1] + self._waiting[3] >= COMPARED) | ~self.relative | alone
        self._bet(np.where(ready, self._waiting, 0.0), alone)
        self._waiting = np.where(ready, 0.0, self._waiting)
        if self.terms.burst_seconds:
            self._block += counts
            if at - self._block_at >= self.terms.burst_seconds:
                self._against.add(self._block_factors(alone))
                self._block_at, self._block = at, np.zeros_like(self._block)
                self._ceiling = self._new_ceiling(self.totals + counts)
        self.totals += counts
        self.step += counts
        if not alone:
            self.dispersion.add(tick)

    def shift(self, at: float) -> None:
        """The new release has another share from now on: a step of its own."""
        self._flush()
        self._start(at)
        self._for_step = np.zeros_like(self._for_step)
        self._shown_step = np.full_like(self._shown_step, -np.inf)
        self.step = np.zeros_like(self.step)

    def count_anew(self, lanes: slice, stable_bad: Array, stable: Array) -> None:
        """These lanes count something else from now on, of which this is known of stable. What was
        bet against stays bet; what was shown for it is to be shown anew."""
        for counts in (self.totals, self.step, self._waiting, self._block):
            counts[:, lanes] = 0.0
        self.totals[2:, lanes] = np.stack([stable_bad, stable])
        for shown in (self._for, self._for_step):
            shown[:, lanes] = 0.0
        self._shown[lanes] = self._shown_step[lanes] = -np.inf

    def log_against(self) -> Array:
        """-> (lanes,)"""
        if self._log_against is None:
            self._log_against = self._against.log_e()
        return self._log_against

    def log_for(self) -> Array:
        return self._shown

    def log_for_step(self) -> Array:
        return self._shown_step

    def known_alone(self) -> NDArray[np.bool_]:
        """Whether enough is known of stable to judge by its past."""
        return np.asarray(~self.relative | (self.totals[3] >= KNOWN))

    def requests_missing(self) -> Array:
        """About how many more requests to the new release until a lane passes, if rates stay as
        they are; infinite where they are too near the limit. -> (lanes,)"""
        new_bad, new, stable_bad, stable = self.totals
        stable_rate = (stable_bad + 0.01) / (stable + 1)
        rate = (new_bad + stable_rate) / (new + 1)
        share = np.divide(new, new + stable, out=np.full_like(new, 0.5), where=new + stable > 0)
        # One request, to either release.
        typical = Tick(rate * share, share, stable_rate * (1 - share), 1 - share)

        def missing(factors: Array, log_e: Array) -> Array:
            gain = factors.max(axis=1)  # of the component that grows fastest
            either = np.where(np.isnan(self.enough), 1.0, 2.0)
            short = np.maximum(np.log(either / self.terms.beta) - log_e, 0)
            return np.where(gain > 1e-9, short / np.maximum(gain, 1e-9) * share, np.inf)

        alone = self._alone is not None
        compared = self._factors(typical, BETTER, alone, for_it=True)
        by_limit = missing(compared, log_mean_exp(self._for[0], axis=1))
        by_rate = missing(self._enough_factors(typical), log_mean_exp(self._for[1], axis=1))
        by_rate = np.where(np.isnan(self.enough), np.inf, by_rate)
        return np.asarray(np.minimum(by_limit, by_rate))

    def passes_by_rate(self) -> Array:
        """Whether it is the low rate rather than the comparison that shows most."""
        by_limit, by_rate = log_mean_exp(self._for, axis=2)
        return np.where(np.isnan(self.enough), False, by_rate > by_limit)

    def _index(self) -> Array:
        return np.minimum(np.maximum(self.dispersion.index(), self._known_index), MOST_SCATTER)

    def _start(self, at: float) -> None:
        self._log_against = None
        self._against.start()
        self._started = at

    def _flush(self) -> None:
        self._bet(self._waiting, alone=self._alone is not None)
        self._waiting = np.zeros_like(self._waiting)

    def _bet(self, counts: Array, alone: bool) -> None:
        tick, calm = Tick(*counts), 1 / self._index()[:, None]
        if not self.terms.burst_seconds:
            most = MOST_OF_A_LOOK * np.log(1 / self.terms.alpha)
            self._against.add(np.minimum(self._factors(tick, WORSE, alone) * calm, most))
        by_limit = self._factors(tick, BETTER, alone, for_it=True) * calm
        shown = np.stack([by_limit, self._enough_factors(tick) * calm])
        self._for += shown
        self._for_step += shown
        self._shown = np.maximum(self._shown, self._log_for(self._for))
        self._shown_step = np.maximum(self._shown_step, self._log_for(self._for_step))

    def _factors(self, tick: Tick, times: Array, alone: bool, for_it: bool = False) -> Array:
        """Against by the most that the limit may be, for it by the least."""
        if not alone:
            ratio = ratio_factors(tick, self.limits, times)
            limit = np.minimum(self.limits, 0.99)
            absolute = absolute_factors(tick.new_bad, tick.new, limit, times)
            return np.where(self.relative[:, None], ratio, absolute)
        assert self._alone is not None
        limit = np.where(self.relative, self._alone[for_it], np.minimum(self.limits, 0.99))
        factors = absolute_factors(tick.new_bad, tick.new, limit, times)
        return np.where(self.known_alone()[:, None], factors, 0.0)

    def _enough_factors(self, tick: Tick) -> Array:
        rate = np.nan_to_num(self.enough, nan=0.5)
        return absolute_factors(tick.new_bad, tick.new, rate, BETTER)

    def _new_ceiling(self, totals: Array) -> Array:
        """Known before the block that it is for."""
        usual = (totals[2] + 1) / (totals[3] + 100)
        ceiling = np.where(self.relative, 8 * self.limits * usual, 5 * self.limits)
        return np.clip(ceiling, 0.02, 1.0)

    def _block_factors(self, alone: bool) -> Array:
        new_bad, new, stable_bad, stable = self._block
        limit = self.limits
        if alone and self._alone is not None:
            limit = np.where(self.relative, self._alone[0], limit)
        compared = self.relative & (not alone)
        of_stable = np.divide(stable_bad, stable, out=np.zeros_like(stable), where=stable > 0)
        bound = np.where(compared, limit * of_stable, limit)
        rate = np.divide(new_bad, new, out=np.zeros_like(new), where=new > 0)
        factors = bounded_factors(rate, bound, self._ceiling)
        seen = (new > 0) & ((stable > 0) | ~compared) & (~self.relative | compared | alone)
        seen &= self.known_alone() | (not alone)
        # With fewer requests stable's rate is the noisier one, and cutting it would take more from
        # it than from the new release's: then counts are compared, as if they scattered most.
        counted = ratio_factors(Tick(*self._block), self.limits, WORSE[[2, 4, 6]]) / MOST_SCATTER
        factors = np.where((compared & (new > stable))[:, None], counted, factors)
        return np.where(seen[:, None], factors, 0.0)

    def _log_for(self, shown: Array) -> Array:
        """Either shows that the limit is kept well enough; their mean is an e-process for both."""
        by_limit, by_rate = log_mean_exp(shown, axis=2)
        either = np.logaddexp(by_limit, by_rate) - np.log(2)
        return np.asarray(np.where(np.isnan(self.enough), by_limit, either))


def simulated(
    limits: Array,
    terms: Terms,
    ticks: Callable[[int], Tick | None],
    seconds: float = 1.0,
    learned: float | Array = 1.0,
) -> tuple[Array, Bets]:
    """Bet on many trials at once, one a lane, all relative to stable, a look every `seconds`, until
    `ticks(i)` gives None. -> (the time at which each failed, infinite where it did not; the
    bets)."""
    lanes = len(limits)
    nothing = np.full(lanes, NO_LIMIT)
    bets = Bets(limits, np.ones(lanes, dtype=bool), nothing, terms, 0.0)
    bets.learn(learned)
    failed_at = np.full(lanes, np.inf)
    number = 0
    while (tick := ticks(number)) is not None:
        number += 1
        bets.add(number * seconds, tick)
        failed = bets.log_against() >= np.log(1 / terms.alpha)
        failed_at = np.where(failed & np.isinf(failed_at), number * seconds, failed_at)
    return failed_at, bets
