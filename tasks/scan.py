"""Has scanners look at what was built and at what it was built from."""

import time
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.tools import run_tool
from policy.findings import Scan, Waived, waive
from policy.service_file import ServiceFile
from tasks.read import read_waivers
from tasks.site import Site
from tasks.source import source_folder


@task(cache_policy=NO_CACHE)
def scan_artifact(
    site: Site, rollout_id: int, wanted: ServiceFile, file: Path, digest: str
) -> tuple[tuple[Scan, ...] | None, Waived]:
    """-> (what each tool said, the findings after the waivers). A tool that cannot answer says so:
    the gates hold that against the artifact. Raises BadInput for a mistake in the waivers."""
    if wanted.scan is None:
        return None, Waived(())
    waivers = read_waivers(wanted, site.environment, file)
    scans = []
    with (
        site.ledger.act(rollout_id, "scan") as said,
        site.builder.source_of(wanted.build, source_folder(site, wanted, file), digest) as source,
    ):
        if wanted.scan.trivy:
            scans.append(
                site.trivy.scan(
                    source,
                    site.builder.folder(digest),
                    database_age_seconds=wanted.scan.database_age,
                    within_seconds=wanted.scan.within,
                )
            )
        scans += [run_tool(tool, source, site.builder.scratch) for tool in wanted.scan.tools]
        said["ended"] = "; ".join(map(str, scans))
    today = datetime.fromtimestamp(time.time(), UTC).date()
    findings = [finding for one in scans for finding in one.findings]
    return tuple(scans), waive(findings, waivers, today)
