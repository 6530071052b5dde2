"""Brings a backup back where people want it: beside what is there, or in its place.

In its place only over a safety backup of what is there, and by a swap of names at the end: until
then what is there is untouched, and afterwards it is kept aside.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.backup_catalogue import Entry
from policy.backup_manifest import BackupKind, Difference, Manifest
from policy.errors import BadInput, NotApplied, Refused
from tasks.backup import take
from tasks.backup_site import BackupSite, alone, credentials_for
from tasks.drill import streams_of

log = logging.getLogger("dafnck")


class Where:
    """One of the first three, or a bucket, and what of it. No dataclass, for the reason that
    BackupSite is none."""

    def __init__(
        self,
        database: str | None = None,
        folder: Path | None = None,
        in_place: bool = False,
        *,
        bucket: str | None = None,
        tables: Sequence[str] = (),
        until: datetime | None = None,
        lsn: str | None = None,
    ) -> None:
        """`database`: name of a new one on the same server; `folder`, `bucket`: empty, or not
        there. `tables`: these alone. `until`, `lsn`: to this moment, or place in the log."""
        self.database, self.folder, self.in_place = database, folder, in_place
        self.bucket, self.tables, self.until, self.lsn = bucket, tuple(tables), until, lsn


def chosen(site: BackupSite, backup_id: str | None, where: Where) -> Entry:
    """The named one; else the newest that counts, of those that reach the moment that is wanted.
    Raises Refused."""
    if backup_id:
        entry = site.catalogue.entry(site.place, backup_id)
        if entry.manifest is None:
            raise Refused(f"{backup_id} is no whole backup: {entry.trouble}; nothing was changed")
        return entry
    whole = site.catalogue.whole(site.place)
    if where.until or where.lsn:
        from tasks.physical import reaches

        words = f", from before {where.until or where.lsn}"
        whole = [one for one in whole if one.manifest and reaches(one.manifest, where)]
    else:
        words = ""
    if not whole:
        raise Refused(f"there is no good backup of {site.place}{words}; see dafnck backup list")
    return whole[0]


@task(task_run_name="restore {site}", cache_policy=NO_CACHE)
def restore(site: BackupSite, backup_id: str | None, where: Where) -> str:
    """-> in words, what is where now. Raises NotApplied when what came back is not what the
    manifest says."""
    _possible(site, where)
    manifest = chosen(site, backup_id, where).manifest
    assert manifest
    _fits(manifest, where)
    if manifest.kind == "postgres-physical":
        from tasks.physical import restore_server

        return restore_server(site, manifest, where)
    if site.target.postgres:
        return _restore_database(site, manifest, where)
    if manifest.kind == "bucket":
        return _restore_objects(site, manifest, where)
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


def _possible(site: BackupSite, where: Where) -> None:
    """Raises BadInput for what this target cannot do; nothing was looked at then."""
    moment = "a moment or a place in the log" if where.until or where.lsn else ""
    wanted = "single tables" if where.tables else moment
    if where.until and where.lsn:
        raise BadInput("name a moment or a place in the log, not both; nothing was changed")
    if where.tables and (site.target.is_physical or not site.target.postgres):
        raise BadInput(f"{site.place}: single tables come from a logical backup of a database")
    if where.tables and where.in_place:
        raise BadInput(
            "single tables are not put in the place of others: restore them to a new database "
            "(--to-database), look at them, and copy what you need. Nothing was changed"
        )
    if moment and not site.target.is_physical:
        raise BadInput(f"{site.place}: {wanted} needs a physical backup (method: physical)")
    if site.target.is_physical and (where.folder is None or where.in_place or where.database):
        raise BadInput(
            f"{site.place} is a whole server: name an empty folder, its new data directory, "
            "--to-folder. Nothing was changed"
        )


# What of `Where` says something to which kind of backup.
_SAYS: dict[BackupKind, tuple[str, ...]] = {
    "postgres": ("database", "in_place", "tables"),
    "postgres-physical": ("folder", "until", "lsn"),
    "files": ("folder", "in_place"),  # which is refused with a reason
    "bucket": ("bucket",),
    "own-state": ("folder", "in_place"),
}


def _fits(manifest: Manifest, where: Where) -> None:
    """Raises BadInput for what would not be heeded."""
    given = {name for name, value in vars(where).items() if value}
    if more := given - set(_SAYS[manifest.kind]):
        raise BadInput(
            f"{manifest.id} is a backup of the kind {manifest.kind}, to which "
            f"{', '.join(sorted(more)).replace('_', ' ')} says nothing. Nothing was changed"
        )
    if manifest.kind == "postgres-physical" and where.folder is None:
        raise BadInput(
            f"{manifest.id} is of a whole server: name an empty folder, its new data directory, "
            "--to-folder. Nothing was changed"
        )


def _restore_database(site: BackupSite, manifest: Manifest, where: Where) -> str:
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database, drop_database, swap

    assert site.target.postgres
    server = site.server
    name = where.database or _beside(server.dbname, site.clock())
    if where.in_place:
        with alone(site):
            safety = take(site)
        log.info("what is there now is kept as backup %s", safety.id)
    database = manifest.facts.database
    create_database(server, name, database)
    try:
        there = DatabaseRestore(server.at(name), tables=where.tables)
        there.restore(manifest, streams_of(site, manifest))
        _must_equal(there.differences(manifest))
    except BaseException:
        drop_database(server, name)
        log.warning("%s was removed again; %s is untouched", name, server.dbname)
        raise
    if where.tables:
        words = ", ".join(where.tables)
        return f"{words} of {manifest.id} is in the new database {name}, equal to its manifest"
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


def _restore_objects(site: BackupSite, manifest: Manifest, where: Where) -> str:
    from blocks.bucket_source import BucketRestore

    if where.bucket is None:
        raise BadInput(
            f"{site.place}: name an empty bucket, or an empty prefix of one: --to-bucket "
            "s3://…; look at what is in it, and have the service use it. Nothing was changed"
        )
    there = BucketRestore(where.bucket, credentials_for(site.stack, where.bucket))
    there.restore(manifest, streams_of(site, manifest))
    _must_equal(there.differences(manifest))
    return f"{manifest.id} is in {where.bucket}, equal to its manifest"


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
