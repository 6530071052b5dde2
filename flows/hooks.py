"""The second net: Prefect calls these when a flow failed, crashed or was cancelled.

The first net is the rollout's own process, which gives traffic back before it ends; then there is
nothing left to do here. After a kill these run in the worker's process, or not at all; the third
net is whoever takes the lease next.
"""

import logging
from typing import Any

from blocks.ledger import Ledger
from blocks.stack import open_stack
from policy.errors import DafnckError
from policy.release import FINISHED, Phase
from tasks.put_back import traffic_to_stable
from tasks.site import local_site

log = logging.getLogger("dafnck")


def give_traffic_back(flow: Any, flow_run: Any, state: Any) -> None:
    """Traffic to the stable release at once, then the rollback flow for everything else."""
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        rollout = ledger.rollout_of_flow_run(str(flow_run.id))
        if rollout is None or rollout.phase in FINISHED:
            return
        if rollout.release_id is not None and rollout.phase is not Phase.DRAINING:
            site = local_site(stack, ledger, rollout.service, rollout.environment)
            try:
                traffic_to_stable(site, rollout, f"the flow run ended as {state.name}")
            except DafnckError as error:
                log.error("traffic did not go back at once: %s", error)
        # Prefect calls this after the run's process ended: nobody renews its lease any more.
        ledger.break_lease(rollout.id)
    finally:
        ledger.close()
    from flows.rollback import rollback  # it names this hook

    rollback(rollout.service, rollout.environment, only_unfinished=True)
