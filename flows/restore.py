"""Brings a backup back: beside what is there, or in its place over a safety backup."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed

from blocks.ledger import Ledger
from blocks.stack import open_stack
from flows import death_hooks
from flows.ended import failed
from policy.errors import DafnckError
from policy.quantities import moment
from tasks.backup_site import in_place_of
from tasks.backup_wanted import one_site
from tasks.physical import place_in_log
from tasks.restore import Where
from tasks.restore import restore as bring_back


@flow(
    name="restore",
    flow_run_name="restore of {service}",
    validate_parameters=True,
    on_failure=[death_hooks.backup_died],
    on_crashed=[death_hooks.backup_died],
    on_cancellation=[death_hooks.backup_died],
)
def restore(
    service: str,
    environment: str | None = None,
    target: str | None = None,
    backup_id: str | None = None,
    database: str | None = None,
    folder: str | None = None,
    bucket: str | None = None,
    in_place: bool = False,
    confirm: str | None = None,
    tables: list[str] | None = None,
    to_time: str | None = None,
    to_lsn: str | None = None,
    service_file: str | None = None,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Restore a backup.

    Args:
        service: whose; `dafnck` is the state of dafnck itself
        environment: where; may be left out when there is only one
        target: which; may be left out when there is only one
        backup_id: default: the newest that no drill proved bad
        database: name of a new database on the same server
        folder: an empty folder; of a whole server, its new data directory
        bucket: an empty bucket, or an empty prefix of one: `s3://bucket/prefix`
        in_place: instead of what is there, which is backed up before and kept aside
        confirm: with in_place: `<service>/<environment>/<target>`
        tables: these alone, `schema.table`, to a new database
        to_time: of a physical backup: to this moment, `2026-11-25T02:15:00Z`
        to_lsn: of a physical backup: to this place in the log, `0/3000060`
        service_file: instead of what serves: what this file says
        by: who asks, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        site = one_site(stack, ledger, service, environment, target, service_file)
        in_place_of(site, in_place, confirm)
        where = Where(
            database,
            Path(folder).absolute() if folder else None,
            in_place,
            bucket=bucket,
            tables=tables or (),
            until=moment(to_time) if to_time else None,
            lsn=place_in_log(to_lsn) if to_lsn else None,
        )
        into = database or folder or bucket or "its place"
        ledger.record(by, "restore", str(site.place), backup=backup_id or "the newest", into=into)
        words = bring_back(site, backup_id, where)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    return Completed(message=words)
