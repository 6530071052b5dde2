"""Prefect calls this when a backup, a restore or a drill ended otherwise than by its own words:
people must hear of a night without a backup. There is nothing to roll back: what is half-written
has no manifest, and the next one removes it."""

from typing import Any

from blocks.notifications import Notifications
from blocks.stack import open_stack
from policy.notice import Event, Notice
from tasks.outbox import Outbox


def tell_of_death(flow: Any, flow_run: Any, state: Any) -> None:
    """Its own failures are told by the flow already, one by one."""
    if state.name in ("Failed", "Refused", "BadInput"):
        return
    notifier = Notifications(open_stack())
    words = f"its process ended as {state.name}; what it had begun does not count as a backup"
    facts = (("flow run", flow_run.name), ("reason", words), ("next", "dafnck backup list"))
    notice = Notice(Event.BACKUP, f"{flow.name}: {state.name}", facts)
    outbox = Outbox(notifier)
    outbox.put(notifier.names(), Event.BACKUP, lambda: notice)
    outbox.close()
