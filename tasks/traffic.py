"""Moves traffic, reads it back, and watches what it does."""

import logging
import re
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from policy.errors import NotApplied, Unreachable
from policy.matching import resting_rules, rollout_rules
from policy.release import Endpoints, Phase, Release, RolloutRecord
from policy.rollout import AskApproval, Plan, RollBack, Wait, next_action, waits_for_person
from tasks import put_back
from tasks.look import Eyes
from tasks.notify import decided, tell_promoted
from tasks.prefect_run import OwnRun
from tasks.retrying import when_unreachable
from tasks.site import Site

log = logging.getLogger("dafnck")
NUMBERS = re.compile(r"[\d.,]+")
TELL_SECONDS = 30.0
ROUTE_SECONDS = 5.0


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def preview(
    site: Site, rollout: RolloutRecord, release: Release, endpoints: Endpoints, *, cohort_on: bool
) -> None:
    """Make the new release reachable by its header alone, and see through the router that it is.

    Raises NotApplied; no traffic has moved then."""
    router = site.platform.router
    rules = rollout_rules(release, cohort_on=cohort_on)
    with site.ledger.act(rollout.id, "preview", release=release.id):
        router.attach(endpoints)
        router.match(rules)
        if release.run.health.path is None or site.platform.by_replicas:
            # Its health is told by a command, or a Service alone tells no previews apart: what
            # the platform says and the router's own read-back must do.
            return
        for attempt in _soon():
            with attempt:
                for _ in range(release.run.health.successes):
                    _ask_through_router(site, release, rules.preview)


def _soon() -> Retrying:
    """Gateways that have accepted a route may need a moment to act by it."""
    return Retrying(
        retry=retry_if_exception_type(NotApplied),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(ROUTE_SECONDS),
        reraise=True,
    )


def _ask_through_router(site: Site, release: Release, header: dict[str, str]) -> None:
    url = site.platform.preview_url_of(release) + (release.run.health.path or "/")
    request = urllib.request.Request(url, headers={"Host": release.host, **header})
    try:
        with urllib.request.urlopen(request, timeout=release.run.health.timeout + 2) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        raise NotApplied(f"{release.id} cannot be reached through the router: {error}") from error
    if not 200 <= status < 300:
        raise NotApplied(
            f"{release.id} is healthy, but {url} answers {status} through the router; "
            "no traffic was moved"
        )


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def shift_traffic(
    site: Site, rollout: RolloutRecord, release: Release, share: int, eyes: Eyes
) -> None:
    """Send this share of requests to the new release, the rest to the stable one; read it back."""
    shares = {release.id: share}
    if rollout.stable_id and share < 100:
        shares[rollout.stable_id] = 100 - share
    with site.ledger.act(rollout.id, "shift", shares=shares):
        site.ledger.set_phase(rollout.id, Phase.SHIFTING)
        if release.rollout.cohort or release.rollout.sticky:
            site.platform.router.match(rollout_rules(release, cohort_on=share < 100))
        for attempt in put_back.patiently():
            with attempt:
                site.platform.router.set_shares(shares)
    eyes.shifted()


@task(cache_policy=NO_CACHE)
def watch(site: Site, rollout: RolloutRecord, plan: Plan, eyes: Eyes, own_run: OwnRun) -> None:
    """Look every second until something else than waiting is due. One task for a whole step.

    On a verdict against the new release the traffic goes back from here, before anything else."""
    told, told_at, waited_for = "", 0.0, None
    while not isinstance(action := next_action(plan, eyes.look()), RollBack):
        if not isinstance(action, Wait | AskApproval):
            own_run.go_on()
            return
        # The numbers in a reason change with every look: what is new is told, and that now and
        # then.
        what = NUMBERS.sub("", action.reason)
        if what != told or time.monotonic() - told_at > TELL_SECONDS:
            told, told_at = what, time.monotonic()
            eyes.tell(action)
        # People hear of it once, whatever the judge finds to say meanwhile.
        waits_for = type(action) if waits_for_person(action) else None
        if waits_for is not None and waits_for is not waited_for:
            decided(site, rollout, action)
        waited_for = waits_for
        if isinstance(action, AskApproval):
            own_run.pause(datetime.fromtimestamp(plan.deadline, UTC).isoformat())
        eyes.interrupted.wait(action.seconds if isinstance(action, Wait) else plan.poll_seconds)
        eyes.interrupted.clear()
    put_back.traffic_to_stable(site, rollout, action.reason)
    eyes.tell(action)
    decided(site, rollout, action)
    own_run.go_on()


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def promote(site: Site, rollout: RolloutRecord, release: Release, reason: str) -> None:
    """The new release is the stable one. Whoever asks from now on is told so."""
    with site.ledger.act(rollout.id, "promote", release=release.id):
        site.ledger.promote(rollout.id, reason, token=site.token)
        try:
            site.platform.router.match(resting_rules(release))
        except (Unreachable, NotApplied) as error:
            log.warning("the preview header still works: %s", error)
    tell_promoted(site, rollout, reason)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def finish(site: Site, rollout: RolloutRecord) -> None:
    site.ledger.set_phase(rollout.id, Phase.PROMOTED)


@task(cache_policy=NO_CACHE)
def roll_back(site: Site, rollout: RolloutRecord, reason: str) -> None:
    """All requests to the stable release."""
    put_back.traffic_to_stable(site, rollout, reason)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def clean_up(site: Site, rollout: RolloutRecord) -> None:
    """Take the new release away, now that it has no traffic, and write the end down."""
    put_back.put_back(site, rollout.id, site.ledger.rollout(rollout.id).reason)
