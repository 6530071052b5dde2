"""The charts of a report, as SVG. Small panels: readable on a phone, sharp in print."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from policy.canary import Counters, Sample

NEW, STABLE = "#c2410c", "#1d4ed8"
MARKS = {"Shift": "#64748b", "RollBack": "#b91c1c", "Promote": "#15803d"}


def timeline(
    samples: Sequence[Sample], decisions: Sequence[Mapping[str, Any]], started_at: float
) -> list[tuple[str, str]]:
    """-> (title, SVG) of shares, requests, errors and latency over the seconds of a rollout."""
    at = [sample.at - started_at for sample in samples]
    marks = [
        (row["at"] - started_at, MARKS[row["action"]])
        for row in decisions
        if row["action"] in MARKS
    ]
    both = {"new": NEW, "stable": STABLE}
    share = {"new": [s.share for s in samples], "stable": [100 - s.share for s in samples]}
    panels: list[tuple[str, dict[str, list[float | None]]]] = [
        ("Share of requests, % (held by the router)", share),  # type: ignore[list-item]
        ("Requests per second", _series(samples, _rate)),
        ("Errors, % of answers", _series(samples, _errors)),
        ("Latency, 95th percentile, ms", _series(samples, _p95)),
    ]
    return [(title, _panel(at, lines, marks, both, title[0] == "S")) for title, lines in panels]


def _series(samples: Sequence[Sample], value: Any) -> dict[str, list[float | None]]:
    spans = [1.0, *(later.at - earlier.at for earlier, later in pairwise(samples))]
    return {
        which: [
            value(getattr(sample, which), span) for sample, span in zip(samples, spans, strict=True)
        ]
        for which in ("new", "stable")
    }


def _rate(counters: Counters | None, span: float) -> float | None:
    return counters.requests / max(span, 0.05) if counters else None


def _errors(counters: Counters | None, _span: float) -> float | None:
    return counters.error_rate * 100 if counters and counters.requests else None


def _p95(counters: Counters | None, _span: float) -> float | None:
    quantile = counters.quantile(0.95) if counters and counters.requests else None
    return None if quantile is None else quantile * 1000


def _panel(
    at: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    marks: Sequence[tuple[float, str]],
    colours: Mapping[str, str],
    steps: bool,
) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(4.8, 2.0), layout="constrained")
        for name, values in lines.items():
            known = [float("nan") if v is None else v for v in values]
            how = "steps-post" if steps else "default"
            axes.plot(at, known, color=colours[name], linewidth=1.4, drawstyle=how, label=name)
        for moment, colour in marks:
            axes.axvline(moment, color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_ylim(bottom=0)
        if axes.get_ylim()[1] < 1:
            axes.set_ylim(top=1)
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
