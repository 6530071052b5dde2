"""Reads a backup whole, from its vault: is what lies there what was written, and does our key open
it? What comes back is a drill's to prove."""

from typing import Any

from policy.errors import Damaged, Refused, Unreachable
from tasks.backup_site import BackupSite
from tasks.drill import streams_of
from tasks.physical import lacking_log

PIECE_BYTES = 2**20


def verified(site: BackupSite, backup_id: str | None) -> dict[str, Any]:
    """-> a row for people; its `trouble` is empty when all is as it was written."""
    row: dict[str, Any] = {"target": str(site.place), "id": "", "verified": 0, "trouble": ""}
    entries = site.catalogue.entries(site.place)
    if backup_id:
        entries = [entry for entry in entries if entry.id == backup_id]
    if not entries:
        return row | {"trouble": "there is no such backup"}
    row["id"] = entries[0].id
    manifest = entries[0].manifest
    if manifest is None or entries[0].trouble:
        return row | {"trouble": entries[0].trouble}
    stream_of = streams_of(site, manifest)
    try:
        for stream in manifest.streams:
            with stream_of(stream.name.partition(".")[0]) as pipe:
                while piece := pipe.read(PIECE_BYTES):
                    row["verified"] += len(piece)
        if manifest.facts.wal and (lacking := lacking_log(site, manifest.facts.wal.segments)):
            row["trouble"] = f"the log that it needs is not all there: {', '.join(lacking[:5])}"
    except (Damaged, Refused, Unreachable) as error:
        row["trouble"] = str(error)
    return row
