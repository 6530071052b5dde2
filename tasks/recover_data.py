"""Brings the data of services back to where their files say that it is, compared with its manifest.

Nothing is ever written over: what holds something else is told, and stays. What holds exactly what
the backup says was restored by an attempt that died just then, and counts.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from blocks.backup_catalogue import Catalogue, Place
from blocks.files import scratch
from blocks.own_state_tar import facts_of, under
from blocks.postgres import Server, pg_tool, server_of
from blocks.recovery_key import RecoveryKey
from blocks.secret_files import SecretFiles
from blocks.stack import Stack
from policy.backup_manifest import Difference, Manifest
from policy.errors import DafnckError, Damaged, NotApplied, Refused
from policy.recovery import Came, Wanted
from tasks.backup_site import BackupSite, Store, credentials_for
from tasks.drill import streams_of
from tasks.recover_server import bring_server_back, missing_for_server

log = logging.getLogger("dafnck")

SHOWN = 3
MAINTENANCE = "postgres"  # a database that every server has


class Job:
    """One target, where its backups are looked for, and where it goes. No dataclass: Prefect would
    look into it."""

    def __init__(
        self,
        stack: Stack,
        key: RecoveryKey,
        catalogues: Sequence[Catalogue],
        wanted: Wanted,
        to_time: float | None = None,
        *,
        instead: bool = False,
        data: Path | None = None,
    ) -> None:
        """`catalogues`: the first one first. `instead`: of what is there, which is kept aside.
        `data`: directory of a whole server."""
        self.stack, self.key, self.catalogues = stack, key, catalogues
        self.wanted, self.to_time, self.instead, self.data = wanted, to_time, instead, data

    def __str__(self) -> str:
        return self.wanted.key

    @property
    def place(self) -> Place:
        return Place(self.wanted.service, self.wanted.environment, self.wanted.name)

    def newest_first(self) -> Iterator[tuple[Manifest, BackupSite]]:
        """What counts, of all stores; the same backup from the first one that has it."""
        found: dict[str, tuple[Manifest, BackupSite]] = {}
        troubles: list[DafnckError] = []
        for catalogue in self.catalogues:
            try:
                entries = catalogue.whole(self.place)
            except DafnckError as error:  # it may be what was lost
                log.warning("%s of %s is passed over: %s", catalogue.vault, self, error)
                troubles.append(error)
                continue
            for entry in entries:
                if entry.manifest and not self._too_young(entry.manifest):
                    found.setdefault(entry.id, (entry.manifest, self._site(catalogue)))
        if troubles and not found:
            raise troubles[0]
        yield from (found[backup_id] for backup_id in sorted(found, reverse=True))

    def _too_young(self, manifest: Manifest) -> bool:
        """A physical one goes on from its end, by its log; the others show their own moment."""
        wal = manifest.facts.wal
        return (
            self.to_time is not None
            and (wal.stopped_at if wal else manifest.snapshot_at) > self.to_time
        )

    def _site(self, catalogue: Catalogue) -> BackupSite:
        recipients = (self.key.recipient(),)
        return BackupSite(
            self.stack,
            self.place,
            self.wanted.target,
            catalogue,
            None,
            self.key,
            recipients,
            None,
            Store("", None),  # the catalogue has its vault already
        )


def missing_for(one: Wanted, data: Path | None, secrets: SecretFiles) -> Iterator[str]:
    """What a person must say or install before this can come back, in words. `secrets`: as they
    came back."""
    if one.target.postgres is None:
        return
    if one.target.is_physical:
        yield from missing_for_server(one, data, secrets)
        return
    try:
        _reached(server_of(one.target.postgres, secrets))
        pg_tool("pg_restore")
    except DafnckError as error:
        yield f"{one.key}: {str(error).partition(';')[0]}"


def _reached(server: Server) -> bool:
    """Is its database there? Raises Unreachable, NotAllowed when its server does not let us in."""
    with server.at(MAINTENANCE).connect() as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        return connection.execute(query, [server.dbname]).fetchone() is not None


def bring_back(job: Job) -> Came:
    """From its newest backup that counts; one that is damaged is told, and the next older one
    taken."""
    target, began = job.wanted.target, time.monotonic()
    came = Came(key=job.wanted.key, kind=job.wanted.kind, rpo=target.rpo, rto=target.rto)
    passed: list[str] = []
    try:
        for manifest, site in job.newest_first():
            try:
                until = _restored(job, site, manifest)
            except Damaged as error:
                passed.append(f"{manifest.id} was passed over: {error}")
                continue
            return came.model_copy(
                update={
                    "backup_id": manifest.id,
                    "until": until,
                    "seconds": time.monotonic() - began,
                    "restored_bytes": manifest.plain_bytes,
                    "notes": tuple(passed),
                }
            )
        where = ", ".join(str(catalogue.vault) for catalogue in job.catalogues)
        trouble = f"no backup of it counts in {where}"
    except DafnckError as error:
        trouble = str(error)
    return came.model_copy(
        update={
            "trouble": "; ".join([trouble, *passed]),
            "seconds": time.monotonic() - began,
            "notes": tuple(passed),
        }
    )


def _restored(job: Job, site: BackupSite, manifest: Manifest) -> float:
    """-> until when all is there."""
    if manifest.facts.wal is not None:
        return bring_server_back(site, manifest, job.data, job.to_time)
    if manifest.facts.database is not None:
        _database(site, manifest, job.instead)
    elif manifest.kind == "bucket":
        _bucket(site, manifest, job.instead)
    else:
        _files(site, manifest, job.instead)
    return manifest.snapshot_at


def _equal(found: list[Difference]) -> None:
    if found:
        words = "; ".join(map(str, found[:SHOWN]))
        raise NotApplied(f"what came back is not what was backed up: {words}")


def _database(site: BackupSite, manifest: Manifest, instead: bool) -> None:
    """Made when it is not there. A dump is restored in one transaction: killed, it is empty."""
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database

    assert site.target.postgres
    server = site.server
    if not _reached(server):
        create_database(server, server.dbname, manifest.facts.database)
    elif instead:
        _swapped(site, manifest, server)
        return
    there = DatabaseRestore(server, create_roles=True)
    try:
        there.restore(manifest, streams_of(site, manifest))
    except Refused:
        if there.differences(manifest):
            raise
        return
    _equal(there.differences(manifest))


def _swapped(site: BackupSite, manifest: Manifest, server: Server) -> None:
    """Restored beside what is there, compared, then under its name."""
    from blocks.pg_restore import DatabaseRestore
    from blocks.pg_swap import create_database, drop_database, swap

    beside = f"dafnck_{manifest.id}".lower().replace("-", "_")
    drop_database(server, beside)  # of an attempt that died
    create_database(server, beside, manifest.facts.database)
    try:
        there = DatabaseRestore(server.at(beside), create_roles=True)
        there.restore(manifest, streams_of(site, manifest))
        _equal(there.differences(manifest))
        aside = swap(server, server.dbname, beside)
    except BaseException:
        drop_database(server, beside)
        raise
    log.info("what was in %s is in the database %s from now on", server, aside)


def _bucket(site: BackupSite, manifest: Manifest, instead: bool) -> None:
    from blocks.bucket_source import BucketRestore

    assert site.target.bucket
    if instead:
        raise Refused(
            f"{site.place} is a bucket, and nothing is put in the place of its objects. By hand: "
            "dafnck restore --to-bucket, and name that one in the file"
        )
    there = BucketRestore(site.target.bucket, credentials_for(site.stack, site.target.bucket))
    there.restore(manifest, streams_of(site, manifest))
    _equal(there.differences(manifest))


def _files(site: BackupSite, manifest: Manifest, instead: bool) -> None:
    """Beside where they go, compared, then moved there."""
    from blocks.tree_source import TreeRestore

    targets = [Path(path) for path in site.target.files or []]
    beside = targets[0].parent
    beside.mkdir(parents=True, exist_ok=True)
    with scratch(beside, "recovered") as folder:
        there = TreeRestore(folder)
        there.restore(manifest, streams_of(site, manifest))
        _equal(there.differences(manifest))
        for source, target in zip(_sources(site, manifest), targets, strict=True):
            _move(folder / source.relative_to("/"), target, instead)


def _sources(site: BackupSite, manifest: Manifest) -> list[Path]:
    """Where they were when they were backed up: of another environment, elsewhere."""
    targets, told = site.target.files or [], manifest.facts.detail.get("paths", "")
    if ", ".join(targets) == told:
        return [Path(path) for path in targets]
    sources = [Path(path) for path in told.split(", ")]
    if len(sources) != len(targets):
        raise NotApplied(
            f"{manifest.id} holds {told}, and the file names {', '.join(targets)}: nobody knows "
            "what goes where. By hand: dafnck restore --to-folder"
        )
    return sources


def _move(restored: Path, path: Path, instead: bool) -> None:
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    if os.path.lexists(path):
        if _listed(path) == _listed(restored):
            return
        if not instead:
            raise Refused(f"{path} is there and holds something else; nothing of it was changed")
        aside = path.with_name(
            f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        )
        path.rename(aside)
        log.info("what was in %s is in %s from now on", path, aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(restored, path)


def _listed(path: Path) -> object:
    return facts_of(("." + name.removeprefix(path.name), one) for name, one in _under(path))


def _under(path: Path) -> Iterator[tuple[str, Path]]:
    return under(path.parent, path.name)
