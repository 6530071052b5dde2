"""What a PostgreSQL database holds, in numbers and hashes that are the same for the same content.

Taken in the snapshot of the dump, and of the restored copy; `compare` says in which way they
differ.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

TableKind = Literal["table", "partitioned table", "materialized view", "foreign table"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    name: str
    type: str  # as format_type says it
    not_null: bool
    default: str | None = None
    generated: str | None = None  # of a generated or identity column
    collation: str | None = None
    null_fraction: float | None = None  # of one that may be null, where rows were hashed


class Table(_Frozen):
    schema_name: str
    name: str
    rows: int
    # Sum of the hashes of all rows, modulo 2^64, in hex: the order does not matter. None where
    # hashing was not asked for.
    content_hash: str | None
    columns: tuple[Column, ...]
    keys: tuple[tuple[str, ...], ...] = ()  # columns of each primary key and unique constraint
    size_bytes: int = 0
    kind: TableKind = "table"  # a partitioned or foreign one holds no rows itself
    unlogged: bool = False
    populated: bool = True  # a materialized view may be not

    @property
    def full_name(self) -> str:
        return f"{self.schema_name}.{self.name}"


class Sequence(_Frozen):
    name: str  # with its schema
    last_value: int
    is_called: bool
    definition: str  # type, start, increment, bounds, cycle, owner
    increment: int = 1
    cycles: bool = False


class DatabaseFacts(_Frozen):
    name: str
    server_version: str
    encoding: str
    collation: str
    time_zone: str  # of its sessions by default; rows are hashed in UTC whatever it is
    settings: dict[str, str] = {}  # of the database, ALTER DATABASE … SET
    extensions: dict[str, str] = {}  # name -> version
    roles: tuple[str, ...] = ()  # that own something or are granted something in it
    definitions: dict[str, str] = {}  # "index shop.orders_pkey" -> its definition in SQL
    # Key of `definitions`, or "sequence …" -> full name of the table that it hangs on.
    hangs_on: dict[str, str] = {}
    schema_hash: str  # SHA-256 over tables' columns and `definitions`
    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...] = ()
    large_objects: int = 0
    large_objects_hash: str | None = None
    size_bytes: int = 0
    lsn: str  # of the write-ahead log, when the snapshot was taken
