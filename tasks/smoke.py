"""Asks the new release what its team wants to know, before it has traffic and when it has all."""

import time
from collections.abc import Callable
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import smoke
from policy.errors import DafnckError
from policy.matching import rollout_rules
from policy.release import Endpoints, Release, RolloutRecord
from tasks.site import Site
from tasks.watched import watched

AGAIN_SECONDS = 0.3


class SmokeFailed(DafnckError):
    exit_code = 1


@task(cache_policy=NO_CACHE)
def smoke_test(
    site: Site,
    rollout: RolloutRecord,
    release: Release,
    still_good: Callable[[], None],
    *,
    preview: bool,
) -> None:
    """Run every smoke test of the release, through the router: by its preview header, or as
    everybody. Asked once: an answer is an answer; but for a way to it that is new and may not be
    open yet, which nobody uses: its preview, or a service that had no release before. Raises
    SmokeFailed, with all that failed."""
    if not release.smoke:
        return
    stage = "before it has traffic" if preview else "with all traffic"
    headers = {"Host": release.host}
    if preview:
        headers |= rollout_rules(release, cohort_on=False).preview
    with site.ledger.act(rollout.id, "smoke", release=release.id, stage=stage) as said:
        failed = []
        endpoints = site.platform.workloads.endpoints(release.id, quick=True)
        door = site.platform.preview_url_of if preview else site.platform.url_of
        url = door(release)
        is_new = preview or rollout.stable_id is None
        give_up = time.monotonic() + (site.platform.settle_seconds if is_new else 0.0)
        for test in release.smoke:
            still_good()
            if test.get is not None:
                while (why := smoke.ask(test, url, headers)) and time.monotonic() < give_up:
                    still_good()
                    time.sleep(AGAIN_SECONDS)
            else:
                environment = _environment(endpoints, url, headers)
                place = site.builder.scratch
                with watched(still_good) as over:
                    why = smoke.run(test, place, Path(release.folder), environment, over)
            if why:
                failed.append(f"{test}: {why}")
        said["asked"] = f"{len(release.smoke)}, {len(failed)} failed"
        if failed:
            raise SmokeFailed(f"smoke tests {stage}: {'; '.join(failed)}")


def _environment(endpoints: Endpoints, url: str, headers: dict[str, str]) -> dict[str, str]:
    named = [f"{name}: {value}" for name, value in headers.items() if name != "Host"]
    return {
        "URL": next(iter(endpoints.ready or endpoints.urls), ""),
        "ROUTER_URL": url,
        "HOST": headers["Host"],
        "ROUTER_HEADER": "".join(named),
    }
