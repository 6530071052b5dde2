"""`dafnck plan`: what a release would change, and how it would take over."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from blocks.builder import Builder
from blocks.kube_cluster import Change
from blocks.ledger import Ledger
from blocks.source import Source
from blocks.stack import Stack, open_stack
from policy.manifests import rendered
from policy.release import Release
from policy.replica_ratio import granularity
from policy.rollout import plan as steps_of
from policy.service_file import ServiceFile
from tasks.read import configuration, manifests, read_service
from tasks.site import Site, site_of_file

NOT_BUILT = "to-be-built"


def plan(file: Path, env: str | None, *, as_json: bool) -> None:
    """Print it. Nothing is changed, nothing is built."""
    stack, file = open_stack(), file.absolute()
    wanted, env = read_service(file, env)
    ledger = Ledger(stack.ledger_url)
    site = site_of_file(stack, ledger, wanted, env, file)
    configuration(wanted, env, file)
    stable = ledger.stable(site.service, env)
    before = ledger.release(stable) if stable else None
    release = _would_be(stack, site, wanted, file)
    steps = _steps(site, wanted, before)
    changes = list(_changes(site, release, before))
    if as_json:
        told = [change._asdict() for change in changes]
        print(json.dumps({"release": release.id, "steps": steps, "changes": told}, indent=1))
        return
    print(f"{release.id} would take over from {stable or 'nothing'}: {wanted.rollout.strategy}")
    for step in steps:
        print(f"  {step['share']}% on {step['new']} replicas, {step['stable']} of the old one stay")
    if site.platform.by_replicas and before and wanted.rollout.strategy == "canary":
        print(f"  {granularity(wanted.run.replicas, before.run.replicas)}")
    for change in changes:
        print(f"{change.what:6} {change.kind} {change.name}")
        print("".join(f"    {line}\n" for line in change.diff.splitlines()), end="")


def _would_be(stack: Stack, site: Site, wanted: ServiceFile, file: Path) -> Release:
    """The release as it would be written, with the image that was built of this source, if one
    was."""
    image = ""
    if wanted.build.image is not None:
        built = Builder(stack.artifacts).image_of(Source(wanted.build, file.parent).digest)
        image = built.reference if built else f"{wanted.build.image.push}@{NOT_BUILT}"
    return Release(
        id=f"{site.service}-{site.environment}-next",
        service=site.service,
        environment=site.environment,
        version="planned",
        artifact="",
        platform=wanted.platform,
        run=wanted.run,
        route=wanted.route,
        rollout=wanted.rollout,
        files=configuration(wanted, site.environment, file),
        created_at=0,
        kubernetes=wanted.kubernetes if wanted.platform == "kubernetes" else None,
        image=image,
        manifests=manifests(wanted, site.environment, file),
    )


def _steps(site: Site, wanted: ServiceFile, before: Release | None) -> list[dict[str, int]]:
    steps = steps_of(
        wanted.rollout,
        replicas=wanted.run.replicas,
        stable_replicas=before.run.replicas if before else None,
        now=0,
        by_replicas=site.platform.by_replicas,
    ).steps
    return [{"share": s.share, "new": s.new, "stable": s.stable} for s in steps]


def _changes(site: Site, release: Release, before: Release | None) -> Iterator[Change]:
    """What differs from the release that serves, then what the cluster says of the rest."""
    if site.platform.cluster is None:
        yield _difference(_running(before) if before else "", _running(release), release.id)
        return
    if before is not None:
        # The objects of a release are always new ones; what people ask is what is different.
        # What each release differs in from any other, its id and its version, is none of it.
        old = rendered(before).replace(before.id, release.id)
        alike = release.model_copy(update={"version": before.version, "workdir": before.workdir})
        yield _difference(old, rendered(alike), release.id)
    yield from site.platform.cluster.plan(release)


def _running(release: Release) -> str:
    """What a release on this machine runs with."""
    parts = release.run.model_dump(mode="json") | {"files": sorted(release.files)}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in parts.items())


def _difference(old: str, new: str, name: str) -> Change:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2)
    diff = "\n".join(line for line in lines if not line.startswith(("---", "+++")))
    return Change("release", name, "change" if diff else "same", diff)
