"""Back to a release that was good: after a death, or because a person says so."""

from typing import Any

from prefect import State, flow
from prefect.states import Completed

from blocks.ledger import Ledger
from blocks.stack import open_stack
from flows import hooks
from flows.carry_out import carry_out, whole_or_nothing
from flows.ended import failed, not_promoted
from policy.errors import DafnckError, Refused
from policy.notice import Event
from policy.release import Phase, RolloutRecord
from policy.rollout import plan
from policy.service_file import Rollout
from tasks.abort import take_back
from tasks.change import goes_on
from tasks.frozen import none_frozen, still_serves, way_back
from tasks.lease import held_lease
from tasks.notify import tell
from tasks.prefect_run import flow_run_id
from tasks.publish import reported
from tasks.put_back import unfinished_first
from tasks.site import Site, site_of
from tasks.workloads import prune, replicas_of


@flow(
    name="rollback",
    flow_run_name="{service} ← {environment}",
    on_failure=[hooks.give_traffic_back],
    on_crashed=[hooks.give_traffic_back],
    on_cancellation=[hooks.give_traffic_back],
)
def rollback(
    service: str,
    environment: str,
    to: str | None = None,
    only_unfinished: bool = False,
    unsafe_reason: str | None = None,
    by: str = "somebody in the Prefect UI",
    change: int | None = None,
    instead_of: str | None = None,
) -> State[Any]:
    """Go back to the last good release, or to a named one.

    A rollout that died is ended first; that alone is done when `only_unfinished` is set.

    Args:
        service: name of the service
        environment: where
        to: id of a release (see `dafnck history`); default: the good one before this
        only_unfinished: end what was left half-done, nothing else
        unsafe_reason: why it may go back past a contract migration
        by: who says so, for the record
        change: of which change of several services it is part
        instead_of: only while this release serves
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        site = site_of(stack, ledger, service, environment)
        done = _rollback(
            site, to, only_unfinished, (unsafe_reason or "").strip(), by, change, instead_of
        )
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if isinstance(done, str):
        return Completed(message=done)
    if done.phase is Phase.PROMOTED:
        return Completed(message=f"{done.release_id} serves again")
    return not_promoted(done)


def _rollback(
    site: Site,
    to: str | None,
    only_unfinished: bool,
    unsafe_reason: str,
    by: str,
    change: int | None,
    instead_of: str | None = None,
) -> RolloutRecord | str:
    with reported(site) as publisher, held_lease(site, "rollback") as (site, lease):
        thawed = _thaw(site, unsafe_reason, by) if unsafe_reason else []
        new_one = to is not None and not only_unfinished
        ended = [*thawed, *unfinished_first(site, before_a_new_one=new_one)]
        if not only_unfinished:
            none_frozen(site)
        if only_unfinished or (ended and to is None):
            return f"ended {len(ended)} unfinished rollouts: {', '.join(ended) or 'none was'}"
        target = site.ledger.release(_named(site, to) if to else _last_good(site))
        if target.id == site.ledger.stable(site.service, site.environment):
            raise Refused(f"{target.id} serves already; nothing was changed")
        unsafe = way_back(site, target, unsafe_reason)
        still_serves(site, instead_of)
        goes_on(site.ledger, change, back=True)
        rollout = site.ledger.open_rollout(
            site.service,
            site.environment,
            token=lease.token,
            kind="rollback",
            version=target.version,
            strategy="blue-green",
            flow_run_id=flow_run_id(),
            by=by,
            release_id=target.id,
            unsafe_reason=unsafe,
            unsafe_by=unsafe and by,
            notify=_notify(site),
            change_id=change,
        )
        tell(site, rollout, Event.START, f"back to {target.id}, asked for by {by}")
        publisher.rollout_id = rollout.id
        with whole_or_nothing(site, rollout) as progress:
            site.ledger.set_phase(rollout.id, Phase.STARTING)
            # No judge, no baking, no smoke tests: a person, or a failure, has judged already.
            way = Rollout(strategy="blue-green", sticky=target.rollout.sticky)
            stable = site.ledger.release(rollout.stable_id) if rollout.stable_id else None
            replicas, stable_replicas = replicas_of(site, target.run.replicas, stable)
            steps = plan(
                way,
                replicas=replicas,
                stable_replicas=stable_replicas,
                now=site.clock(),
            )
            unjudged = target.model_copy(update={"rollout": way, "smoke": ()})
            carry_out(site, rollout, unjudged, steps, lease, publisher, progress)
        prune(site, target.rollout.keep, return_state=True)
    return site.ledger.rollout(rollout.id)


def _thaw(site: Site, unsafe_reason: str, by: str) -> list[Phase]:
    """Take frozen rollouts back in spite of their migrations, because a person says so."""
    words = f"taken back by {by} in spite of its migration: {unsafe_reason}"
    frozen = site.ledger.frozen(site.service, site.environment)
    return [take_back(site, rollout, words, unsafe_reason, by) for rollout in frozen]


def _notify(site: Site) -> dict[str, Any] | None:
    """Who hears of it: those whom the last rollout told."""
    last = site.ledger.history(site.service, site.environment, limit=1)
    return last[0].notify if last else None


def _named(site: Site, release_id: str) -> str:
    on_disk = site.ledger.releases(site.service, site.environment, promoted=True)
    if release_id not in on_disk:
        known = ", ".join(on_disk) or "none"
        raise Refused(
            f"{release_id} is no good release of {site} that is still on disk; nothing was "
            f"changed. There is: {known}"
        )
    return release_id


def _last_good(site: Site) -> str:
    """The newest good one that is older than what serves: asked twice, it goes back twice."""
    stable = site.ledger.stable(site.service, site.environment)
    good = site.ledger.releases(site.service, site.environment, promoted=True)
    # A renewal is no other release: it is as old as what it renews, and as bad.
    age = {one: _number(site.ledger.release(one).origin) for one in good}
    ours = None if stable is None else _number(site.ledger.release(stable).origin)
    if older := [one for one in good if ours is None or age[one] < ours]:
        return max(older, key=lambda one: (age[one], _number(one)))
    raise Refused(
        f"there is no older good release of {site} on disk; {stable or 'nothing'} serves. Name "
        f"another by --to: {', '.join(good) or 'there is none'}"
    )


def _number(release_id: str) -> int:
    return int(release_id.rpartition("-")[2])
