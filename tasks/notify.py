"""Tells people what happens to a rollout. No Prefect: the guard, the hooks and `dafnck` use it too.

`tell` never raises and never waits for anybody, the ledger included: traffic comes first.
"""

import logging
from functools import cache, partial
from typing import Any

from policy.errors import DafnckError
from policy.notice import Event, Notice, Notify
from policy.release import RolloutRecord
from policy.rollout import Action, Freeze, RollBack, waits_for_person
from tasks.site import Site

log = logging.getLogger("dafnck")

HAPPENED = {
    Event.START: "begins",
    Event.PAUSE: "waits for a person",
    Event.FAIL: "fails",
    Event.PROMOTE: "serves",
    Event.ROLLBACK: "is rolled back",
    Event.CRASH: "lost its process",
    Event.BACKUP: "has trouble with a backup",
    Event.SECRET: "has trouble with a secret",
}


def tell(site: Site, rollout: RolloutRecord, event: Event, words: str) -> None:
    """Say so in the log of notifications, and to those who want to hear of this event."""
    try:
        wanted = Notify.model_validate(rollout.notify) if rollout.notify else None
        to = wanted.to if wanted and event in (wanted.on or Event) else []
        log.info("%s", _title(rollout, event))
        site.outbox.put(to, event, cache(partial(_notice, site, rollout, event, words)))
    except Exception as error:
        log.warning("nobody was told of %s: %s", event, type(error).__name__)


def tell_promoted(site: Site, rollout: RolloutRecord, reason: str) -> None:
    event = Event.PROMOTE if rollout.kind == "release" else Event.ROLLBACK
    tell(site, rollout, event, reason)


def decided(site: Site, rollout: RolloutRecord, action: Action) -> None:
    """What people hear of the decisions of a rollout."""
    if isinstance(action, RollBack | Freeze):
        tell(site, rollout, Event.FAIL, action.reason)
    elif waits_for_person(action):
        tell(site, rollout, Event.PAUSE, f"{action}; dafnck approve or dafnck abort")


def wanted_by(notify: Notify | None) -> dict[str, Any] | None:
    """As the ledger keeps it."""
    return notify.model_dump(mode="json") if notify else None


def _notice(site: Site, rollout: RolloutRecord, event: Event, words: str) -> Notice:
    rollout = _newest(site, rollout)
    facts = [
        ("service", rollout.service),
        ("environment", rollout.environment),
        ("version", rollout.version),
        ("release", rollout.release_id or "not built yet"),
        ("serves now", _serves(site)),
        ("reason", words),
    ]
    if rollout.freeze_override:
        by = rollout.freeze_override_by or "somebody"
        facts.append(("freeze overridden", f"{rollout.freeze_override} ({by})"))
    if rollout.unsafe_reason:
        by = rollout.unsafe_by or "somebody"
        facts.append(("past a contract migration", f"{rollout.unsafe_reason} ({by})"))
    return Notice(event, _title(rollout, event), tuple(facts))


def _title(rollout: RolloutRecord, event: Event) -> str:
    what = rollout.version if rollout.kind == "release" else f"rollback to {rollout.version}"
    return f"{rollout.service} in {rollout.environment}: {what} {HAPPENED[event]}"


def _newest(site: Site, rollout: RolloutRecord) -> RolloutRecord:
    try:
        return site.ledger.rollout(rollout.id)
    except DafnckError:
        return rollout


def _serves(site: Site) -> str:
    try:
        release = site.ledger.stable(site.service, site.environment)
        return f"{site.ledger.release(release).version} ({release})" if release else "nothing"
    except DafnckError:
        return "unknown: the ledger does not answer"
