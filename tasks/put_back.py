"""Traffic first: all requests back to the stable release, then the rest, then it is written down.

Plain functions, no Prefect in between: the process that notices a failure calls them at once; the
hooks, the rollback flow and `dafnck up` call them for a rollout that died. Idempotent and killable
at any point: called again, they go on from what the ledger and the router say.
"""

import logging
import time
from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from blocks.files import remove_half_written
from blocks.processes import end_orphans
from policy.errors import DafnckError, NotAllowed, NotApplied, Unreachable
from policy.matching import resting_rules
from policy.notice import Event
from policy.release import FINISHED, Phase, Release, RolloutRecord
from policy.rollout import freeze_at
from tasks.notify import tell, tell_promoted
from tasks.site import Site

log = logging.getLogger("dafnck")

LOOKS = 3  # in a row without a ready replica: then there is none
ROUTER_SECONDS = 30.0  # for so long a router that does not answer is asked again


def put_back(site: Site, rollout_id: int, reason: str) -> Phase:
    """End an unfinished rollout: forward when it was promoted already, else back; past the point
    from which its migration lets nobody go back, freeze it instead. -> its phase."""
    rollout = site.ledger.rollout(rollout_id)
    if rollout.phase in FINISHED:
        return rollout.phase
    if rollout.phase is Phase.DRAINING:
        return _finish_promoted(site, rollout)
    if rollout.release_id is None:
        site.ledger.set_phase(rollout_id, Phase.FAILED, reason)
        return Phase.FAILED
    if no_way_back(site, rollout):
        return freeze(site, rollout, reason)
    had_traffic = _had_traffic(site, rollout_id)
    traffic_to_stable(site, rollout, reason)
    _clean_up(site, rollout)
    end = Phase.ROLLED_BACK if had_traffic else Phase.FAILED
    site.ledger.set_phase(rollout_id, end)
    if had_traffic:
        tell(site, rollout, Event.ROLLBACK, reason)
    return end


def no_way_back(site: Site, rollout: RolloutRecord) -> bool:
    """Has a contract migration had so much traffic that old code must not come back by itself?
    Not once a person said to go back all the same, or while it is on its way back already."""
    if rollout.kind != "release" or rollout.release_id is None or rollout.unsafe_reason:
        return False
    if rollout.phase not in (Phase.SHIFTING, Phase.FROZEN):
        return False
    new = site.ledger.release(rollout.release_id)
    limit = freeze_at(new.rollout, new.migration, first=rollout.stable_id is None)
    return limit is not None and peak_share(site, rollout) >= limit


def peak_share(site: Site, rollout: RolloutRecord) -> int:
    """The highest share that the new release was ever given, or may have been."""
    acts = [act for act in site.ledger.intents(rollout.id) if act.act == "shift"]
    new = site.ledger.rollout(rollout.id).release_id
    return max((act.detail.get("shares", {}).get(new, 0) for act in acts), default=0)


def freeze(site: Site, rollout: RolloutRecord, reason: str) -> Phase:
    """Nothing is shifted, nobody leads it any more; a person decides. Called again, it sees to it
    that no share goes to replicas that do not exist."""
    _spare_the_callers(site, rollout)
    if rollout.phase is not Phase.FROZEN:
        site.ledger.set_phase(rollout.id, Phase.FROZEN, reason)
        place = f"{site.service} --env {site.environment}"
        words = f"frozen: {reason}; dafnck approve {place} or dafnck abort {place} --even-unsafe"
        tell(site, rollout, Event.PAUSE, words)
    return Phase.FROZEN


def _spare_the_callers(site: Site, rollout: RolloutRecord) -> None:
    """A share for a release without any ready replica is certain errors. While stable has the rest
    of the requests anyway, it gets these too: its old code runs on that database already. When it
    has none, it is not brought back: errors end with a repair, spoilt data does not."""
    new, stable = rollout.release_id, rollout.stable_id
    held = _held(site) or {}
    if new is None or stable is None or not held.get(new) or not held.get(stable):
        return
    workloads = site.platform.workloads
    try:
        for _ in range(LOOKS):
            if workloads.endpoints(new).ready:
                return
            time.sleep(0.2)
        make_room(site, stable)  # it may have given replicas away, and gets the requests of two
        words = "no replica of the frozen release is ready: the stable one has all requests"
        with site.ledger.act(rollout.id, "lend traffic", shares={stable: 100}, reason=words):
            site.platform.router.set_shares({stable: 100})
    except DafnckError as error:  # what cannot be asked or told changes nothing
        log.warning("the traffic of the frozen release stays as it is: %s", error)
        return
    tell(site, rollout, Event.PAUSE, words)


def traffic_to_stable(site: Site, rollout: RolloutRecord, reason: str) -> None:
    """All requests to the stable release, read back from the router; a no-op when it has them.

    Raises NotApplied when stable cannot take them: traffic is then unchanged. Raises Unreachable
    when the router does not confirm: it takes the wish up when it runs."""
    stable = rollout.stable_id
    wanted = {stable: 100} if stable else {}
    if rollout.phase is Phase.ROLLING_BACK and _held(site) == wanted:
        _whole_again(site, stable)
        return
    with site.ledger.act(
        rollout.id, "traffic to stable", even_unrecorded=True, shares=wanted, reason=reason
    ):
        if _held(site) == wanted:
            _whole_again(site, stable)
        elif stable is not None:
            try:
                make_room(site, stable)
            except NotApplied:
                raise
            except Exception as error:
                # It was serving a moment ago; what keeps us from asking must not hold traffic up.
                log.exception("%s is not known to be ready: %s", stable, error)
        for attempt in patiently():
            with attempt:
                site.platform.router.set_shares(wanted)
    site.ledger.set_phase(rollout.id, Phase.ROLLING_BACK, reason)


def _held(site: Site) -> dict[str, int] | None:
    """Shares as the router holds them; None when it does not answer."""
    try:
        return {release: share for release, share in site.platform.router.shares().items() if share}
    except (Unreachable, NotAllowed, NotApplied):
        return None


def _whole_again(site: Site, stable: str | None) -> None:
    """Stable has all traffic already: give it its replicas, but nothing depends on that."""
    if stable is None:
        return
    try:
        make_room(site, stable)
    except DafnckError as error:
        log.warning("%s has all traffic, but is not whole: %s", stable, error)


def patiently() -> Retrying:
    """A router that is being restarted is back within seconds: ask again."""
    return Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(ROUTER_SECONDS),
        reraise=True,
    )


def make_room(site: Site, release_id: str) -> None:
    """Before traffic goes back to a release it has its replicas ready; most of the time it has.

    One that serves right now is not asked again, and does not wait for a replica that is being
    restarted. Raises NotApplied when none gets ready in its start time."""
    release = site.ledger.release(release_id)
    workloads, router = site.platform.workloads, site.platform.router
    serves = bool((_held(site) or {}).get(release_id))
    endpoints = workloads.endpoints(release_id, quick=serves)
    size = _size(site, release, endpoints.wanted)
    whole = endpoints.wanted >= size
    ready = len(endpoints.ready)
    if ready < size:
        try:
            workloads.start(release, size)  # also what was given up
        except DafnckError as error:
            if not ready:
                raise
            # What cannot be made whole still takes the requests better than what is left.
            log.warning("%s goes on with %d replicas: %s", release_id, ready, error)
            router.attach(endpoints)
            return
    if whole and (ready >= size or (serves and ready)):
        router.attach(endpoints)  # known already, but for a death in between
        return
    give_up = time.monotonic() + release.run.start
    while len((endpoints := workloads.endpoints(release_id)).ready) < size:
        if time.monotonic() > give_up:
            if endpoints.ready:
                log.warning("%s: only %d replicas ready", release_id, len(endpoints.ready))
                break
            raise NotApplied(
                f"{release_id} has no ready replica ({endpoints.trouble}); traffic is unchanged. "
                "Repair what it needs: the guard tries again and again, and at once does "
                f"dafnck rollback {site.service} --env {site.environment}"
            )
        time.sleep(0.1)
    router.attach(endpoints)


def _size(site: Site, release: Release, wanted: int) -> int:
    """Replicas that take all requests: as its service file says, and no fewer than it has, or than
    an autoscaler had given it or what serves in its place."""
    grown = 0
    if site.platform.cluster is not None:
        try:
            grown = site.platform.cluster.autoscaled(release.id)
        except DafnckError as error:
            log.warning("what autoscalers gave %s is not known: %s", release.id, error)
    return max(release.run.replicas, wanted, grown)


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
        if site.platform.cluster is not None and stable is not None:
            # The new one brought its own version of them.
            site.platform.cluster.apply_extras(site.ledger.release(stable))


def _finish_promoted(site: Site, rollout: RolloutRecord) -> Phase:
    assert rollout.release_id is not None
    make_room(site, rollout.release_id)
    site.platform.router.set_shares({rollout.release_id: 100})
    site.platform.router.match(resting_rules(site.ledger.release(rollout.release_id)))
    if rollout.stable_id and rollout.stable_id != rollout.release_id:
        retire(site, rollout.id, rollout.stable_id)
    site.ledger.set_phase(rollout.id, Phase.PROMOTED)
    promotions = [act for act in site.ledger.intents(rollout.id) if act.act == "promote"]
    if not any(act.outcome == "done" for act in promotions):  # else its own process said so
        tell_promoted(site, rollout, rollout.reason)
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


def drain(
    site: Site,
    release_id: str,
    *,
    keep: int = 0,
    quiet_seconds: float = 0.5,
    still_good: Callable[[], None] = lambda: None,
) -> int:
    """Wait until no connection to the release is in use, at most its drain time; the first `keep`
    replicas do not matter. -> connections that are still open then. `still_good` raises to end the
    waiting."""
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
        still_good()
        time.sleep(0.1)


def unfinished_first(site: Site, why: str = "", *, before_a_new_one: bool = False) -> list[Phase]:
    """A rollout that died left things half-done: end it. Call it under the lease. A frozen rollout
    stays frozen. `why`: how it is known that nobody leads it.

    Raises NotApplied for what cannot be put right now: try again later. `before_a_new_one`: what
    begins now may be the cure and is not kept out; what is not put right is passed over."""
    for rollout in site.ledger.frozen(site.service, site.environment):
        freeze(site, rollout, rollout.reason)
    ended = []
    for rollout in site.ledger.unfinished(site.service, site.environment):
        died = why or "its process died before it could end the rollout"
        if rollout.leader:
            died = f"{died} ({rollout.leader})"
        log.warning("rollout %d of %s was left %s: %s", rollout.id, site, rollout.phase, died)
        first = site.ledger.take_over(rollout.id, died)
        reason = rollout.reason or rollout.taken_over or died
        if first:
            tell(site, rollout, Event.CRASH, reason)
        try:
            ended.append(put_back(site, rollout.id, reason))
        except NotApplied as error:
            if not before_a_new_one:
                raise
            log.error("rollout %d could not be put right: %s", rollout.id, error)
            ended += _passed_over(site, rollout, f"{reason}; not put right: {error}")
    remove_leftovers(site)
    return ended


def _passed_over(site: Site, rollout: RolloutRecord, reason: str) -> list[Phase]:
    """-> its phase when it is over. While its release has, or may have, a share of the requests it
    is not: it stays unfinished until another release is promoted, or somebody puts it right."""
    held = _held(site)
    if rollout.phase is Phase.DRAINING:
        phase = Phase.PROMOTED
    elif held is None or held.get(rollout.release_id or ""):
        return []
    else:
        phase = Phase.ROLLED_BACK if _had_traffic(site, rollout.id) else Phase.FAILED
    site.ledger.set_phase(rollout.id, phase, reason)
    return [phase]


def _had_traffic(site: Site, rollout_id: int) -> bool:
    return any(act.act == "shift" for act in site.ledger.intents(rollout_id))


def remove_leftovers(site: Site) -> None:
    """What dead processes left on this machine, of whatever rollout: children, half-built
    artifacts, half-written files. Nothing that serves depends on it."""
    if orphans := end_orphans():
        log.warning("ended %d processes that dead ones had started: %s", len(orphans), orphans)
    site.builder.remove_half_built()
    for folder in site.folders:
        remove_half_written(folder)
