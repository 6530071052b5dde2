"""Backups and drills for people: rows of a table, here and as Prefect artifacts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from blocks.backup_catalogue import Entry
from policy.drill import Drill
from policy.quantities import in_words
from tasks.backup_site import BackupSite
from tasks.publish import Publisher


def taken_row(site: BackupSite, by: str) -> dict[str, Any]:
    return {
        "target": str(site.place),
        "id": "",
        "bytes": 0,
        "stored": 0,
        "seconds": 0.0,
        "size": "",
        "copy": "",
        "dropped": 0,
        "by": by,
        "trouble": "",
    }


def drill_row(site: BackupSite, done: Drill | None, trouble: str, by: str) -> dict[str, Any]:
    return {
        "target": str(site.place),
        "id": done.backup_id if done else "",
        "verdict": done.verdict if done else "not done",
        "RPO": told(done.rpo_seconds) if done else "",
        "RTO": told(done.rto_seconds) if done else "",
        "checks": len(done.checks) if done else 0,
        "by": by,
        "trouble": trouble,
    }


def told(seconds: float | None) -> str:
    return "" if seconds is None else in_words(seconds)


def publish_backups(publisher: Publisher, rows: list[dict[str, Any]]) -> None:
    publisher.table("taken", rows, "Backups of this run")


def publish_drills(publisher: Publisher, rows: list[dict[str, Any]]) -> None:
    publisher.table("proved", rows, "Restore drills of this run")


def entry_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For a list: newest first."""
    return [_entry_row(entry) for entry in entries]


def _entry_row(entry: Entry) -> dict[str, Any]:
    manifest, newest = entry.manifest, entry.drills[0] if entry.drills else None
    return {
        "id": entry.id,
        "target": str(entry.place),
        "kind": manifest.kind if manifest else "",
        "taken": at(manifest.snapshot_at) if manifest else "",
        "bytes": manifest.plain_bytes if manifest else None,
        "stored": sum(entry.sizes.values()),
        "state": state(entry),
        "drilled": at(newest.at) if newest else "",
        "locked until": at(manifest.locked_until) if manifest and manifest.locked_until else "",
        "trouble": entry.trouble or "; ".join(newest.reasons if newest else []),
    }


def state(entry: Entry) -> str:
    if entry.manifest is None:
        return "unfinished" if entry.trouble in UNFINISHED else "not ours"
    return {True: "proved", False: "bad", None: "not tried"}[entry.good]


UNFINISHED = ("is being written", "was never finished")


def at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
