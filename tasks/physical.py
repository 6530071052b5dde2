"""Physical backups of a PostgreSQL server: the log that it archives, beside the copies of it."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.pg_physical import PhysicalSource
from blocks.pg_point_in_time import PhysicalRestore
from blocks.pg_recovery_files import without_archiving
from blocks.pg_throwaway import server_folder
from blocks.wal_archive import archived, copy_log, gaps, no_longer_needed
from blocks.wal_readiness import missing
from policy.backup_manifest import Manifest
from policy.errors import BadInput, NotApplied, Refused
from policy.wal_segments import SEGMENT_BYTES, is_segment, lsn
from tasks.backup_site import BackupSite

if TYPE_CHECKING:
    from tasks.restore import Where

log = logging.getLogger("dafnck")


def prefix_of(site: BackupSite) -> str:
    """Of the target's keys, its log among them."""
    return site.place.prefix.removesuffix("/")


def source(site: BackupSite) -> PhysicalSource:
    assert site.target.postgres
    return PhysicalSource(site.server, site.vault, prefix_of(site))


@contextmanager
def drilled(site: BackupSite, folder: Path) -> Iterator[PhysicalRestore]:
    """Recovers by all the log that was archived; its server runs until the body ends."""
    with (
        server_folder(folder) as room,
        PhysicalRestore(room / "data", site.vault, prefix_of(site), site.key.file) as there,
    ):
        yield there


def restore_server(site: BackupSite, manifest: Manifest, where: "Where") -> str:
    """A data directory, shut down, for its own service to start. -> in words"""
    from tasks.drill import streams_of

    assert where.folder
    there = PhysicalRestore(
        where.folder,
        site.vault,
        prefix_of(site),
        site.key.file,
        target_time=where.until,
        target_lsn=where.lsn,
        drill=False,
    )
    there.restore(manifest, streams_of(site, manifest))
    if found := there.differences(manifest):
        words = "; ".join(map(str, found[:5]))
        raise NotApplied(f"what came back to {where.folder} is not what was backed up: {words}")
    without_archiving(where.folder)
    assert there.recovered
    until = there.recovered.until
    reached = f"its newest transaction is of {until.isoformat()}" if until else "as it was copied"
    return (
        f"{manifest.id} is in {where.folder}, recovered by {there.recovered.segments} segments of "
        f"the log to {there.recovered.lsn}; {reached}. It is shut down: start it with its own "
        "service (pg_ctl -D). It does not archive, for it would write into the log of the server "
        "that it is a copy of; when it takes that one's place: ALTER SYSTEM RESET archive_mode"
    )


def place_in_log(text: str) -> str:
    """'0/3000060'. Raises BadInput."""
    try:
        lsn(text)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return text


def reaches(manifest: Manifest, where: "Where") -> bool:
    """Was this backup over before the moment, or place in the log, that is wanted?"""
    wal = manifest.facts.wal
    if wal is None:
        return False
    if where.until is not None:
        return wal.stopped_at <= where.until.timestamp()
    return where.lsn is None or lsn(wal.stop_lsn) <= lsn(where.lsn)


def prune_log(site: BackupSite, vault: Any, kept: list[Manifest]) -> int:
    """Remove the log that no backup needs any more. `kept`: manifests of those that stay. -> how
    many files of it went"""
    needed = [one.facts.wal for one in kept if one.facts.wal]
    if not needed:
        return 0
    oldest = min(needed, key=lambda wal: wal.segments[0][8:])
    gone = 0
    for key in no_longer_needed(vault, prefix_of(site), oldest.segments[0], oldest.segment_bytes):
        try:
            vault.delete(key)
            gone += 1
        except Refused:  # locked yet: it goes when it may
            continue
    return gone


def replicate_log(site: BackupSite) -> int:
    """Have the log in the second store too, read back from there. -> files that were copied"""
    assert site.second
    locked = site.clock() + site.lock_days * 86400 if site.lock_days else None
    return copy_log(site.vault, site.second.vault, prefix_of(site), site.key.file, locked)


def lacking_log(site: BackupSite, segments: Iterable[str]) -> list[str]:
    """Which of these are not in the vault."""
    return missing(site.vault, prefix_of(site), segments)


def log_state(site: BackupSite) -> dict[str, Any]:
    """What of the log is there, for people and machines."""
    taken = [one.manifest.facts.wal for one in site.catalogue.entries(site.place) if one.manifest]
    segment_bytes = next((wal.segment_bytes for wal in taken if wal), SEGMENT_BYTES)
    there = archived(site.vault, prefix_of(site))
    segments = sorted(name for name in there if is_segment(name))
    holes = [str(one) for one in gaps(site.vault, prefix_of(site), segment_bytes)]
    needed = {name for wal in taken if wal for name in wal.segments}
    lacking = sorted(needed - there.keys())
    return {
        "target": str(site.place),
        "segments": len(segments),
        "first": segments[0] if segments else "",
        "last": segments[-1] if segments else "",
        "gaps": holes,
        "lacking": [name for name in lacking if name not in str(holes)],
        "twice": sorted(name for name, keys in there.items() if len(keys) > 1),
    }
