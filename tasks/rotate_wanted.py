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

log = logging.getLogger("dafnck")


def wanted_rotations(
    ledger: Ledger, secret: str | None = None
) -> tuple[dict[str, Rotation], dict[str, str]]:
    """-> by name; and those of which two services say different things: name -> in words. Raises
    BadInput for a secret that no service's file names."""
    said: dict[str, dict[str, Rotation]] = {}
    for service, environment, release_id, _ in ledger.stables():
        for name, rotation in ledger.release(release_id).rotate.items():
            said.setdefault(name, {})[f"{service} in {environment}"] = rotation
    if secret is not None:
        try:
            name = read_name(secret)
        except ValueError as error:
            raise BadInput(f"{secret}: {error}") from None
        if name not in said:
            raise BadInput(
                f"no service that serves says how {name} turns over (`rotate`, secrets.md); known: "
                f"{', '.join(sorted(said)) or 'none'}"
            )
        said = {name: said[name]}
    found, unclear = {}, {}
    for name, by in sorted(said.items()):
        first = next(iter(by.values()))
        if all(rotation == first for rotation in by.values()):
            found[name] = first
        else:
            unclear[name] = f"{' and '.join(by)} say different things of it; leave it to one"
    return found, unclear


def tell_of_trouble(stack: Stack, ledger: Ledger, name: str, words: str) -> None:
    """Into the log of notifications, and to those who hear of the releases of a service that says
    how it turns over, or runs with it."""
    log.error("%s: rotation failed: %s", name, words)
    facts = (
        ("secret", name),
        ("reason", words),
        ("next", f"dafnck secret show {name}"),
    )
    notice = Notice(Event.SECRET, f"{name}: rotation failed", facts)
    outbox = Outbox(Notifications(stack))
    outbox.put(sorted(_concerned(ledger, name)), Event.SECRET, lambda: notice)
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
