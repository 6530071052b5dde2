"""The same release again, with its secrets as they are now: by its own rollout, judge and smoke
tests, so that a bad secret is a rollout that goes back, and no outage."""

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
from tasks.frozen import in_no_change, none_frozen, outside_freeze, still_serves
from tasks.lease import held_lease
from tasks.notify import tell
from tasks.prefect_run import flow_run_id
from tasks.publish import reported
from tasks.put_back import unfinished_first
from tasks.site import Site, site_of
from tasks.workloads import prune, replicas_of


@flow(
    name="renew",
    flow_run_name="{service} in {environment} anew",
    validate_parameters=True,
    on_failure=[hooks.give_traffic_back],
    on_crashed=[hooks.give_traffic_back],
    on_cancellation=[hooks.give_traffic_back],
)
def renew(
    service: str,
    environment: str,
    instead_of: str | None = None,
    freeze_override: str | None = None,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Release what serves once more: the same artifact and configuration, its secrets read anew.

    Args:
        service: name of the service
        environment: where
        instead_of: only while this release serves
        freeze_override: why it may begin although a freeze window is open
        by: who says so, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        site = site_of(stack, ledger, service, environment)
        rollout = _renew(site, instead_of, (freeze_override or "").strip(), by)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if rollout.phase is Phase.PROMOTED:
        return Completed(message=f"{rollout.release_id} serves: {rollout.reason}")
    return not_promoted(rollout)


def _renew(site: Site, instead_of: str | None, freeze_override: str, by: str) -> RolloutRecord:
    with reported(site) as publisher, held_lease(site, "renew") as (site, lease):
        unfinished_first(site, before_a_new_one=True)
        none_frozen(site)
        in_no_change(site)
        still_serves(site, instead_of)
        stable_id = site.ledger.stable(site.service, site.environment)
        if stable_id is None:
            raise Refused(f"nothing serves {site}; there is nothing to renew")
        stable = site.ledger.release(stable_id)
        override = outside_freeze(stable.rollout, str(site), site.clock(), freeze_override)
        last = site.ledger.history(site.service, site.environment, limit=1)
        rollout = site.ledger.open_rollout(
            site.service,
            site.environment,
            token=lease.token,
            kind="release",
            version=stable.version,
            strategy=stable.rollout.strategy,
            flow_run_id=flow_run_id(),
            by=by,
            freeze_override=override,
            freeze_override_by=override and by,
            notify=last[0].notify if last else None,
        )
        tell(site, rollout, Event.START, f"{stable_id} anew, asked for by {by}")
        publisher.rollout_id = rollout.id
        with whole_or_nothing(site, rollout) as progress:
            # Its migration was done when it was released first.
            again = {
                "created_at": site.clock(),
                "migration": None,
                "renewal_of": stable.origin,
                # Nobody has anything to say to what was approved and is not changed.
                "rollout": stable.rollout.model_copy(update={"approve": False}),
            }
            new = site.ledger.add_release(stable.model_copy(update=again), rollout.id)
            site.ledger.set_phase(rollout.id, Phase.STARTING)
            replicas, stable_replicas = replicas_of(site, stable.run.replicas, stable)
            steps = plan(
                new.rollout,
                replicas=replicas,
                stable_replicas=stable_replicas,
                now=site.clock(),
                by_replicas=site.platform.by_replicas,
            )
            carry_out(site, rollout, new, steps, lease, publisher, progress)
        prune(site, new.rollout.keep, return_state=True)
    return site.ledger.rollout(rollout.id)
