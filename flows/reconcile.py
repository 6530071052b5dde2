"""Ends what died, now: for people who do not want to wait for the guard, or have none."""

from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import open_stack
from policy.errors import DafnckError
from tasks.reconcile import everywhere
from tasks.site import local_site


@flow(name="reconcile", flow_run_name="end what died")
def reconcile() -> State[Any]:
    """End every rollout whose process is known to be dead; traffic goes to stable first.

    Killed itself, it leaves nothing that the guard or the next one does not end."""
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        with stack_api(stack) as api:
            done = everywhere(
                ledger, lambda *place: local_site(stack, ledger, *place), api, "reconcile"
            )
    except DafnckError as error:
        return Failed(message=str(error))
    finally:
        ledger.close()
    return Completed(message="; ".join(done) or "nobody had died")
