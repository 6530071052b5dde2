"""Starts replicas of the new release and proves them ready; retires replicas of the old one."""

import logging
import re
import shutil
import time
from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE

from policy.errors import DafnckError
from policy.kept_releases import split
from policy.release import Endpoints, Release, RolloutRecord
from tasks import put_back
from tasks.retrying import when_unreachable
from tasks.site import Site
from tasks.verify import verify_artifact

log = logging.getLogger("dafnck")

SHRINK_SECONDS = 60.0  # the autoscalers of Kubernetes look every 15
EVIDENCE_KEPT = 100  # folders of rollouts and pipelines; the ledger keeps what the gates said


class NotReady(DafnckError):
    exit_code = 1


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def start_replicas(
    site: Site,
    rollout_id: int,
    release: Release,
    replicas: int,
    still_good: Callable[[], None],
) -> Endpoints:
    """Have so many replicas ready: each answers its health check several times in a row.

    What is started is what was built and signed: raises Refused, before anything is, for another.
    Raises NotReady with the reason that the platform knows; no traffic has moved then."""
    verify_artifact(site, rollout_id, release)
    with site.ledger.act(rollout_id, "start", release=release.id, replicas=replicas):
        # Fewer than it has would be a shrink: an autoscaler of its own may have grown it.
        has = site.platform.workloads.endpoints(release.id, quick=True).wanted
        site.platform.workloads.start(release, max(replicas, has))
        return wait_ready(site, release, replicas, still_good)


def replicas_of(site: Site, asked: int, stable: Release | None) -> tuple[int, int | None]:
    """-> replicas of the new release, and of the stable one: as many as were asked for, and as an
    autoscaler has given the stable one by now. None: there is none."""
    if stable is None:
        return asked, None
    cluster = site.platform.cluster
    size = cluster.autoscaled(stable.id) if cluster else 0
    return max(asked, size), max(stable.run.replicas, size)


def wait_ready(
    site: Site,
    release: Release,
    replicas: int,
    still_good: Callable[[], None] = lambda: None,
) -> Endpoints:
    """Raises NotReady, or what `still_good` raises to end the waiting."""
    health = release.run.health
    give_up = time.monotonic() + release.run.start
    in_a_row = 0
    while True:
        endpoints = site.platform.workloads.endpoints(release.id)
        ready = len(endpoints.ready) >= replicas
        in_a_row = in_a_row + 1 if ready else 0
        if in_a_row >= health.successes:
            return endpoints
        if endpoints.fatal:
            raise NotReady(f"{release.id} ends again and again: {endpoints.trouble}")
        if time.monotonic() > give_up:
            raise NotReady(
                f"{release.id}: {len(endpoints.ready)} of {replicas} replicas ready after "
                f"{release.run.start:g}s (run: start): {endpoints.trouble}"
            )
        still_good()
        time.sleep(health.interval)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def shrink_stable(
    site: Site, rollout: RolloutRecord, replicas: int, still_good: Callable[[], None]
) -> None:
    """Leave the old release so many replicas; none: drain it, stop it, take it off the router."""
    assert rollout.stable_id is not None
    if replicas == 0:
        put_back.retire(site, rollout.id, rollout.stable_id)
        return
    release = site.ledger.release(rollout.stable_id)
    workloads = site.platform.workloads
    with site.ledger.act(rollout.id, "shrink", release=release.id, replicas=replicas):
        staying = workloads.endpoints(release.id)
        if staying.wanted > replicas:
            if missing := set(staying.urls[:replicas]) - set(staying.ready):
                raise NotReady(
                    f"{len(missing)} of the {replicas} replicas of {release.id} that would stay "
                    f"are not ready ({staying.trouble}); all of them still run"
                )
            # The router forgets the ones that go before they stop.
            site.platform.router.attach(staying.first(replicas))
            put_back.drain(site, release.id, keep=replicas, still_good=still_good)
            workloads.start(release, replicas)
            _wait_shrunk(site, release, replicas, still_good)


def _wait_shrunk(
    site: Site, release: Release, replicas: int, still_good: Callable[[], None]
) -> None:
    """An autoscaler takes its time to do as it is told. After that it is told again, until the
    rollout is late."""
    give_up = time.monotonic() + SHRINK_SECONDS
    while (has := site.platform.workloads.endpoints(release.id, quick=True).wanted) > replicas:
        if time.monotonic() > give_up:
            log.warning("%s still has %d replicas, not %d", release.id, has, replicas)
            return
        still_good()
        time.sleep(0.2)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def prune(site: Site, keep: int) -> list[str]:
    """Remove what is no longer needed for instant rollback. -> ids of the releases that went."""
    ledger, workloads = site.ledger, site.platform.workloads
    stable = ledger.stable(site.service, site.environment)
    in_use = {*workloads.running(), *([stable] if stable else [])}
    promoted = ledger.releases(site.service, site.environment, promoted=True)
    every = ledger.releases(site.service, site.environment)
    never = [release for release in every if release not in promoted]
    origins = {one: ledger.release(one).origin for one in every}
    _, drop = split([*promoted, *never], good=promoted, in_use=in_use, keep=keep, origins=origins)
    for release_id in drop:
        workloads.remove(release_id)
        ledger.mark_removed(release_id)
    site.builder.remove_unused(ledger.artifacts_in_use())
    site.checkouts.remove_unused(ledger.folders_in_use())
    _prune_evidence(site)
    return drop


def _prune_evidence(site: Site) -> None:
    ours = re.compile(rf"{site.service}-{site.environment}-(rollout-\d+|pipeline-[0-9a-f-]+)")
    found = [folder for folder in site.evidence.glob("*") if ours.fullmatch(folder.name)]
    found.sort(key=lambda folder: folder.stat().st_mtime)
    for folder in found[:-EVIDENCE_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
