"""Where a drill restores to: a throw-away PostgreSQL, or an empty folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.pg_throwaway import throwaway
from blocks.ports import Restoring
from blocks.postgres import Server
from policy.backup_manifest import Manifest
from policy.errors import Damaged
from tasks.backup_site import BackupSite

DATABASE = "restored"


@contextmanager
def somewhere(
    site: BackupSite, manifest: Manifest, folder: Path
) -> Iterator[tuple[Restoring, Callable[[], Server | None]]]:
    """-> (the place; once restored: the database in it, if it is one). Gone afterwards."""
    if manifest.kind == "postgres":
        with _database(manifest, folder) as (where, database):
            yield where, lambda: database
    elif manifest.kind == "postgres-physical":
        from tasks.physical import drilled

        name = manifest.facts.detail.get("database", "postgres")
        with drilled(site, folder) as there:
            yield there, lambda: there.server.at(name)
    elif manifest.kind == "own-state":
        from blocks.own_state import OwnStateRestore

        yield OwnStateRestore(folder / "home"), _none
    elif manifest.kind == "bucket":
        from blocks.bucket_source import FolderOfObjects

        yield FolderOfObjects(folder / "objects"), _none
    else:
        from blocks.tree_source import TreeRestore

        yield TreeRestore(folder / "files"), _none


def _none() -> None:
    return None


@contextmanager
def _database(manifest: Manifest, folder: Path) -> Iterator[tuple[Restoring, Server]]:
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database

    if (facts := manifest.facts.database) is None:
        raise Damaged("its manifest says nothing of a database")
    major = int(facts.server_version.partition(".")[0])
    with throwaway(folder / "postgres", at_least=major) as server:
        create_database(server, DATABASE, facts)
        there = server.at(DATABASE)
        yield DatabaseRestore(there, create_roles=True), there
