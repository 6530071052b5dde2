"""Restores a backup where nobody uses it, holds it against everything that is known of it, and
leaves signed evidence."""

import hashlib
import logging
import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.backup_catalogue import Entry
from blocks.ports import StreamOf
from blocks.sealing import opening
from policy.backup_manifest import Difference, Manifest
from policy.drill import Check, Drill, recovery_point, recovery_time, verdict
from policy.errors import Damaged, NotApplied, Refused
from policy.release import Verdict
from tasks.backup import Steps, size_trend
from tasks.backup_site import BackupSite, scratch_of
from tasks.drill_place import somewhere
from tasks.held import held

log = logging.getLogger("dafnck")

# In the words of libc and PostgreSQL.
FULL = re.compile(r"No space left on device|Disk quota exceeded|disk full", re.IGNORECASE)
SHOWN = 10  # differences that are told one by one
CONTENT = "content"


def streams_of(site: BackupSite, manifest: Manifest) -> StreamOf:
    """The decrypted streams of a backup, each held against its checksums while it is read."""

    @contextmanager
    def stream_of(name: str) -> Iterator[BinaryIO]:
        stored = next((one for one in manifest.streams if one.name.split(".")[0] == name), None)
        if stored is None:
            raise Damaged(f"{manifest.id} has no stream {name}")
        digest = hashlib.sha256()

        def content() -> Iterator[bytes]:
            folder = f"{site.place.prefix}{manifest.id}/"
            for piece in site.vault.read(folder + stored.name):
                digest.update(piece)
                yield piece

        with opening(content(), site.key.file, stored.plain_bytes) as pipe:
            yield pipe
        if digest.hexdigest() != stored.sha256:
            raise Damaged(f"{stored.name} is not what was written: its SHA-256 differs")

    return stream_of


def choose(site: BackupSite, backup_id: str | None, seed: int) -> Entry:
    """The backup for a drill: the named one, the newest, or any. Raises Refused when none is."""
    if backup_id:
        return site.catalogue.entry(site.place, backup_id)
    entries = [entry for entry in site.catalogue.entries(site.place) if entry.published]
    if not entries:
        raise Refused(f"there is no backup of {site.place} in {site.vault}: dafnck backup now")
    if site.target.drill == "random":
        return random.Random(seed).choice(entries)
    return entries[0]


@task(task_run_name="restore and compare {site}", cache_policy=NO_CACHE)
def drill(site: BackupSite, backup_id: str | None = None) -> Drill:
    """Does this backup bring everything back, in time? Its evidence lies beside it afterwards."""
    entry = choose(site, backup_id, seed=int(site.clock() * 1000))
    began, steps = site.clock(), Steps()
    checks: list[Check] = []
    until: float | None = None
    if entry.manifest is None or entry.trouble:
        checks.append(Check(name=CONTENT, verdict=Verdict.FAIL, reason=entry.trouble))
    else:
        restored, until = _restored(site, entry.manifest, steps)
        checks += restored
        checks.append(size_trend(site, entry.manifest))
    rto = steps.seconds.get("restore")
    rpo = _recovery_point(site, entry, checks, began, until)
    if rto is not None:
        checks.append(recovery_time(rto, site.target))
    drill = Drill(
        backup_id=entry.id,
        service=site.place.service,
        environment=site.place.environment,
        target=site.place.target,
        at=began,
        verdict=verdict(checks),
        checks=tuple(checks),
        rpo_seconds=rpo,
        rto_seconds=rto,
        durations=steps.seconds,
        restored_bytes=entry.manifest.plain_bytes if entry.manifest else 0,
        host=socket.gethostname(),
    )
    site.catalogue.record(entry, drill)
    return drill


def _recovery_point(
    site: BackupSite, entry: Entry, checks: list[Check], now: float, until: float | None
) -> float | None:
    """Of the newest backup that counts, be it this one or not. `until`: when the newest
    transaction was committed that this one came back with, by the log."""
    bad = any(check.verdict is Verdict.FAIL for check in checks)
    # What earlier drills said of this one does not count any more.
    found = [one for one in site.catalogue.whole(site.place) if one.id != entry.id]
    found += [] if bad else [entry]
    newest = max(found, key=lambda one: one.id, default=entry).manifest
    if not found or newest is None:
        words = "there is no other good backup"
        checks.append(Check(name="recovery point objective", verdict=Verdict.FAIL, reason=words))
        return None
    point = max(newest.snapshot_at, until or 0.0)
    checks.append(recovery_point(point, now, site.target))
    return max(0.0, now - point)


def _restored(
    site: BackupSite, manifest: Manifest, steps: Steps
) -> tuple[list[Check], float | None]:
    """-> (everything that a copy of it shows, how far its log reached). What goes wrong with the
    backup is what the drill is for; what goes wrong with the place is raised: no backup is bad
    because a machine has no room."""
    with scratch_of(site) as folder, somewhere(site, manifest, folder) as (where, database):
        try:
            with steps.measured("restore"):
                where.restore(manifest, streams_of(site, manifest))
            with steps.measured("compare"):
                checks = [_content(where.differences(manifest))]
        except (Damaged, NotApplied) as error:
            if FULL.search(str(error)):
                raise NotApplied(
                    f"there is no room for the restored copy in {folder.parent}, nothing is said "
                    f"of the backup: {error}. Make room, or name another place: "
                    "DAFNCK_DRILL_FOLDER"
                ) from None
            if manifest.facts.wal and isinstance(error, NotApplied):
                # A server that did not start, or was killed: it may be this machine's fault.
                raise NotApplied(f"nothing is said of the backup: {error}") from None
            return [Check(name=CONTENT, verdict=Verdict.FAIL, reason=str(error))], None
        until = getattr(where, "recovered_until", None)
        server = database()
        if server is not None and checks[0].verdict is Verdict.PASS:
            with steps.measured("expectations"):
                checks += held(site, manifest, server, folder, until)
        return checks, until.timestamp() if until else None


def _content(found: list[Difference]) -> Check:
    if not found:
        words = "all that the manifest says is there, and nothing else"
        return Check(name=CONTENT, verdict=Verdict.PASS, reason=words)
    words = "; ".join(map(str, found[:SHOWN]))
    if len(found) > SHOWN:
        words += f"; and {len(found) - SHOWN} more"
    return Check(name=CONTENT, verdict=Verdict.FAIL, reason=words)
