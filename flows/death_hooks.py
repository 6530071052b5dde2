"""Prefect calls these when a run ended otherwise than by its own words: people must hear of a night
without a backup, and of a rotation that stands still. There is nothing to roll back: what is
half-written of a backup has no manifest, and the next one removes it; a rotation goes on from what
is true."""

from typing import Any

from blocks.notifications import Notifications
from blocks.stack import open_stack
from policy.notice import Event, Notice
from tasks.outbox import Outbox


def backup_died(flow: Any, flow_run: Any, state: Any) -> None:
    words = "what it had begun does not count as a backup"
    _tell(flow, flow_run, state, Event.BACKUP, words, "dafnck backup list")


def rotation_died(flow: Any, flow_run: Any, state: Any) -> None:
    words = "what was accepted still is; the next run goes on"
    _tell(flow, flow_run, state, Event.SECRET, words, "dafnck secret list")


def _tell(flow: Any, flow_run: Any, state: Any, event: Event, words: str, then: str) -> None:
    """Its own failures are told by the flow already, one by one."""
    if state.name in ("Failed", "Refused", "BadInput"):
        return
    notifier = Notifications(open_stack())
    reason = f"its process ended as {state.name}; {words}"
    facts = (("flow run", flow_run.name), ("reason", reason), ("next", then))
    notice = Notice(event, f"{flow.name}: {state.name}", facts)
    outbox = Outbox(notifier)
    outbox.put(notifier.names(), event, lambda: notice)
    outbox.close()
