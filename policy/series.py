"""From series that restart, come and go to totals of each release that only grow.

A sum over pods falls when one of them is replaced, and a sum that falls cannot be told from a
restart. So each series is followed by itself, and what it grew by is added up.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from policy.samples import Counters

Target = tuple[str, str]  # job and instance: what is scraped as one


@dataclass(frozen=True)
class Reading:
    """One series of a release as it stands. `bound`: of a bucket, in seconds; None: requests."""

    release: str
    target: Target
    key: Hashable
    value: float
    error: bool = False
    bound: float | None = None


@dataclass
class _Total:
    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)


class Totals:
    """The memory of one reader. The first look is where it begins: totals as they stand."""

    def __init__(self) -> None:
        self._last: dict[Hashable, float] = {}
        self._newest: dict[Target, float] = {}
        self._totals: dict[str, _Total] = {}
        self._begun = False

    @property
    def newest(self) -> Mapping[Target, float]:
        """When each target that was ever seen was last scraped."""
        return dict(self._newest)

    def add(
        self, readings: Iterable[Reading], newest: Mapping[Target, float]
    ) -> dict[str, Counters]:
        """-> the totals of each release. `newest`: when each target that is seen now was last
        scraped, also one that counts nothing of ours yet."""
        for reading in readings:
            # Of two Prometheus behind one address the other may lag: its counts of before are no
            # restart.
            known = self._newest.get(reading.target)
            if known is None or newest.get(reading.target, known) >= known:
                self._count(reading, target_is_known=known is not None)
        for target, at in newest.items():
            self._newest[target] = max(at, self._newest.get(target, at))
        self._begun = True
        return {
            release: Counters(total.requests, total.errors, dict(sorted(total.buckets.items())))
            for release, total in self._totals.items()
        }

    def _count(self, reading: Reading, *, target_is_known: bool) -> None:
        value = reading.value
        if not isfinite(value) or value < 0:
            return
        before = self._last.get(reading.key)
        self._last[reading.key] = value
        if before is not None:
            grown = value - before if value >= before else value
        elif target_is_known or not self._begun:
            grown = value
        else:
            # It may have counted for a year, unseen: none of that happened just now.
            grown = 0
        total = self._totals.setdefault(reading.release, _Total())
        if reading.bound is not None:
            total.buckets[reading.bound] = total.buckets.get(reading.bound, 0) + grown
        else:
            total.requests += grown
            total.errors += grown if reading.error else 0
