"""Snapshots of EPSS (first.org) and KEV (cisa.gov) in the scan cache, each a file that somebody
brought. Both are small enough to read whole: some 300,000 lines in a third of a second."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.files import write_atomically
from policy.priority import Snapshot, SnapshotName, snapshot

MAX_BYTES = 256 * 2**20  # unpacked
FILES: dict[SnapshotName, str] = {"EPSS": "epss.json", "KEV": "kev.json"}


class BadSnapshot(Exception):
    """It cannot be taken over."""


class Snapshots:
    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def import_file(self, file: Path) -> Snapshot | None:
        """Take over an EPSS list (CSV, or that by gzip) or CISA's KEV list (JSON). -> which, with
        its date; None when it is neither. Raises BadSnapshot; what was there stays then."""
        try:
            content = _content(file)
            if content is None:
                return None
            if content.startswith(b"#model_version"):
                name: SnapshotName = "EPSS"
                held: dict[str, float] | list[str]
                at, held = _epss(content.decode())
            elif content.lstrip()[:1] == b"{":
                name = "KEV"
                at, held = _kev(json.loads(content))
            else:
                return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            words = f"no {error.args[0]}" if isinstance(error, KeyError) else error
            raise BadSnapshot(f"{file} is no list that can be read: {words}") from None
        if not held:
            raise BadSnapshot(f"{file} names no vulnerability")
        self._cache.mkdir(parents=True, exist_ok=True)
        write_atomically(self._cache / FILES[name], json.dumps({"at": at, "held": held}))
        return Snapshot(name, at)

    def dates(self) -> dict[SnapshotName, float | None]:
        return {name: _dated(self._read(name)) for name in FILES}

    def look_up(
        self, ids: Iterable[str], now: float, age_seconds: float
    ) -> tuple[dict[str, float], set[str], tuple[Snapshot, ...]]:
        """-> (EPSS by id, those that KEV names, of when both are and why they cannot be trusted).
        An old one is shown all the same; only gates must not pass by it."""
        wanted = {*ids}
        held = {name: self._read(name) for name in FILES}
        epss: Any = (held["EPSS"] or {}).get("held", {})
        kev: AbstractSet[str] = {*(held["KEV"] or {}).get("held", ())}
        return (
            {one: epss[one] for one in wanted if one in epss},
            wanted & kev,
            tuple(snapshot(name, _dated(held[name]), now, age_seconds) for name in FILES),
        )

    def _read(self, name: SnapshotName) -> Mapping[str, Any] | None:
        """None when there is none; one that was broken since is none."""
        try:
            content = json.loads((self._cache / FILES[name]).read_text())
        except (OSError, ValueError):
            return None
        good = isinstance(content, dict) and isinstance(content.get("at"), float)
        return content if good and isinstance(content.get("held"), dict | list) else None


def _dated(held: Mapping[str, Any] | None) -> float | None:
    return held["at"] if held else None


def _content(file: Path) -> bytes | None:
    """None for what is too large to be a list, as Trivy's database is."""
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(file) if packed else file.open("rb") as stream:
        start = stream.read(1)
        if start not in b"#{ \t\r\n":
            return None
        content = start + stream.read(MAX_BYTES)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    return content


def _epss(text: str) -> tuple[float, dict[str, float]]:
    """First line: #model_version:v2025.03.14,score_date:2026-11-23T12:55:00Z"""
    head, _, table = text.partition("\n")
    about = dict(part.split(":", 1) for part in head[1:].strip().split(",") if ":" in part)
    held = {row["cve"]: float(row["epss"]) for row in csv.DictReader(table.splitlines())}
    if bad := next((cve for cve, chance in held.items() if not 0 <= chance <= 1), None):
        raise ValueError(f"{bad} has no probability")
    return _moment(about["score_date"]), held


def _kev(document: Any) -> tuple[float, list[str]]:
    if not isinstance(document["catalogVersion"], str):
        raise ValueError("its catalogVersion is no text")
    return _moment(document["dateReleased"]), [one["cveID"] for one in document["vulnerabilities"]]


def _moment(words: str) -> float:
    """Without a zone it is UTC."""
    at = datetime.fromisoformat(words)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
