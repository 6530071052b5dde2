"""The story of a rollout: a self-contained HTML file, and its facts in Markdown."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.files import write_atomically
from policy.findings import Finding, Waiver
from policy.priority import by_priority
from policy.quantities import in_words
from policy.release import Intent, Phase, RolloutRecord
from tasks.site import Site

if TYPE_CHECKING:
    from tasks.evidence import Kept

log = logging.getLogger("dafnck")

CSS = {Phase.PROMOTED: "promoted", Phase.ROLLED_BACK: "rolled", Phase.FAILED: "failed"}


def write_report(site: Site, rollout_id: int) -> Path:
    """Write `<reports>/<service>-<environment>-rollout-<id>.html` anew. -> its path."""
    from jinja2 import Environment, FileSystemLoader

    from tasks.evidence import kept_of

    ledger = site.ledger
    rollout = ledger.rollout(rollout_id)
    decisions, samples = ledger.decisions(rollout_id), ledger.samples(rollout_id)
    acts = ledger.intents(rollout_id)
    facts = _facts(site, rollout, acts)
    busy = [s for s in samples if (s.new and s.new.requests) or (s.stable and s.stable.requests)]
    charts: list[tuple[str, str]] = []
    if busy:
        from tasks.charts import timeline

        charts = timeline(samples, decisions, rollout.started_at)
    proof = kept_of(ledger, rollout_id)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True
    ).get_template("report.html.j2")
    page = template.render(
        title=title(rollout),
        css=CSS.get(rollout.phase, "open"),
        rollout=rollout,
        facts=facts,
        charts=charts,
        proof=proof,
        findings=_findings(proof) if proof else [],
        new_name=f"new: {rollout.release_id or rollout.version}",
        stable_name=f"stable: {rollout.stable_id or 'none'}",
        decisions=[{**row, "after": _after(rollout, row["at"])} for row in decisions],
        acts=[_act_row(rollout, act) for act in acts],
    )
    path = site.reports / f"{site.service}-{site.environment}-rollout-{rollout_id}.html"
    write_atomically(path, page)
    return path


def _findings(proof: "Kept") -> list[tuple[Finding, Waiver | None]]:
    """The worst first, what is waived at the end."""
    waived = proof.evidence.waived
    return [*((finding, None) for finding in by_priority(waived.open)), *waived.waived]


def report(site: Site, rollout_id: int) -> None:
    """Write it where nothing depends on it: a failure is told, no more."""
    try:
        write_report(site, rollout_id)
    except Exception as error:
        log.warning("the report of rollout %d was not written: %s", rollout_id, error)


def title(rollout: RolloutRecord) -> str:
    arrow = "→" if rollout.kind == "release" else "← back to"
    if rollout.kind == "release":
        return f"{rollout.service} {rollout.version} {arrow} {rollout.environment}"
    return f"{rollout.service} in {rollout.environment} {arrow} {rollout.version}"


def summary(site: Site, rollout: RolloutRecord, path: Path) -> str:
    """The facts of a rollout in Markdown."""
    facts = _facts(site, rollout, site.ledger.intents(rollout.id))
    lines = [f"## {title(rollout)}: {rollout.phase}", "", rollout.reason, ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    return "\n".join([*lines, "", f"Report: `{path}`"])


def _facts(site: Site, rollout: RolloutRecord, acts: list[Intent]) -> list[tuple[str, str]]:
    samples = site.ledger.samples(rollout.id)
    new = sum(s.new.requests for s in samples if s.new)
    errors = sum(s.new.errors for s in samples if s.new)
    stable = sum(s.stable.requests for s in samples if s.stable)
    end = rollout.finished_at or site.clock()
    facts = [
        ("new release", rollout.release_id or "none was made"),
        ("stable before", rollout.stable_id or "none"),
        ("serves now", site.ledger.stable(site.service, site.environment) or "nothing"),
        ("strategy", rollout.strategy),
        ("began", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(rollout.started_at))),
        ("took", in_words(end - rollout.started_at)),
        ("requests to the new one", f"{new:,.0f}, {errors:,.0f} failed"),
        ("requests to the stable one", f"{stable:,.0f}"),
    ]
    back = [a for a in acts if a.act == "traffic to stable" and a.outcome_at]
    if back and back[0].outcome_at:
        facts.append(("traffic went back in", in_words(back[0].outcome_at - back[0].at)))
    if rollout.taken_over:
        facts.append(("ended by another process", rollout.taken_over))
    if rollout.approved_by:
        facts.append(("approved by", rollout.approved_by))
    if rollout.freeze_override:
        by = rollout.freeze_override_by
        facts.append(("freeze overridden", f"{rollout.freeze_override} ({by})"))
    if rollout.unsafe_reason:
        facts.append(
            ("past a contract migration", f"{rollout.unsafe_reason} ({rollout.unsafe_by})")
        )
    return facts


def _act_row(rollout: RolloutRecord, act: Intent) -> dict[str, Any]:
    return {
        "after": _after(rollout, act.at),
        "act": act.act,
        "took": in_words(act.outcome_at - act.at) if act.outcome_at else "",
        "detail": ", ".join(f"{name} {_shown(value)}" for name, value in act.detail.items()),
        "outcome": act.outcome or "never reached",
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{release} {share}%" for release, share in value.items()) or "none"
    return str(value)


def _after(rollout: RolloutRecord, at: float) -> str:
    return f"{at - rollout.started_at:.1f} s"
