"""Restores a backup where nobody uses it, holds it against everything that is known of it, and
leaves signed evidence."""

import hashlib
import logging
import random
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

        plain = (stored.plain_bytes, stored.plain_sha256)
        with opening(content(), site.key.file, plain) as pipe:
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
    if entry.manifest is None or entry.trouble:
        checks.append(Check(name=CONTENT, verdict=Verdict.FAIL, reason=entry.trouble))
    else:
        checks += _restored(site, entry.manifest, steps)
        checks.append(size_trend(site, entry.manifest))
    rto = steps.seconds.get("restore")
    rpo = _recovery_point(site, entry, checks, began)
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
    site: BackupSite, entry: Entry, checks: list[Check], now: float
) -> float | None:
    """Of the newest backup that counts, be it this one or not."""
    whole = [one for one in site.catalogue.whole(site.place) if one.manifest]
    bad = {entry.id} if any(check.verdict is Verdict.FAIL for check in checks) else set()
    newest = next((one.manifest for one in whole if one.id not in bad and one.manifest), None)
    if newest is None:
        words = "there is no other good backup"
        checks.append(Check(name="recovery point objective", verdict=Verdict.FAIL, reason=words))
        return None
    checks.append(recovery_point(newest.snapshot_at, now, site.target))
    return max(0.0, now - newest.snapshot_at)


def _restored(site: BackupSite, manifest: Manifest, steps: Steps) -> list[Check]:
    """Everything that a copy of it shows. What goes wrong with the backup is what the drill is for;
    what goes wrong with the place is raised: no backup is bad because a machine has no room."""
    with scratch_of(site) as folder, somewhere(site, manifest, folder) as (where, server):
        try:
            with steps.measured("restore"):
                where.restore(manifest, streams_of(site, manifest))
            with steps.measured("compare"):
                checks = [_content(where.differences(manifest))]
        except (Damaged, NotApplied) as error:
            return [Check(name=CONTENT, verdict=Verdict.FAIL, reason=str(error))]
        if server is not None and checks[0].verdict is Verdict.PASS:
            with steps.measured("expectations"):
                checks += held(site, manifest, server, folder)
        return checks


def _content(found: list[Difference]) -> Check:
    if not found:
        words = "all that the manifest says is there, and nothing else"
        return Check(name=CONTENT, verdict=Verdict.PASS, reason=words)
    words = "; ".join(map(str, found[:SHOWN]))
    if len(found) > SHOWN:
        words += f"; and {len(found) - SHOWN} more"
    return Check(name=CONTENT, verdict=Verdict.FAIL, reason=words)
