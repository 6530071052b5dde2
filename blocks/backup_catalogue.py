"""Which backups there are, by what lies in the vault alone: no database is asked.

    backups/<service>/<environment>/<target>/<id>/
        writing.json          which process writes it; gone when it is whole
        <name>.zst.age        its streams
        manifest.dsse.json    signed, written last: what has none is no backup
        drills/<time>.dsse.json    evidence of restore drills, signed

A manifest that is in another place than it names, or that nobody whom we trust has signed, is no
backup either: the first is how swapped backups look.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from blocks.ports import Vault
from blocks.processes import Process, machine, own
from blocks.signing import Forged, Keys
from policy.backup_manifest import Manifest
from policy.drill import Drill
from policy.errors import Damaged, Refused
from policy.retention import Stored

ROOT = "backups"
MANIFEST, WRITING, DRILLS = "manifest.dsse.json", "writing.json", "drills"
MANIFEST_BYTES = 64 * 2**20  # more is no manifest
STALE_SECONDS = 2 * 86400.0  # so long another machine may take for one backup
AT_ONCE = 8  # manifests that are read at the same time

_id = re.compile(r"(\d{8}T\d{6})(\d{3})Z-[0-9a-f]{6}")


@dataclass(frozen=True)
class Place:
    """Where the backups of one target lie."""

    service: str
    environment: str
    target: str

    @property
    def prefix(self) -> str:
        return f"{ROOT}/{self.service}/{self.environment}/{self.target}/"

    def __str__(self) -> str:
        return f"{self.target} of {self.service} in {self.environment}"


@dataclass(frozen=True)
class Entry:
    """One backup as it lies in the vault."""

    place: Place
    id: str
    sizes: dict[str, int] = field(repr=False)  # name in its folder -> bytes
    manifest: Manifest | None = None
    drills: tuple[Drill, ...] = ()  # newest first
    trouble: str = ""  # why it does not count

    @property
    def good(self) -> bool | None:
        """As its newest drill that says something of it; None when none does."""
        if self.manifest is None or self.trouble:
            return False
        for drill in self.drills:
            if drill.blames_the_backup:
                return False
            if drill.verdict == "pass" or drill.reasons:  # only an objective was missed
                return True
        return None

    @property
    def published(self) -> bool:
        """Somebody says that it is a whole backup, rightly or not."""
        return MANIFEST in self.sizes

    @property
    def folder(self) -> str:
        return f"{self.place.prefix}{self.id}/"


def new_id(at: float, salt: bytes) -> str:
    """'20261125T021500123Z-3f9c21': sorts by time. `salt`: random."""
    moment, digest = datetime.fromtimestamp(at, UTC), hashlib.sha256(salt).hexdigest()
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03}Z-{digest[:6]}"


def taken_at(backup_id: str) -> float:
    """Seconds since the epoch."""
    found = _id.fullmatch(backup_id)
    assert found, backup_id
    return datetime.strptime(f"{found[1]}Z", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


class Catalogue:
    """The backups of one vault. `keys`: whose signatures count."""

    def __init__(self, vault: Vault, keys: Keys) -> None:
        self.vault, self._keys = vault, keys

    def places(self) -> list[Place]:
        found = set()
        for key in self.vault.sizes(f"{ROOT}/"):
            parts = key.split("/")
            if len(parts) > 5 and _id.fullmatch(parts[4]):
                found.add(Place(*parts[1:4]))
        return sorted(found, key=str)

    def entries(self, place: Place) -> list[Entry]:
        """Newest first, with those that do not count and why."""
        folders: dict[str, dict[str, int]] = {}
        for key, size in self.vault.sizes(place.prefix).items():
            backup_id, _, name = key.removeprefix(place.prefix).partition("/")
            if name and _id.fullmatch(backup_id):
                folders.setdefault(backup_id, {})[name] = size
        newest = sorted(folders, reverse=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda one: self._entry(place, one, folders[one]), newest))

    def entry(self, place: Place, backup_id: str) -> Entry:
        """Raises Refused when there is none."""
        found = [one for one in self.entries(place) if one.id == backup_id]
        if not found:
            raise Refused(f"there is no backup {backup_id} of {place} in {self.vault}")
        return found[0]

    def whole(self, place: Place) -> list[Entry]:
        """Those that count and no drill proved bad, newest first."""
        return [one for one in self.entries(place) if one.good is not False]

    def _entry(self, place: Place, backup_id: str, sizes: dict[str, int]) -> Entry:
        entry = Entry(place, backup_id, sizes)
        try:
            if MANIFEST not in sizes:
                raise Damaged(self._unfinished(entry))
            manifest = self._manifest(entry)
            drills = [name for name in sizes if name.startswith(f"{DRILLS}/")]
            read = (self._drill(entry, name) for name in sorted(drills, reverse=True))
            told = tuple(drill for drill in read if drill is not None)
            return Entry(place, backup_id, sizes, manifest, told, _incomplete(manifest, sizes))
        except Damaged as error:
            return Entry(place, backup_id, sizes, trouble=str(error))

    def _unfinished(self, entry: Entry) -> str:
        return "is being written" if self.is_written(entry) else "was never finished"

    def _manifest(self, entry: Entry) -> Manifest:
        content = self._signed(entry, MANIFEST)
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Damaged(f"its manifest cannot be read: {first['loc']}: {first['msg']}") from None
        named = (manifest.service, manifest.environment, manifest.target, manifest.id)
        place = entry.place
        if named != (place.service, place.environment, place.target, entry.id):
            raise Damaged(f"it is another one, {'/'.join(named)}: somebody moved it here")
        return manifest

    def _drill(self, entry: Entry, name: str) -> Drill | None:
        """Evidence that is none says nothing, neither good nor bad."""
        try:
            drill = Drill.model_validate_json(self._signed(entry, name))
        except (Damaged, ValidationError):
            return None
        return drill if drill.backup_id == entry.id else None

    def _signed(self, entry: Entry, name: str) -> bytes:
        if entry.sizes[name] > MANIFEST_BYTES:
            raise Damaged(f"{name} has {entry.sizes[name]:,} bytes: that is none of ours")
        envelope = b"".join(self.vault.read(entry.folder + name))
        try:
            return self._keys.verify(envelope.decode(errors="replace"))[0]
        except Forged as error:
            raise Damaged(f"{name} is not ours: {error}") from None

    # -- writing -------------------------------------------------------------------------------

    def begin(self, place: Place, backup_id: str) -> None:
        """Say who writes it, before its first stream."""
        me = own()
        content = {"machine": machine(), "pid": me.pid, "started": me.started}
        self.vault.write(f"{place.prefix}{backup_id}/{WRITING}", [json.dumps(content).encode()])

    def publish(self, place: Place, manifest: Manifest) -> None:
        """The last write: from now on it is a backup."""
        folder = f"{place.prefix}{manifest.id}/"
        envelope = self._keys.sign(manifest.model_dump_json().encode())
        self.vault.write(folder + MANIFEST, [envelope.encode()], manifest.locked_until)
        self.vault.delete(folder + WRITING)

    def record(self, entry: Entry, drill: Drill) -> str:
        """-> the key of the evidence."""
        at = f"{datetime.fromtimestamp(drill.at, UTC):%Y%m%dT%H%M%S.%fZ}"
        key = f"{entry.folder}{DRILLS}/{at}.dsse.json"
        self.vault.write(key, [self._keys.sign(drill.model_dump_json().encode()).encode()])
        return key

    def remove(self, entry: Entry) -> None:
        """Its manifest first, so that half of it is never taken for a backup. Raises Refused when
        it is locked: nothing is gone then."""
        names = sorted(entry.sizes, key=lambda name: name != MANIFEST)
        for name in names:
            self.vault.delete(entry.folder + name)

    def is_written(self, entry: Entry) -> bool:
        """Does somebody write it now?"""
        if WRITING not in entry.sizes:
            return False
        try:
            said = json.loads(b"".join(self.vault.read(entry.folder + WRITING)))
            here, process = said["machine"] == machine(), Process(said["pid"], said["started"])
        except (Refused, ValueError, LookupError, TypeError):
            return False
        return process.alive() if here else True

    def tidy(self, place: Place, now: float) -> list[str]:
        """Remove what backups that died left there. -> their ids"""
        gone = []
        for entry in self.entries(place):
            if MANIFEST in entry.sizes:
                if WRITING in entry.sizes:  # died between its last two writes
                    self.vault.delete(entry.folder + WRITING)
                continue
            if self.is_written(entry) and now - taken_at(entry.id) < STALE_SECONDS:
                continue
            self.remove(entry)
            gone.append(entry.id)
        return gone + self.vault.tidy(place.prefix)


def _incomplete(manifest: Manifest, sizes: dict[str, int]) -> str:
    for stream in manifest.streams:
        if (size := sizes.get(stream.name)) != stream.size_bytes:
            there = "is missing" if size is None else f"has {size:,} bytes"
            return f"{stream.name} {there}, written were {stream.size_bytes:,}"
    return ""


def stored(entries: Sequence[Entry], known: Sequence[Entry] = ()) -> list[Stored]:
    """As retention sees them; those without a manifest are `tidy`'s. `known`: of another vault,
    from which they were copied, with what drills said of them there."""
    proved = {one.id: one.good for one in known if one.drills}
    return [
        Stored(
            one.id,
            one.manifest.snapshot_at,
            proved.get(one.id, one.good) if not one.trouble else False,
            one.manifest.locked_until,
        )
        for one in entries
        if one.manifest is not None
    ]
