"""Has scanners look at what was built and at what it was built from."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.pip_audit import audit
from blocks.snapshots import Snapshots
from blocks.tools import run_tool
from policy.findings import Finding, Scan, Waived, Waiver, waive
from policy.pipeline import PIP_AUDIT, Scans
from policy.priority import Snapshot, rated, with_priority
from policy.service_file import ServiceFile
from tasks.read import read_waivers
from tasks.site import Site
from tasks.source import source_folder


@dataclass(frozen=True)
class Scanned:
    scans: tuple[Scan, ...] | None = None  # None: the file asks for none
    waived: Waived = field(default_factory=lambda: Waived(()))  # of all of them
    snapshots: tuple[Snapshot, ...] = ()


@task(cache_policy=NO_CACHE)
def scan_artifact(
    site: Site,
    rollout_id: int | None,
    wanted: ServiceFile,
    file: Path,
    digest: str,
    folder: Path,
) -> Scanned:
    """A tool that cannot answer says so: the gates hold that against the artifact. Compliance
    reports are kept in `folder`. Raises BadInput for a mistake in the waivers."""
    if wanted.scan is None:
        return Scanned()
    waivers = read_waivers(wanted, site.environment, file)
    with (
        site.act(rollout_id, "scan") as said,
        site.builder.source_of(wanted.build, source_folder(site, wanted, file), digest) as source,
        site.builder.image_archive(digest) as archive,
    ):
        scans = [
            *(_by_trivy(site, wanted.scan, source, digest, archive, folder)),
            *(run_tool(tool, source, site.builder.scratch) for tool in wanted.scan.tools),
        ]
        if wanted.scan.pip_audit:
            artifact = site.builder.folder(digest)
            scans.append(audit(wanted.scan.pip_audit, artifact, site.builder.scratch))
        said["ended"] = "; ".join(map(str, scans))
    return _ordered(site, wanted.scan, tuple(scans), waivers)


def _by_trivy(
    site: Site, scan: Scans, source: Path, digest: str, archive: Path | None, folder: Path
) -> list[Scan]:
    if not scan.trivy:
        return []
    age, within = scan.database_age, scan.within
    if archive is None:
        first = site.trivy.scan(
            source,
            site.builder.folder(digest),
            database_age_seconds=age,
            within_seconds=within,
        )
    else:
        first = site.trivy.scan_image(
            archive, source, database_age_seconds=age, within_seconds=within
        )
    return [first] + [
        site.trivy.comply(
            name,
            source,
            archive,
            folder / f"{name}.json",
            database_age_seconds=age,
            within_seconds=within,
        )
        for name in scan.compliance
    ]


def _ordered(site: Site, scan: Scans, scans: tuple[Scan, ...], waivers: list[Waiver]) -> Scanned:
    now = site.clock()
    found: list[Finding] = rated([f for one in scans for f in one.findings], PIP_AUDIT)
    epss, kev, snapshots = Snapshots(site.trivy.cache).look_up(
        (f.id for f in found), now, scan.priority_age
    )
    today = datetime.fromtimestamp(now, UTC).date()
    return Scanned(scans, waive(with_priority(found, epss, kev), waivers, today), snapshots)
