"""The numbers of a team's own that its file sets bounds to, beside what the router counts."""

from collections.abc import Sequence

from policy.judge import CustomMetric
from policy.release import Verdict
from policy.samples import Judgement, Measurement, Sample


class CustomMetrics:
    """Numbers of the team's own: more misses in a row than forgiven fail, silence is unsure."""

    def __init__(self, metrics: Sequence[CustomMetric]) -> None:
        self._metrics = metrics
        self._values: dict[str, list[float | None]] = {metric.name: [] for metric in metrics}
        self._asked_at: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        for name, value in sample.values.items():
            if name in self._values:
                self._values[name].append(value)
                self._asked_at[name] = sample.at

    def shifted(self) -> None:
        """A step is judged by its own numbers."""
        for values in self._values.values():
            values.clear()

    def joined(self, of_limits: Judgement, now: float) -> Judgement:
        """The worst of both: a miss fails, silence makes a pass unsure."""
        measured = [self._measure(metric, now) for metric in self._metrics]
        every = (*of_limits.measurements, *measured)
        for wanted in (Verdict.FAIL, Verdict.UNSURE):
            if of_limits.verdict is wanted:
                return Judgement(wanted, of_limits.reason, every)
            if found := next((m for m in measured if m.verdict is wanted), None):
                return Judgement(wanted, found.words, every)
        words = "; ".join([of_limits.reason, *(m.words for m in measured)])
        return Judgement(Verdict.PASS, words, every, of_limits.early)

    def _measure(self, metric: CustomMetric, now: float) -> Measurement:
        values = self._values[metric.name]
        limit = metric.at_most if metric.at_most is not None else metric.at_least
        asked = " and ".join(
            f"{words} {bound:g}"
            for words, bound in (("at most", metric.at_most), ("at least", metric.at_least))
            if bound is not None
        )
        last = values[-1] if values else None

        def said(verdict: Verdict, words: str) -> Measurement:
            return Measurement(metric.name, asked, now, last, limit, verdict, words)

        silent = abs(now - self._asked_at.get(metric.name, now)) > 3 * metric.interval + 30
        if last is None or silent:
            return said(
                Verdict.UNSURE,
                f"{metric.name}: no answer" if values else f"{metric.name}: not asked yet",
            )
        recent = values[-metric.misses - 1 :]
        if len(recent) > metric.misses and all(_misses(metric, value) for value in recent):
            return said(
                Verdict.FAIL, f"{metric.name} {last:g} is not {asked}, {len(recent)} times in a row"
            )
        if _misses(metric, last):
            return said(Verdict.UNSURE, f"{metric.name} {last:g} is not {asked}; asked again")
        return said(Verdict.PASS, f"{metric.name} {last:g}: {asked}")


def _misses(metric: CustomMetric, value: float | None) -> bool:
    if value is None:
        return False
    over = metric.at_most is not None and not value <= metric.at_most
    return over or (metric.at_least is not None and not value >= metric.at_least)
