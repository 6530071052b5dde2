"""Tells people of a backup or a drill that failed."""

import logging

from blocks.ledger import Ledger
from blocks.notifications import Notifications
from blocks.stack import Stack
from policy.notice import Event, Notice
from tasks.backup_site import BackupSite
from tasks.backup_wanted import notified
from tasks.outbox import Outbox

log = logging.getLogger("dafnck")


def alert(stack: Stack, ledger: Ledger, site: BackupSite, what: str, words: str) -> None:
    """`what`: "backup failed". Into the log of notifications, and to whom it concerns."""
    log.error("%s: %s: %s", site.place, what, words)
    notifier = Notifications(stack)
    facts = (
        ("service", site.place.service),
        ("environment", site.place.environment),
        ("target", site.place.target),
        ("vault", str(site.vault)),
        ("reason", words),
        ("next", f"dafnck backup list {site.place.service} --env {site.place.environment}"),
    )
    notice = Notice(Event.BACKUP, f"{site.place}: {what}", facts)
    outbox = Outbox(notifier)
    outbox.put(notified(ledger, notifier.names(), site), Event.BACKUP, lambda: notice)
    outbox.close()
