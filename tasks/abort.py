"""Ends a rollout past the point from which nobody goes back, when a person says so. No Prefect:
traffic moves in the process of the person who says it."""

from policy.errors import Refused
from policy.release import Phase, RolloutRecord
from tasks.frozen import what_now
from tasks.lease import held_lease
from tasks.put_back import no_way_back, put_back
from tasks.report import report
from tasks.site import Site


def abort_frozen(site: Site, words: str, unsafe: str | None, by: str) -> RolloutRecord | None:
    """Take a frozen rollout back. -> how it ended; None when nothing is frozen. Raises Refused
    without a reason why that is safe."""
    frozen = site.ledger.frozen(site.service, site.environment)
    if not frozen:
        return None
    if not unsafe:
        raise Refused(what_now(frozen[0]))
    try:
        with held_lease(site, f"abort by {by}") as (site, _):
            take_back(site, frozen[0], words, unsafe, by)
    finally:
        site.outbox.close()
    return site.ledger.rollout(frozen[0].id)


def take_back(site: Site, frozen: RolloutRecord, words: str, unsafe: str, by: str) -> Phase:
    """In spite of its migration, under the lease. Cut off anywhere, the guard finishes it."""
    assert site.token
    site.ledger.take_back(frozen.id, words, token=site.token, unsafe_reason=unsafe, unsafe_by=by)
    phase = put_back(site, frozen.id, words)
    report(site, frozen.id)
    return phase


def past_no_return(site: Site, rollout: RolloutRecord) -> None:
    """Raises Refused when the rollout would freeze instead of going back."""
    if no_way_back(site, rollout):
        raise Refused(
            f"{rollout.version} has had so much traffic that its contract migration lets nobody go "
            "back; it goes on, nothing was changed. End it all the same: dafnck abort "
            f'{site.service} --env {site.environment} --even-unsafe --reason "why"'
        )
