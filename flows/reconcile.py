"""Ends what died, now: for people who do not want to wait for the guard, or have none."""

from functools import partial
from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import open_stack
from policy.errors import DafnckError
from tasks.change import end_changes
from tasks.change_runs import WorkerRuns
from tasks.reconcile import everywhere
from tasks.site import site_of


@flow(name="reconcile", flow_run_name="end what died")
def reconcile() -> State[Any]:
    """End every rollout whose process is known to be dead; traffic goes to stable first. Then the
    changes of several services that nobody leads any more.

    Killed itself, it leaves nothing that the guard or the next one does not end."""
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        with stack_api(stack) as api:
            place = partial(site_of, stack, ledger)
            done = everywhere(ledger, place, api, "reconcile")
            for change in end_changes(ledger, WorkerRuns(api), place, "reconcile"):
                done.append(
                    f"the change of {change.stack} in {change.environment}: {change.verdict}"
                )
    except DafnckError as error:
        return Failed(message=str(error))
    finally:
        ledger.close()
    return Completed(message="; ".join(done) or "nobody had died")
