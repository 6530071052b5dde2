"""Builds the artifact of a release, or finds that it was built before."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from policy.release import Release
from policy.service_file import ServiceFile
from tasks.read import configuration
from tasks.retrying import when_unreachable
from tasks.site import Site


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def build_artifact(site: Site, rollout_id: int, wanted: ServiceFile, folder: Path) -> str:
    """Build what the service file asks for. -> digest. Raises BuildFailed with the last lines."""
    with site.ledger.act(rollout_id, "build") as said:
        digest, reused = site.builder.build(wanted.build, folder)
        said["artifact"] = f"{digest} ({'built before' if reused else 'built'})"
    return digest


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def write_release(
    site: Site, rollout_id: int, wanted: ServiceFile, file: Path, digest: str, version: str
) -> Release:
    """Freeze artifact, configuration and routing as one release with an id."""
    return site.ledger.add_release(
        Release(
            id="",
            service=site.service,
            environment=site.environment,
            version=version,
            artifact=digest,
            platform=wanted.platform,
            run=wanted.run,
            route=wanted.route,
            rollout=wanted.rollout,
            folder=str(file.parent.absolute()),
            files=configuration(wanted, site.environment, file),
            created_at=site.clock(),
            migration=wanted.migration,
        ),
        rollout_id,
    )
