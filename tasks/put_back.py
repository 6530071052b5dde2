"""Traffic first: all requests back to the stable release, then the rest, then it is written down.

Plain functions, no Prefect in between: the process that notices a failure calls them at once; the
hooks, the rollback flow and `dafnck up` call them for a rollout that died. Idempotent and killable
at any point: called again, they go on from what the ledger and the router say.
"""

import logging
import time

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from policy.errors import NotApplied, Unreachable
from policy.matching import resting_rules
from policy.release import FINISHED, Phase, RolloutRecord
from tasks.site import Site

log = logging.getLogger("dafnck")


def put_back(site: Site, rollout_id: int, reason: str) -> Phase:
    """End an unfinished rollout: forward when it was promoted already, else back. -> its phase."""
    rollout = site.ledger.rollout(rollout_id)
    if rollout.phase in FINISHED:
        return rollout.phase
    if rollout.phase is Phase.DRAINING:
        return _finish_promoted(site, rollout)
    if rollout.release_id is None:
        site.ledger.set_phase(rollout_id, Phase.FAILED, reason)
        return Phase.FAILED
    had_traffic = any(i.act == "shift" for i in site.ledger.intents(rollout_id))
    if rollout.phase is not Phase.ROLLING_BACK or not _stable_has_all(site, rollout):
        traffic_to_stable(site, rollout, reason)
    _clean_up(site, rollout)
    end = Phase.ROLLED_BACK if had_traffic else Phase.FAILED
    site.ledger.set_phase(rollout_id, end)
    return end


def _stable_has_all(site: Site, rollout: RolloutRecord) -> bool:
    held = {release: share for release, share in site.platform.router.shares().items() if share}
    return held == ({rollout.stable_id: 100} if rollout.stable_id else {})


def traffic_to_stable(site: Site, rollout: RolloutRecord, reason: str) -> None:
    """All requests to the stable release, read back from the router.

    Raises NotApplied or Unreachable when the router does not confirm; the wish is then stored."""
    stable = rollout.stable_id
    wanted = {stable: 100} if stable else {}
    with site.ledger.act(
        rollout.id, "traffic to stable", even_unrecorded=True, shares=wanted, reason=reason
    ):
        try:
            if stable is not None:
                make_room(site, stable)
        except Unreachable as error:
            # It was serving a moment ago; asking whether it is ready must not hold traffic up.
            log.warning("%s", error)
        for attempt in patiently():
            with attempt:
                site.platform.router.set_shares(wanted)
    site.ledger.set_phase(rollout.id, Phase.ROLLING_BACK, reason)


def patiently() -> Retrying:
    """A router that is being restarted is back within seconds: ask again."""
    return Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(30),
        reraise=True,
    )


def make_room(site: Site, release_id: str) -> None:
    """Before traffic goes back to a release it has its replicas ready; most of the time it has."""
    release = site.ledger.release(release_id)
    workloads = site.platform.workloads
    endpoints = workloads.endpoints(release_id, quick=True)
    if endpoints.ready and endpoints.wanted >= release.run.replicas:
        # Whole, or whole again in a moment: one that is being restarted is no reason to wait.
        site.platform.router.attach(endpoints)  # known already, but for a death in between
        return
    workloads.start(release, release.run.replicas)
    give_up = time.monotonic() + release.run.start
    while len((endpoints := workloads.endpoints(release_id)).ready) < release.run.replicas:
        if time.monotonic() > give_up:
            if endpoints.ready:
                log.warning("%s: only %d replicas ready", release_id, len(endpoints.ready))
                break
            raise NotApplied(
                f"the stable release {release_id} has no ready replica ({endpoints.trouble}); "
                "traffic is unchanged"
            )
        time.sleep(0.1)
    site.platform.router.attach(endpoints)


def _clean_up(site: Site, rollout: RolloutRecord) -> None:
    """The new release leaves the router, loses its connections within its time, and stops."""
    new = rollout.release_id
    if new is None or new == rollout.stable_id:
        return
    with site.ledger.act(rollout.id, "remove", release=new):
        stable = rollout.stable_id
        site.platform.router.match(resting_rules(site.ledger.release(stable)) if stable else None)
        drain(site, new)
        if new in site.platform.router.shares():
            site.platform.router.detach(new)
        site.platform.workloads.stop(new, site.ledger.release(new).run.grace)


def _finish_promoted(site: Site, rollout: RolloutRecord) -> Phase:
    assert rollout.release_id is not None
    make_room(site, rollout.release_id)
    site.platform.router.set_shares({rollout.release_id: 100})
    site.platform.router.match(resting_rules(site.ledger.release(rollout.release_id)))
    if rollout.stable_id and rollout.stable_id != rollout.release_id:
        retire(site, rollout.id, rollout.stable_id)
    site.ledger.set_phase(rollout.id, Phase.PROMOTED)
    return Phase.PROMOTED


def retire(site: Site, rollout_id: int, release_id: str) -> None:
    """Take a release out: drain it, stop it, let the router forget it."""
    router = site.platform.router
    with site.ledger.act(rollout_id, "retire", release=release_id) as said:
        shares = router.shares()
        if shares.get(release_id):
            # `recreate` stops the old release before the new one starts: nothing serves now.
            router.set_shares({r: share for r, share in shares.items() if r != release_id})
        said["connections cut"] = drain(site, release_id)
        if release_id in shares:
            router.detach(release_id)
        site.platform.workloads.stop(release_id, site.ledger.release(release_id).run.grace)


def drain(site: Site, release_id: str, *, keep: int = 0, quiet_seconds: float = 0.5) -> int:
    """Wait until no connection to the release is in use, at most its drain time; the first `keep`
    replicas do not matter. -> connections that are still open then."""
    give_up = time.monotonic() + site.ledger.release(release_id).run.drain
    quiet_since = time.monotonic()
    while True:
        endpoints = site.platform.workloads.endpoints(release_id, quick=True)
        open_connections = sum(endpoints.connections[keep:])
        now = time.monotonic()
        if open_connections:
            quiet_since = now
        if endpoints.wanted <= keep or now - quiet_since >= quiet_seconds:
            return 0
        if now > give_up:
            return open_connections
        time.sleep(0.1)


def unfinished_first(site: Site) -> list[Phase]:
    """A rollout that died left things half-done: end it before anything new begins. Call it under
    the lease."""
    ended = []
    for rollout in site.ledger.unfinished(site.service, site.environment):
        reason = rollout.reason or "its process died before it could end the rollout"
        log.warning("rollout %d of %s was left %s: %s", rollout.id, site, rollout.phase, reason)
        ended.append(put_back(site, rollout.id, reason))
    return ended
