"""Takes a backup: dump, zstd, age, vault, in constant memory; its manifest last."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.backup_catalogue import Catalogue, Entry, new_id, stored
from blocks.ports import BackupSource
from blocks.sealing import sealing
from blocks.vault_copy import copy
from policy.backup_manifest import Manifest, StoredStream
from policy.drill import Check, trend
from policy.errors import Damaged, NotApplied
from policy.quantities import in_words
from policy.retention import Fate, split
from tasks.backup_site import BackupSite, alone, salt, source_of
from tasks.retrying import when_unreachable

log = logging.getLogger("dafnck")

SUFFIX = ".zst.age"
DAY_SECONDS = 86400.0


@task(
    task_run_name="back up {site}",
    retries=2,
    retry_delay_seconds=30,
    retry_condition_fn=when_unreachable,
    cache_policy=NO_CACHE,
)
def back_up(site: BackupSite) -> Manifest:
    """Have one more backup, whole or not at all."""
    with alone(site):
        return take(site)


def take(site: BackupSite, source: BackupSource | None = None) -> Manifest:
    """Of what the site's target names, or of this source."""
    started, steps = site.clock(), Steps()
    if left := site.catalogue.tidy(site.place, started):
        log.info("removed what backups that died had left: %s", ", ".join(left))
    backup_id = new_id(started, salt())
    locked = started + site.lock_days * DAY_SECONDS if site.lock_days else None
    source = source or source_of(site)
    with source.begin() as copying:
        site.catalogue.begin(site.place, backup_id)
        try:
            streams = []
            for name, pipe in copying.streams():
                key = f"{site.place.prefix}{backup_id}/{name}{SUFFIX}"
                with steps.measured(name), sealing(pipe, site.recipients) as sealed:
                    size, digest = site.vault.write(key, sealed.chunks(), locked)
                    plain_bytes = sealed.plain_bytes()
                streams.append(
                    StoredStream(
                        name=f"{name}{SUFFIX}",
                        size_bytes=size,
                        sha256=digest,
                        plain_bytes=plain_bytes,
                    )
                )
                log.info("%s: %s bytes, %s in the vault", name, f"{plain_bytes:,}", f"{size:,}")
            # After the last: what wrote it may have said itself by then why it failed.
            if empty := [stream.name for stream in streams if not stream.plain_bytes]:
                raise NotApplied(f"what should have written {empty[0]} of {site} wrote nothing")
            with steps.measured("facts"):
                facts = copying.facts()
            manifest = Manifest(
                id=backup_id,
                service=site.place.service,
                environment=site.place.environment,
                target=site.place.target,
                kind=source.kind,
                started_at=started,
                snapshot_at=copying.snapshot_at,
                finished_at=site.clock(),
                streams=tuple(streams),
                facts=facts,
                recipients=site.recipients,
                locked_until=locked,
                tools=copying.tools(),
                durations=steps.seconds,
            )
            site.catalogue.publish(site.place, manifest)
        except BaseException:
            _give_up(site, backup_id)
            raise
    return manifest


def _give_up(site: BackupSite, backup_id: str) -> None:
    """Of what was begun nothing is left, where the vault answers; else the next one removes it."""
    try:
        site.catalogue.remove(site.catalogue.entry(site.place, backup_id))
    except Exception as error:
        log.warning("what was begun of %s is left: %s", backup_id, error)


@task(
    task_run_name="copy {site} to the second store",
    retries=2,
    retry_delay_seconds=30,
    retry_condition_fn=when_unreachable,
    cache_policy=NO_CACHE,
)
def replicate(site: BackupSite) -> str:
    """Have every whole backup in the second store too, read back from there. -> in words, with the
    lag."""
    if site.second is None:
        return ""
    copied = 0
    with alone(site):
        site.second.tidy(site.place, site.clock())
    damaged: Damaged | None = None
    log_files = 0
    try:
        log_files = _replicate_log(site)  # before what cannot be opened without it
    except Damaged as error:
        damaged = error  # which the backups need not wait for
    there = {entry.id for entry in site.second.entries(site.place) if not entry.trouble}
    for entry in reversed(site.catalogue.whole(site.place)):
        if entry.id in there or entry.manifest is None:
            continue
        with alone(site):
            site.second.begin(site.place, entry.id)
            digests = {entry.folder + one.name: one.sha256 for one in entry.manifest.streams}
            copy(site.vault, site.second.vault, digests, entry.manifest.locked_until)
            site.second.publish(site.place, entry.manifest)
        copied += 1
    if damaged is not None:
        raise damaged
    ages = [
        site.clock() - entry.manifest.snapshot_at
        for entry in site.second.whole(site.place)
        if entry.manifest
    ]
    lag = f"the newest there is {in_words(min(ages))} old" if ages else "there is none"
    more = f" and {log_files} files of the log" if log_files else ""
    return f"{copied}{more} copied to {site.second.vault}; {lag}"


def _replicate_log(site: BackupSite) -> int:
    if not site.target.is_physical:
        return 0
    from tasks.physical import replicate_log

    return replicate_log(site)


@task(task_run_name="prune {site}", cache_policy=NO_CACHE)
def prune(site: BackupSite, dry_run: bool = False) -> list[Fate]:
    """Remove what no rule keeps, in both stores. -> what became of each, and why"""
    with alone(site):
        now = site.clock()
        fates: list[Fate] = []
        known: list[Entry] = []  # drills leave their evidence in the first store alone
        for catalogue in (site.catalogue, *([site.second] if site.second else [])):
            entries = {entry.id: entry for entry in catalogue.entries(site.place)}
            decided = split(stored(list(entries.values()), known), site.target.keep, now)
            known = list(entries.values())
            for fate in decided:
                if not fate.keep and not dry_run:
                    catalogue.remove(entries[fate.id])
                    log.info("removed %s of %s from %s", fate.id, site.place, catalogue.vault)
            if site.target.is_physical and not dry_run:
                kept = {fate.id for fate in decided if fate.keep}
                left = [entry.manifest for entry in entries.values() if entry.id in kept]
                _prune_log(site, catalogue, [one for one in left if one])
            fates = fates or decided
    return fates


def _prune_log(site: BackupSite, catalogue: Catalogue, kept: list[Manifest]) -> None:
    from tasks.physical import prune_log

    if gone := prune_log(site, catalogue.vault, kept):
        log.info("removed %s files of the log of %s from %s", gone, site.place, catalogue.vault)


def size_trend(site: BackupSite, manifest: Manifest) -> Check:
    """Is it suspiciously small?"""
    earlier = [
        entry.manifest
        for entry in site.catalogue.whole(site.place)
        if entry.manifest and entry.manifest.snapshot_at < manifest.snapshot_at
    ]
    return trend(manifest, earlier, site.target.smaller_by)


class Steps:
    """Seconds of each step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = round(self._clock() - began, 3)
