"""What a judge is given and what it says: counts of a look, and a verdict with its evidence."""

from dataclasses import dataclass, field

from policy.release import Verdict


@dataclass(frozen=True)
class Counters:
    """Monotone totals of one release. `buckets`: upper bound in seconds -> requests at most so slow
    (cumulative, as Prometheus has them; the bound inf counts all timed requests)."""

    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)

    def since(self, before: "Counters") -> "Counters":
        """What was added since `before`. A total that fell was reset: it counts from zero."""
        fell = any(n < before.buckets.get(bound, 0) for bound, n in self.buckets.items())
        if fell or self.requests < before.requests or self.errors < before.errors:
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
    values: dict[str, float | None] = field(default_factory=dict)  # custom metrics; None: no answer


@dataclass(frozen=True)
class Measurement:
    """One metric against one of its limits."""

    metric: str
    asked: str  # the limit in words
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
    early: bool = False  # the present step alone has proved it: its bake time need not be over
