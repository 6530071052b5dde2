"""Builds the artifact of a release, or finds that it was built before; says under signature what it
is and what it was made from."""

import logging
import platform
from dataclasses import replace
from importlib.metadata import version as version_of_package
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.checkouts import revision
from blocks.trivy import NoSbom
from policy.errors import Refused
from policy.provenance import Made
from policy.release import Release
from policy.service_file import ServiceFile
from tasks.prefect_run import flow_run_id
from tasks.read import backup_of, configuration, manifests
from tasks.retrying import when_unreachable
from tasks.site import Site
from tasks.source import source_folder

log = logging.getLogger("dafnck")


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def build_artifact(site: Site, rollout_id: int | None, wanted: ServiceFile, file: Path) -> str:
    """Build what the service file asks for. -> digest. Raises BuildFailed with the last lines."""
    with site.act(rollout_id, "build") as said:
        site.attestations.ready()
        folder = source_folder(site, wanted, file)
        place = folder / wanted.build.source
        before = revision(place)

        def attest(digest: str, artifact: Path, started: float) -> None:
            made = Made(
                artifact=digest,
                build=wanted.build.model_dump(mode="json", exclude_defaults=True),
                # Another commit meanwhile: nobody can say which of the two it was.
                revision=before if revision(place) == before else replace(before, dirty=True),
                started_at=started,
                finished_at=site.clock(),
                builder=platform.node(),
                invocation=flow_run_id() or "",
                versions={
                    "dafnck": version_of_package("dafnck"),
                    "python": platform.python_version(),
                },
            )
            image = site.builder.image_of(digest)
            images = [(image.reference, image.digest.removeprefix("sha256:"))] if image else []
            site.attestations.attest(
                artifact, made, sbom=_sbom(site, wanted, digest), images=images
            )

        digest, reused = site.builder.build(wanted.build, folder, attest)
        said["artifact"] = f"{digest} ({'built before' if reused else 'built'})"
    return digest


def _sbom(site: Site, wanted: ServiceFile, digest: str) -> bytes | None:
    """None where there is no Trivy and none is asked for."""
    within = wanted.build.within
    image = site.builder.image_of(digest)
    if image is not None and not image.built and not (wanted.scan and wanted.scan.trivy):
        log.info("the image was built elsewhere: it gets no SBOM here")
        return None
    try:
        with site.builder.image_archive(digest) as archive:
            if archive is not None:
                return site.trivy.sbom_of_image(archive, within_seconds=within)
        return site.trivy.sbom(site.builder.folder(digest), within_seconds=within)
    except NoSbom as why:
        if wanted.scan is not None and wanted.scan.trivy:
            raise Refused(
                f"the artifact gets no SBOM: {why}; nothing was started, what served serves"
            ) from None
        log.warning("the artifact gets no SBOM: %s", why)
        return None


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def store_attestations(site: Site, digest: str) -> None:
    """What is said of an artifact, into the object store; what is there already stays."""
    prefix = f"artifacts/{digest}/"
    for path in site.attestations.files(digest):
        if site.store.get(prefix + path.name) != path.read_bytes():
            site.store.put(prefix + path.name, path)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def store_artifact(site: Site, digest: str) -> None:
    """The artifact itself, once it serves: another machine, or this one after a loss, starts from
    there."""
    key = site.attestations.archive_key(digest)
    earlier = site.store.sizes(f"artifacts/{digest}/artifact-")
    if key not in earlier:
        with site.builder.packed(digest) as archive:
            site.store.put(key, archive)
    for other in earlier.keys() - {key}:  # of a build that came out different
        site.store.delete(other)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def write_release(
    site: Site, rollout_id: int, wanted: ServiceFile, file: Path, digest: str, version: str
) -> Release:
    """Freeze artifact, configuration and routing as one release with an id."""
    image, there = site.builder.image_of(digest), wanted.kubernetes
    return site.ledger.add_release(
        Release(
            id="",
            service=site.service,
            environment=site.environment,
            version=version,
            artifact=digest,
            content=site.attestations.content(digest),
            platform=wanted.platform,
            run=wanted.run,
            route=wanted.route,
            rollout=wanted.rollout,
            smoke=tuple(wanted.smoke),
            folder=str(file.parent.absolute()),
            files=configuration(wanted, site.environment, file),
            created_at=site.clock(),
            migration=wanted.migration,
            kubernetes=there if wanted.platform == "kubernetes" else None,
            cluster=site.platform.identity,
            image=image.reference if image else "",
            workdir=image.workdir if image else "/",
            manifests=manifests(wanted, site.environment, file),
            backup=backup_of(wanted, site.environment, file),
            rotate=wanted.rotate,
        ),
        rollout_id,
    )
