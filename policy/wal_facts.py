"""What a physical backup needs of the write-ahead log, and what is true at one place of it.

A backup of a running server shows no moment of itself; replayed up to `proved_lsn` it does. Two
snapshots are taken of each database, one just before that place and one just after: whatever is
the same in both is the same in a copy that was recovered up to there, to the last row. The two are
milliseconds apart, so little differs, however long the copy took.
"""

from pydantic import BaseModel, ConfigDict

from policy.database_facts import DatabaseFacts
from policy.wal_segments import SEGMENT_BYTES


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Churn(_Frozen):
    """How many rows were written to a table that differs between the two snapshots, since the
    backup began."""

    database: str
    table: str  # with its schema
    inserted: int
    deleted: int


class WalFacts(_Frozen):
    system_identifier: str
    timeline: int
    start_lsn: str
    stop_lsn: str  # a copy cannot be opened before
    segments: tuple[str, ...]  # file names that the copy cannot be opened without
    segment_bytes: int = SEGMENT_BYTES
    server_version: str
    stopped_at: float = 0.0  # seconds since the epoch, of the server's clock, at `stop_lsn`
    proved_lsn: str = ""  # where the facts hold; records that begin before it count
    proved_at: float = 0.0
    at_start: tuple[DatabaseFacts, ...] = ()  # of each database, just before `proved_lsn`
    at_stop: tuple[DatabaseFacts, ...] = ()  # and just after it
    churn: tuple[Churn, ...] = ()
    superuser: str = "postgres"  # one who can log in
    libraries: tuple[str, ...] = ()  # of shared_preload_libraries
