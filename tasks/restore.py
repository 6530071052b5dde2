"""Brings a backup back where people want it: beside what is there, or in its place.

In its place only over a safety backup of what is there, and by a swap of names at the end: until
then what is there is untouched, and afterwards it is kept aside.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.backup_catalogue import Entry
from policy.backup_manifest import Difference, Manifest
from policy.errors import BadInput, NotApplied, Refused
from tasks.backup import take
from tasks.backup_site import BackupSite, alone
from tasks.drill import streams_of

log = logging.getLogger("dafnck")


class Where:
    """One of the first three. No dataclass, for the reason that BackupSite is none."""

    def __init__(
        self,
        database: str | None = None,
        folder: Path | None = None,
        in_place: bool = False,
    ) -> None:
        """`database`: name of a new one on the same server; `folder`: empty, or not there."""
        self.database, self.folder, self.in_place = database, folder, in_place


def chosen(site: BackupSite, backup_id: str | None) -> Entry:
    """The named one; else the newest that counts. Raises Refused."""
    if backup_id:
        entry = site.catalogue.entry(site.place, backup_id)
        if entry.manifest is None:
            raise Refused(f"{backup_id} is no whole backup: {entry.trouble}; nothing was changed")
        return entry
    for entry in site.catalogue.whole(site.place):
        return entry
    raise Refused(f"there is no good backup of {site.place}; see dafnck backup list")


@task(task_run_name="restore {site}", cache_policy=NO_CACHE)
def restore(site: BackupSite, backup_id: str | None, where: Where) -> str:
    """-> in words, what is where now. Raises NotApplied when what came back is not what the
    manifest says."""
    manifest = chosen(site, backup_id).manifest
    assert manifest
    if site.target.postgres:
        return _restore_database(site, manifest, where)
    if where.database:
        raise BadInput(f"{site.place} is no database; nothing was changed")
    if where.in_place or where.folder is None:
        raise BadInput(
            f"{site.place}: name an empty folder, --to-folder; look at what is in it, and move it "
            "where it shall be. Nothing was changed"
        )
    if site.is_own:
        return _restore_own(site, manifest, where.folder)
    return _restore_files(site, manifest, where.folder)


def _restore_database(site: BackupSite, manifest: Manifest, where: Where) -> str:
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database, drop_database, swap
    from blocks.postgres import server_of

    assert site.target.postgres
    server = server_of(site.target.postgres)
    name = where.database or _beside(server.dbname, site.clock())
    if where.in_place:
        with alone(site):
            safety = take(site)
        log.info("what is there now is kept as backup %s", safety.id)
    database = manifest.facts.database
    create_database(server, name, database)
    try:
        there = DatabaseRestore(server.at(name))
        there.restore(manifest, streams_of(site, manifest))
        _must_equal(there.differences(manifest))
    except BaseException:
        drop_database(server, name)
        log.warning("%s was removed again; %s is untouched", name, server.dbname)
        raise
    if not where.in_place:
        return f"{manifest.id} is in the new database {name}, equal to its manifest"
    aside = swap(server, server.dbname, name)
    return (
        f"{server.dbname} is what {manifest.id} says, equal to its manifest; what was there is "
        f"kept as database {aside} and as backup {safety.id}"
    )


def _restore_files(site: BackupSite, manifest: Manifest, folder: Path) -> str:
    from blocks.tree_source import TreeRestore

    there = TreeRestore(folder)
    there.restore(manifest, streams_of(site, manifest))
    _must_equal(there.differences(manifest))
    return f"{manifest.id} is in {folder}, equal to its manifest"


def _restore_own(site: BackupSite, manifest: Manifest, folder: Path) -> str:
    from blocks.own_state import LEDGER, OwnStateRestore
    from blocks.own_state_home import settle

    there = OwnStateRestore(folder)
    there.restore(manifest, streams_of(site, manifest))
    _must_equal(there.differences(manifest))
    for done in settle(folder, str(folder / LEDGER)):
        log.info("%s", done)
    return (
        f"{manifest.id} is in {folder}, equal to its manifest. It may be brought up, where the "
        f"other does not run: DAFNCK_HOME={folder} dafnck up"
    )


def _must_equal(found: list[Difference]) -> None:
    if found:
        words = "; ".join(map(str, found[:5]))
        raise NotApplied(f"what came back is not what was backed up: {words}")


def _beside(name: str, now: float) -> str:
    """'shop' -> 'shop_restored_20261125_021500', within the 63 bytes of a name."""
    tail = f"_restored_{datetime.fromtimestamp(now, UTC):%Y%m%d_%H%M%S}"
    return name.encode()[: 63 - len(tail)].decode(errors="ignore") + tail
