"""What is to be backed up: of a service file, of what serves, and the state of dafnck itself."""

from pathlib import Path

from blocks.backup_catalogue import Place
from blocks.ledger import Ledger
from blocks.stack import Stack
from policy.backup import OWN, OWN_TARGET, Backup
from policy.errors import BadInput, Refused
from tasks.backup_site import BackupSite, own_place, site_of_target
from tasks.read import backup_of, read_service


def known_backups(ledger: Ledger) -> dict[tuple[str, str], Backup]:
    """(service, environment) -> what the file of the release said that serves there."""
    found = {}
    for service, environment, release_id, _ in ledger.stables():
        if (backup := ledger.release(release_id).backup) is not None:
            found[service, environment] = backup
    return found


def of_file(file: Path, environment: str | None) -> dict[tuple[str, str], Backup]:
    """Raises BadInput when it says nothing of backups."""
    wanted, environment = read_service(file, environment)
    backup = backup_of(wanted, environment, file)
    if backup is None:
        raise BadInput(f"{file}: backup: is missing: there is nothing to back up")
    return {(wanted.service, environment): backup}


def wanted_sites(
    stack: Stack,
    ledger: Ledger,
    service: str | None = None,
    environment: str | None = None,
    target: str | None = None,
    service_file: str | None = None,
) -> list[BackupSite]:
    """Each that fits; the state of dafnck first. Raises BadInput when none does."""
    sites = []
    if service_file:
        known = of_file(Path(service_file), environment)
    else:
        known = known_backups(ledger)
        if service in (None, OWN) and environment in (None, "stack"):
            sites.append(site_of_target(stack, own_place(stack), None))
    for (name, where), backup in sorted(known.items()):
        if service not in (None, name) or environment not in (None, where):
            continue
        for one in backup.targets:
            sites.append(site_of_target(stack, Place(name, where, one), backup))
    if target is not None:
        sites = [site for site in sites if site.place.target == target]
    if not sites:
        there = sorted({f"{name} in {where}" for name, where in known}) or ["nothing"]
        raise BadInput(
            f"nothing fits {service or 'any service'}, {environment or 'any environment'}, "
            f"{target or 'any target'}; what serves and has a backup part: {', '.join(there)}. "
            "Of a file: dafnck backup now FILE"
        )
    return sites


def one_site(
    stack: Stack,
    ledger: Ledger,
    service: str,
    environment: str | None,
    target: str | None,
    service_file: str | None = None,
) -> BackupSite:
    """Raises BadInput when several fit."""
    if service == OWN:
        environment, target = "stack", OWN_TARGET
    sites = wanted_sites(stack, ledger, service, environment, target, service_file)
    if len(sites) > 1:
        names = ", ".join(f"--env {s.place.environment} --target {s.place.target}" for s in sites)
        raise BadInput(f"{service}: name one: {names}")
    return sites[0]


def notified(ledger: Ledger, stored: list[str], site: BackupSite) -> list[str]:
    """Who hears of trouble with this backup: those who hear of releases; of the state of dafnck
    itself everybody."""
    if site.is_own:
        return stored
    try:
        rollouts = ledger.history(site.place.service, site.place.environment, limit=1)
    except Refused:
        return []
    wanted = rollouts[0].notify if rollouts else None
    if not wanted or (wanted.get("on") and "backup" not in wanted["on"]):
        return []
    return list(wanted["to"])
