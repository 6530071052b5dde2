"""What was found out about an artifact before it was released, kept with the release: in the
ledger, and as files that CI systems read."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from blocks import sarif
from blocks.check_results import write_junit
from blocks.files import write_atomically
from blocks.ledger import Ledger
from policy.evidence import Evidence
from policy.gate_results import GateResult
from policy.priority import by_priority
from policy.release import RolloutRecord
from tasks.site import Site


@dataclass(frozen=True)
class Kept:
    """What the ledger holds of one rollout; `folder`: where the files are."""

    evidence: Evidence
    gates: list[GateResult]
    folder: str


_kept = TypeAdapter(Kept)


def kept_of(ledger: Ledger, rollout_id: int) -> Kept | None:
    content = ledger.evidence(rollout_id)
    return _kept.validate_python(content) if content else None


def kept_in(folder: Path) -> Kept | None:
    """What the gates left there; None when they did not get that far."""
    try:
        return _kept.validate_json((folder / "evidence.json").read_text())
    except FileNotFoundError:
        return None


def of_what_serves(site: Site, rollout: RolloutRecord | None) -> Evidence | None:
    if rollout is None:
        stable = site.ledger.stable(site.service, site.environment)
    else:
        stable = rollout.stable_id
    # A renewal was not proved again: what it renews was.
    content = stable and site.ledger.evidence_of_release(site.ledger.release(stable).origin)
    return _kept.validate_python(content).evidence if content else None


def keep(
    site: Site,
    rollout: RolloutRecord | None,
    evidence: Evidence,
    results: list[GateResult],
    folder: Path,
) -> None:
    """In the ledger, and as files in the formats that CI systems read; without a rollout as files
    alone."""
    kept = Kept(replace(evidence, serves=None), results, str(folder))
    content = json.loads(_kept.dump_json(kept))
    if rollout is not None:
        site.ledger.add_evidence(rollout.id, content)
        for finding, waiver in evidence.waived.waived:
            told = {"finding": f"{finding.id} of {waiver.package}", "reason": waiver.reason}
            site.ledger.record(waiver.owner, "waive", str(site), rollout=rollout.id, **told)
    write_atomically(folder / "evidence.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "gates.json", json.dumps(content["gates"], indent=1) + "\n")
    write_atomically(folder / "gates.xml", write_junit(results))
    waived = [(finding, waiver.reason) for finding, waiver in evidence.waived.waived]
    write_atomically(
        folder / "findings.sarif", sarif.written(by_priority(evidence.waived.open), waived)
    )
