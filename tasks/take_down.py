"""Takes a service out of an environment: no traffic, no replicas, nothing left to go back to.

Killed anywhere, it is called again: from the first act on nobody brings the service back.
"""

from policy.errors import Refused
from policy.release import Phase
from tasks import put_back
from tasks.lease import held_lease
from tasks.site import Site


def take_down(site: Site, by: str) -> list[str]:
    """-> ids of the releases that were removed. Raises Refused while a rollout is under way."""
    ledger = site.ledger
    with held_lease(site, f"down by {by}") as (site, lease):
        if left := ledger.unfinished(site.service, site.environment):
            raise Refused(f"rollout {left[0].id} is {left[0].phase}; nothing was changed")
        known = ledger.releases(site.service, site.environment)
        stable = ledger.stable(site.service, site.environment)
        rollout = ledger.open_rollout(
            site.service,
            site.environment,
            token=lease.token,
            kind="down",
            version=ledger.release(stable).version if stable else "-",
            strategy="-",
            by=by,
        )
        for frozen in ledger.frozen(site.service, site.environment):
            ledger.set_phase(frozen.id, Phase.FAILED, f"taken down by {by}")
        with ledger.act(rollout.id, "retire", releases=len(known)):
            ledger.retire(site.service, site.environment, by)
            site.platform.router.set_shares({})
            site.platform.router.match(None)
        with ledger.act(rollout.id, "remove", releases=len(known)):
            for release_id in known:
                put_back.drain(site, release_id)
                site.platform.workloads.stop(release_id, ledger.release(release_id).run.grace)
            for release_id in site.platform.router.shares():
                site.platform.router.detach(release_id)
            for release_id in known:
                site.platform.workloads.remove(release_id)
            if site.platform.cluster is not None:
                lease.fence()
                site.platform.cluster.remove_all()
            # Last: while a release is known, so is where the rest of it is.
            for release_id in known:
                ledger.mark_removed(release_id)
        ledger.set_phase(rollout.id, Phase.PROMOTED, f"taken down by {by}")
    return known
