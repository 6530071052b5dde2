"""Every week: is what was backed up really a backup? Each target's is restored where nobody uses
it, compared with its manifest and held to the team's expectations; the evidence is signed."""

from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from blocks.ledger import Ledger
from blocks.stack import Stack, open_stack
from flows import death_hooks
from flows.ended import failed
from flows.run_names import called
from policy.drill import Drill
from policy.errors import DafnckError
from policy.release import Verdict
from tasks.backup_alert import alert
from tasks.backup_report import drill_row, publish_drills
from tasks.backup_site import BackupSite
from tasks.backup_wanted import wanted_sites
from tasks.drill import drill
from tasks.publish import published


@flow(
    name="dr_drill",
    flow_run_name=called("drill of", "service"),
    validate_parameters=True,
    on_failure=[death_hooks.backup_died],
    on_crashed=[death_hooks.backup_died],
    on_cancellation=[death_hooks.backup_died],
)
def dr_drill(
    service: str | None = None,
    environment: str | None = None,
    target: str | None = None,
    backup_id: str | None = None,
    service_file: str | None = None,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Restore backups to throw-away places, and see whether everything is there.

    Args:
        service: this one alone; `dafnck` is the state of dafnck itself
        environment: this one alone
        target: this one alone
        backup_id: this backup, with a target; default: as the target's `drill` says
        service_file: instead of what serves: what this file says
        by: who asks, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        sites = wanted_sites(stack, ledger, service, environment, target, service_file)
        with published("drills") as publisher:
            rows = [_drill(stack, ledger, site, backup_id, by) for site in sites]
            publish_drills(publisher, rows)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    bad = [f"{row['target']}: {row['trouble']}" for row in rows if row["trouble"]]
    if bad:
        return Failed(message=f"{len(bad)} of {len(rows)} failed: {'; '.join(bad)}")
    return Completed(message=f"{len(rows)} restored and compared; all is there")


def _drill(
    stack: Stack, ledger: Ledger, site: BackupSite, backup_id: str | None, by: str
) -> dict[str, Any]:
    """-> a row for people. Its trouble is told, and holds nobody up."""
    done: Drill | None = None
    trouble = ""
    try:
        done = drill(site, backup_id)
        if done.verdict is not Verdict.PASS:
            trouble = "; ".join(done.reasons) or "nothing could be compared"
    except Exception as error:
        # Whatever it is: the other targets have their turn, and the run ends as failed.
        trouble = str(error) or type(error).__name__
    if trouble:
        alert(stack, ledger, site, "restore drill failed", trouble)
    return drill_row(site, done, trouble, by)
