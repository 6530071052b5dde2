"""The charts of a report, as SVG. Small panels: readable on a phone, sharp in print."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from policy.samples import Counters, Sample

if TYPE_CHECKING:
    from tasks.simulate import Result

COLOURS = {"new": "#c2410c", "stable": "#1d4ed8"}
MARKS = {"Shift": "#64748b", "RollBack": "#b91c1c", "Promote": "#15803d"}


def timeline(
    samples: Sequence[Sample], decisions: Sequence[Mapping[str, Any]], started_at: float
) -> list[tuple[str, str]]:
    """-> (title, SVG) of shares, requests, errors and latency over the seconds of a rollout."""
    points = _a_second_each(samples)
    at = [sample.at - started_at for _, sample in points]
    marks = [
        (row["at"] - started_at, MARKS[row["action"]])
        for row in decisions
        if row["action"] in MARKS
    ]
    held_at = [sample.at - started_at for sample in samples]
    held: dict[str, list[float | None]] = {
        "new": [float(sample.share) for sample in samples],
        "stable": [100.0 - sample.share for sample in samples],
    }
    return [
        ("Share of requests, % (held by the router)", _panel(held_at, held, marks, steps=True)),
        ("Requests per second", _panel(at, _series(points, _rate), marks)),
        ("Errors, % of answers", _panel(at, _series(points, _errors), marks)),
        ("Latency, 95th percentile, ms", _panel(at, _series(points, _p95), marks)),
    ]


def _a_second_each(samples: Sequence[Sample], seconds: float = 0.9) -> list[tuple[float, Sample]]:
    """Looks come at uneven times: join them until each point stands for a second or so.
    -> (seconds it stands for, sample)."""
    joined: list[tuple[float, Sample]] = []
    since = samples[0].at - 1.0 if samples else 0.0
    new, stable = Counters(), Counters()
    for sample in samples:
        new = new.plus(sample.new or Counters())
        stable = stable.plus(sample.stable or Counters())
        if sample.at - since >= seconds:
            joined.append((sample.at - since, Sample(sample.at, new, stable, sample.share)))
            since, new, stable = sample.at, Counters(), Counters()
    return joined


def _series(points: Sequence[tuple[float, Sample]], value: Any) -> dict[str, list[float | None]]:
    return {
        which: [value(getattr(sample, which), span) for span, sample in points]
        for which in ("new", "stable")
    }


def _rate(counters: Counters | None, span: float) -> float | None:
    return counters.requests / span if counters else None


def _errors(counters: Counters | None, _span: float) -> float | None:
    return counters.error_rate * 100 if counters and counters.requests else None


def _p95(counters: Counters | None, _span: float) -> float | None:
    quantile = counters.quantile(0.95) if counters and counters.requests else None
    return None if quantile is None else quantile * 1000


def ends_over_time(result: "Result") -> str:
    """Share of releases that were rolled back, over the seconds since their first request."""

    def draw(axes: Any) -> None:
        for which, trials in (("stable", result.good_trials), ("new", result.bad_trials)):
            back = sorted(t.seconds for t in trials if t.end == "rolled back")
            last = max(t.seconds for t in (*result.good_trials, *result.bad_trials))
            share = [100 * n / len(trials) for n in range(len(back) + 1)]
            axes.step([0.0, *back, last], [*share, share[-1]], where="post", color=COLOURS[which])
        axes.set_ylim(0, 105)

    return _figure(draw)


def evidence_over_time(result: "Result", alarm: float) -> str:
    """The e-values of the first releases of each kind, up to the one that rolls back."""

    def draw(axes: Any) -> None:
        for which, trials in (("stable", result.good_trials), ("new", result.bad_trials)):
            for one in trials[:10]:
                at = [point[0] for point in one.timeline]
                evidence = [max(1e-3, min(point[2], alarm * 10)) for point in one.timeline]
                axes.plot(at, evidence, color=COLOURS[which], linewidth=0.8, alpha=0.7)
        axes.axhline(alarm, color=MARKS["RollBack"], linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_yscale("log")

    return _figure(draw)


def _panel(
    at: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    marks: Sequence[tuple[float, str]],
    *,
    steps: bool = False,
) -> str:
    def draw(axes: Any) -> None:
        for name, values in lines.items():
            known = [float("nan") if v is None else v for v in values]
            how = "steps-post" if steps else "default"
            axes.plot(at, known, color=COLOURS[name], linewidth=1.4, drawstyle=how)
        for moment, colour in marks:
            axes.axvline(moment, color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1] * 1.1))

    return _figure(draw)


def _figure(draw: Callable[[Any], None]) -> str:
    """One small chart over seconds. -> SVG"""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(4.8, 2.0), layout="constrained")
        draw(axes)
        axes.set_xlabel("seconds", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.3)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True)
        pyplot.close(figure)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    # The width is the page's to decide; dates and metadata would differ from run to run.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
