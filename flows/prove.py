"""Test, scan, gate: an artifact that does not pass is not released."""

from pathlib import Path

from policy.evidence import Evidence
from policy.release import RolloutRecord
from policy.service_file import ServiceFile
from tasks.gate import pass_gates, tell_step
from tasks.publish import Publisher
from tasks.scan import scan_artifact
from tasks.secret_ages import secret_ages
from tasks.site import Site
from tasks.test import run_suites
from tasks.watched import until_aborted


def prove(
    site: Site,
    rollout: RolloutRecord | None,
    wanted: ServiceFile,
    file: Path,
    digest: str,
    publisher: Publisher,
    folder: Path,
) -> None:
    """`rollout`: None for a change that is only looked at. `folder`: for what is found out. Raises
    Refused when a gate is closed, and BadInput for a mistake in the waivers."""
    if not wanted.proof_is_asked_for:
        return
    rollout_id = rollout.id if rollout else None
    with until_aborted(site, rollout_id) as over:
        suites = run_suites(site, rollout_id, wanted.tests, digest, folder, over)
    if suites is not None:
        tell_step(site, rollout, "Test", "; ".join(map(str, suites)))
    scanned = scan_artifact(site, rollout_id, wanted, file, digest, folder)
    if scanned.scans is not None:
        tell_step(site, rollout, "Scan", "; ".join(map(str, scanned.scans)))
    evidence = Evidence(
        suites,
        scanned.scans,
        scanned.waived,
        site.builder.size_bytes(digest),
        snapshots=scanned.snapshots,
        secret_ages=secret_ages(site, wanted) if wanted.gates.secret_age else None,
    )
    pass_gates(site, rollout, wanted.gates, evidence, folder, publisher)
