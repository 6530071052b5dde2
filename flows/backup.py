"""Every night: each target is backed up, copied to its second store, and thinned out by its rules.

One that fails keeps no other from its turn; the run fails at the end, and people hear of each.
"""

from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from blocks.ledger import Ledger
from blocks.stack import Stack, open_stack
from flows import death_hooks
from flows.ended import failed
from flows.run_names import called
from policy.errors import DafnckError
from policy.release import Verdict
from tasks.backup import back_up, prune, replicate, size_trend
from tasks.backup_alert import alert
from tasks.backup_report import publish_backups, taken_row
from tasks.backup_site import BackupSite
from tasks.backup_wanted import wanted_sites
from tasks.publish import published


@flow(
    name="backup",
    flow_run_name=called("backup of", "service"),
    validate_parameters=True,
    on_failure=[death_hooks.backup_died],
    on_crashed=[death_hooks.backup_died],
    on_cancellation=[death_hooks.backup_died],
)
def backup(
    service: str | None = None,
    environment: str | None = None,
    target: str | None = None,
    service_file: str | None = None,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Back up now what the files of the services that serve say, and the state of dafnck itself.

    Args:
        service: this one alone; `dafnck` is the state of dafnck itself
        environment: this one alone
        target: this one alone
        service_file: instead of what serves: what this file says
        by: who asks, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        sites = wanted_sites(stack, ledger, service, environment, target, service_file)
        with published("backups") as publisher:
            rows = [_back_up(stack, ledger, site, by) for site in sites]
            publish_backups(publisher, rows)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    bad = [f"{row['target']}: {row['trouble']}" for row in rows if row["trouble"]]
    if bad:
        return Failed(message=f"{len(bad)} of {len(rows)} failed: {'; '.join(bad)}")
    return Completed(message=f"{len(rows)} backed up: {', '.join(str(r['id']) for r in rows)}")


def _back_up(stack: Stack, ledger: Ledger, site: BackupSite, by: str) -> dict[str, Any]:
    """-> a row for people. Its trouble is told, and holds nobody up."""
    row = taken_row(site, by)
    try:
        manifest = back_up(site)
        row |= {"id": manifest.id, "bytes": manifest.plain_bytes, "stored": manifest.size_bytes}
        row["seconds"] = round(manifest.finished_at - manifest.started_at, 1)
        size = size_trend(site, manifest)
        if size.verdict is Verdict.FAIL:
            alert(stack, ledger, site, "backup is suspicious", size.reason)
            row["size"] = size.reason
        row["copy"] = replicate(site)
        row["dropped"] = sum(not fate.keep for fate in prune(site))
    except Exception as error:
        # Whatever it is: the other targets have their turn, and the run ends as failed.
        row["trouble"] = str(error) or type(error).__name__
        alert(stack, ledger, site, "backup failed", row["trouble"])
    return row
