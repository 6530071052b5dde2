"""Where a drill restores to: a throw-away PostgreSQL, or an empty folder."""

from collections.abc import Iterator
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
) -> Iterator[tuple[Restoring, Server | None]]:
    """-> (the place, the database in it, if it is one). Gone afterwards."""
    if manifest.kind == "postgres":
        with _database(manifest, folder) as found:
            yield found
    elif manifest.kind == "own-state":
        from blocks.own_state import OwnStateRestore

        yield OwnStateRestore(folder / "home"), None
    else:
        from blocks.tree_source import TreeRestore

        yield TreeRestore(folder / "files"), None


@contextmanager
def _database(manifest: Manifest, folder: Path) -> Iterator[tuple[Restoring, Server | None]]:
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database

    if (facts := manifest.facts.database) is None:
        raise Damaged("its manifest says nothing of a database")
    major = int(facts.server_version.partition(".")[0])
    with throwaway(folder / "postgres", major=major) as server:
        create_database(server, DATABASE, facts)
        there = server.at(DATABASE)
        yield DatabaseRestore(there, create_roles=True), there
