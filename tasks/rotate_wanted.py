"""Which secrets turn over, as the files of services that serve say; and who hears of trouble."""

import logging
from collections.abc import Mapping, Sequence

from blocks.ledger import Ledger
from blocks.notifications import Notifications
from blocks.stack import Stack
from policy.errors import BadInput
from policy.notice import Event, Notice, Notify
from policy.rotation import Rotation
from policy.secrets import read_name
from tasks.outbox import Outbox
from tasks.publish import Publisher
from tasks.rotate import Rotating

log = logging.getLogger("dafnck")


def wanted_rotations(ledger: Ledger, secret: str | None = None) -> dict[str, Rotation]:
    """By name. Raises BadInput for a secret that no service's file names, and where two say
    different things of one."""
    found: dict[str, tuple[Rotation, str]] = {}
    for service, environment, release_id, _ in ledger.stables():
        for name, rotation in ledger.release(release_id).rotate.items():
            where = f"{service} in {environment}"
            if name in found and found[name][0] != rotation:
                raise BadInput(
                    f"rotate: {name}: {found[name][1]} and {where} say different things of it; "
                    "nothing was changed. Leave it to one of them"
                )
            found[name] = rotation, where
    if secret is None:
        return {name: rotation for name, (rotation, _) in sorted(found.items())}
    try:
        name = read_name(secret)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise BadInput(
            f"no service that serves says how {name} turns over (`rotate`, secrets.md); known: "
            f"{known}"
        )
    return {name: found[name][0]}


def tell_of_trouble(stack: Stack, ledger: Ledger, rotating: Rotating, words: str) -> None:
    """Into the log of notifications, and to those who hear of the releases of a service that says
    how it turns over, or runs with it."""
    log.error("%s: rotation failed: %s", rotating, words)
    facts = (
        ("secret", rotating.name),
        ("reason", words),
        ("next", f"dafnck secret show {rotating.name}"),
    )
    notice = Notice(Event.SECRET, f"{rotating}: rotation failed", facts)
    outbox = Outbox(Notifications(stack))
    outbox.put(sorted(_concerned(ledger, rotating.name)), Event.SECRET, lambda: notice)
    outbox.close()


def _concerned(ledger: Ledger, name: str) -> set[str]:
    targets: set[str] = set()
    for service, environment, release_id, _ in ledger.stables():
        release = ledger.release(release_id)
        if name not in release.rotate and f"secret://{name}" not in release.run.secrets.values():
            continue
        last = ledger.history(service, environment, limit=1)
        if last and last[0].notify:
            wanted = Notify.model_validate(last[0].notify)
            if Event.SECRET in (wanted.on or Event):
                targets.update(wanted.to)
    return targets


def publish_rotations(publisher: Publisher, rows: Sequence[Mapping[str, str]]) -> None:
    publisher.table("rotated", [dict(row) for row in rows], "Secrets of this run")
