"""Whether a release may begin or go back at all: freeze windows, frozen rollouts, migrations,
and what was released since.

Refusals only: nothing here changes anything. No Prefect.
"""

from policy.errors import Refused
from policy.freeze import frozen
from policy.release import Release, RolloutRecord
from policy.service_file import Rollout
from tasks.site import Site


class FreezeWindow(Refused):
    """A window is open in which no release may begin."""


def outside_freeze(rollout: Rollout, where: str, now: float, override: str | None) -> str | None:
    """-> the override, if it was needed. Raises FreezeWindow without one."""
    windows = [window.read() for window in rollout.freeze]
    found = frozen(windows, rollout.time_zone, now)
    if found is None:
        return None
    if override:
        return override
    raise FreezeWindow(
        f"{where} is frozen: {found}; nothing was changed. Wait, or say "
        'why not: dafnck release --override-freeze "reason"'
    )


def none_frozen(site: Site) -> None:
    """Raises Refused while a rollout waits frozen: what comes next depends on its end."""
    for rollout in site.ledger.frozen(site.service, site.environment):
        raise Refused(what_now(rollout))


def in_no_change(site: Site) -> None:
    """Raises Refused while a change of several services may still take this one back."""
    for change in site.ledger.unfinished_changes():
        members = {member.service for member in site.ledger.members(change.id)}
        if change.environment == site.environment and site.service in members:
            raise Refused(
                f"{site} is part of change {change.id} of {change.stack}, which is not over; "
                "nothing was changed. Try again after its end"
            )


def still_serves(site: Site, release_id: str | None) -> None:
    """Raises Refused when another one serves than whoever asked for the way back believed."""
    serving = site.ledger.stable(site.service, site.environment)
    if release_id is not None and serving != release_id:
        raise Refused(
            f"{serving or 'nothing'} serves by now, and not {release_id}; nothing was changed"
        )


def what_now(rollout: RolloutRecord) -> str:
    """Of a frozen rollout: what happened, what is true, what to do."""
    place = f"{rollout.service} --env {rollout.environment}"
    return (
        f"{rollout.version} of {rollout.service} in {rollout.environment} is frozen, because "
        f"{rollout.reason}. Its migration lets nobody go back by themselves; the traffic stays as "
        f"the router holds it. Decide: dafnck approve {place} (go on), or dafnck abort {place} "
        '--even-unsafe --reason "why"'
    )


def way_back(site: Site, target: Release, unsafe_reason: str | None) -> str | None:
    """-> the reason, if it was needed. Raises Refused when a younger release took away what this
    one needs of the database."""
    younger = site.ledger.contracts_after(target)
    if not younger:
        return None
    if unsafe_reason:
        return unsafe_reason
    raise Refused(
        f"{target.id} ({target.version}) is older than {', '.join(younger)}, whose contract "
        "migration took away what it needs; nothing was changed. Release a correction instead, or "
        f"say why it is safe: dafnck rollback {site.service} --env {site.environment} --to "
        f'{target.id} --even-unsafe --reason "why"'
    )
