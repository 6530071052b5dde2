"""The second net: Prefect calls these when a flow failed, crashed or was cancelled.

The first net is the rollout's own process, which gives traffic back before it ends; then there is
nothing left to do here. After a kill these run in the worker's process, or not at all, and often at
the same time as the guard: who takes the lease acts, the other one has nothing to do.
"""

import logging
from functools import partial
from typing import Any

from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import open_stack
from policy.release import UNLED
from tasks.change import Change
from tasks.change_runs import WorkerRuns
from tasks.reconcile import Unled, end
from tasks.site import site_of

log = logging.getLogger("dafnck")


def give_traffic_back(flow: Any, flow_run: Any, state: Any) -> None:
    """Traffic to the stable release at once, then everything else."""
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        rollout = ledger.rollout_of_flow_run(str(flow_run.id))
        if rollout is None or rollout.phase in UNLED:
            return
        site = site_of(stack, ledger, rollout.service, rollout.environment)
        why = f"its process died, Prefect says: {state.name}"
        end(site, Unled(site.service, site.environment, why, None), "Prefect's hook")
    finally:
        ledger.close()


def end_change(flow: Any, flow_run: Any, state: Any) -> None:
    """What a dead leader's change rolls out goes back at once; the guard takes back the rest."""
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        change = ledger.change_of_flow_run(str(flow_run.id))
        if change is None or change.verdict is not None:
            return
        if ledger.lease(change.service, change.environment):
            return  # somebody leads it
        with stack_api(stack) as api:
            left = Change(ledger, change, WorkerRuns(api), partial(site_of, stack, ledger))
            left.abandon(f"its process died, Prefect says: {state.name}")
    finally:
        ledger.close()
