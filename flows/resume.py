"""Lets a frozen rollout go on, because a person says so."""

from dataclasses import replace
from typing import Any

from prefect import State, flow
from prefect.states import Completed

from blocks.ledger import Ledger
from blocks.stack import open_stack
from flows import hooks
from flows.carry_out import carry_out, whole_or_nothing
from flows.ended import failed, not_promoted
from policy.errors import DafnckError, Refused
from policy.release import Phase, RolloutRecord
from policy.rollout import accepted, plan
from tasks.lease import held_lease
from tasks.prefect_run import flow_run_id
from tasks.publish import reported
from tasks.put_back import make_room
from tasks.site import Site, site_of
from tasks.workloads import prune, replicas_of


@flow(
    name="resume",
    flow_run_name="{service} → {environment}, resumed",
    on_failure=[hooks.give_traffic_back],
    on_crashed=[hooks.give_traffic_back],
    on_cancellation=[hooks.give_traffic_back],
)
def resume(service: str, environment: str, by: str = "somebody in the Prefect UI") -> State[Any]:
    """Let a frozen rollout go on: its present step is taken as it is, the next one bakes and is
    judged again.

    Args:
        service: name of the service
        environment: where
        by: who says so, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        rollout = _resume(site_of(stack, ledger, service, environment), by)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if rollout.phase is Phase.PROMOTED:
        return Completed(message=f"{rollout.release_id} serves: {rollout.reason}")
    return not_promoted(rollout)


def _led_again(frozen: RolloutRecord) -> RolloutRecord:
    """As the ledger holds it now, without asking it."""
    clean = replace(frozen, abort_reason=None, unsafe_reason=None, unsafe_by=None)
    return replace(clean, phase=Phase.SHIFTING, reason="", taken_over=None, closed_at=None)


def _resume(site: Site, by: str) -> RolloutRecord:
    with reported(site) as publisher, held_lease(site, f"resumed by {by}") as (site, lease):
        frozen = site.ledger.frozen(site.service, site.environment)
        if not frozen or frozen[0].release_id is None:
            raise Refused(f"nothing is frozen in {site}; nothing was changed")
        new = site.ledger.release(frozen[0].release_id)
        share = site.platform.router.shares().get(new.id, 0)
        if share:
            # First what has the requests anyway: without a ready replica it would freeze at once.
            make_room(site, new.id)
        seen = site.platform.workloads.endpoints(new.id)
        site.ledger.go_on(frozen[0].id, token=lease.token, who=by, flow_run_id=flow_run_id())
        rollout = _led_again(frozen[0])
        publisher.rollout_id = rollout.id
        site.ledger.decide(rollout.id, "GoOn", share, None, f"{by} lets it go on")
        with whole_or_nothing(site, rollout) as progress:
            progress.no_way_back = True  # else it would not be frozen; the ledger may fall silent
            assert rollout.stable_id is not None  # without one it would not be frozen
            stable = site.ledger.release(rollout.stable_id)
            replicas, stable_replicas = replicas_of(site, new.run.replicas, stable)
            steps = plan(
                new.rollout,
                replicas=replicas,
                stable_replicas=stable_replicas,
                now=site.clock(),
                migration=new.migration,
                by_replicas=site.platform.by_replicas,
            )
            steps = accepted(steps, share=share, by=by, restarts=seen.restarts)
            carry_out(site, rollout, new, steps, lease, publisher, progress)
        prune(site, new.rollout.keep, return_state=True)
    return site.ledger.rollout(rollout.id)
