"""What is said of a backup when it is taken, signed, and held against what is restored from it.

A backup is what its manifest says: the manifest is written last, so what has none does not count.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from policy.database_facts import DatabaseFacts
from policy.wal_facts import WalFacts

BackupKind = Literal["postgres", "postgres-physical", "files", "bucket", "own-state"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredStream(Frozen):
    """One stream of a backup: zstd, then age, as one object."""

    name: str  # of the object in the folder of the backup: dump.zst.age
    size_bytes: int  # as it lies in the store
    sha256: str  # of that
    plain_bytes: int  # its content: zstd's own checksum (XXH64) of that is in the stream
    plain_sha256: str = ""  # of older manifests


class TreeFacts(Frozen):
    """Of directories and files, or of the objects of a bucket."""

    count: int
    total_bytes: int
    digest: str  # SHA-256 over the sorted lines "path mode size sha256"


class Facts(Frozen):
    """What must be true of a restored copy; which are there depends on what was backed up."""

    database: DatabaseFacts | None = None
    wal: WalFacts | None = None  # physical: which log it needs, and what held at one place of it
    tree: TreeFacts | None = None
    detail: dict[str, str] = {}  # what people want to know besides: host, path, ledger's newest id


class Manifest(Frozen):
    version: Literal[1] = 1
    id: str  # 20261125T021500123Z-3f9c21: sorts by time
    service: str
    environment: str
    target: str
    kind: BackupKind
    started_at: float  # seconds since the epoch
    snapshot_at: float  # what was committed by then is in it; RPO counts from here
    finished_at: float
    streams: tuple[StoredStream, ...]
    facts: Facts
    recipients: tuple[str, ...]  # age public keys
    locked_until: float | None = None
    tools: dict[str, str] = {}  # program -> version
    durations: dict[str, float] = {}  # step -> seconds

    @property
    def size_bytes(self) -> int:
        return sum(stream.size_bytes for stream in self.streams)

    @property
    def plain_bytes(self) -> int:
        return sum(stream.plain_bytes for stream in self.streams)


class Difference(Frozen):
    """One thing that is not as the manifest says."""

    what: str  # "table shop.orders: rows"
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found}, the manifest says {self.wanted}"
