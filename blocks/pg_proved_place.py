"""What every table of a server held at one place of its write-ahead log.

No snapshot of PostgreSQL has a place in the log: a transaction is in the log a little before others
see it. So two are taken of each database, one before the place is read, one after all that was
being committed then is seen; what is the same in both was so at that place.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from blocks.pg_facts import database_facts, lock_tables, read_sequences
from blocks.postgres import Server
from policy.database_facts import DatabaseFacts, Sequence
from policy.wal_facts import Churn

LOCKS_WITHIN_SECONDS = 60.0
COMMITS_END_SECONDS = 10.0  # a transaction that takes longer is not at its commit

Counts = dict[str, tuple[int, int]]  # table -> rows inserted, deleted since its statistics began


@dataclass(frozen=True)
class Proved:
    lsn: str
    at: float  # seconds since the epoch, of the server's clock
    before: tuple[DatabaseFacts, ...]
    after: tuple[DatabaseFacts, ...]
    churn: tuple[Churn, ...]


@dataclass(frozen=True)
class Place:
    lsn: str
    at: float
    before: dict[str, Any]  # database -> a connection in its snapshot
    after: dict[str, Any]
    sequences: dict[str, tuple[Sequence, ...]]  # as they were before: they know no snapshots


def databases(connection: Any) -> list[str]:
    """Those that people can have something in."""
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
    )
    return [str(row[0]) for row in rows.fetchall()]


def written(server: Server, names: list[str]) -> dict[str, Counts]:
    """By database, how much was written to each table so far."""
    found = {}
    for name in names:
        with server.at(name).connect(autocommit=True) as connection:
            rows = connection.execute(
                "SELECT schemaname || '.' || relname, n_tup_ins, n_tup_del FROM pg_stat_user_tables"
            )
            found[name] = {str(table): (int(a), int(b)) for table, a, b in rows.fetchall()}
    return found


@contextmanager
def a_place(server: Server, connection: Any, names: list[str]) -> Iterator[Place]:
    """Open both snapshots of these databases, around one place of the log."""
    with ExitStack() as held:
        before, after, sequences = {}, {}, {}
        for name in names:
            before[name] = held.enter_context(_snapshot(server.at(name)))
            # Emptying or rewriting a table is not hidden from older snapshots.
            lock_tables(before[name], LOCKS_WITHIN_SECONDS)
            sequences[name] = read_sequences(before[name])
        lsn, at = connection.execute(
            "SELECT pg_current_wal_insert_lsn()::text, extract(epoch FROM clock_timestamp())"
        ).fetchone()
        _let_commits_end(connection)
        for name in names:
            after[name] = held.enter_context(_snapshot(server.at(name)))
        yield Place(str(lsn), float(at), before, after, sequences)


def facts_of(place: Place, server: Server, since: dict[str, Counts], *, hashes: bool) -> Proved:
    """`since`: what `written` said when the backup began."""
    before, after, churn = [], [], []
    for name, connection in place.before.items():
        first = database_facts(connection, hashes=hashes, sequences=place.sequences[name])
        last = database_facts(place.after[name], hashes=hashes)
        before.append(first)
        after.append(last)
        if changed := _changed(first, last):
            now = written(server, [name])[name]
            churn += [_churn(name, table, since.get(name, {}), now) for table in changed]
    return Proved(place.lsn, place.at, tuple(before), tuple(after), tuple(churn))


@contextmanager
def _snapshot(server: Server) -> Iterator[Any]:
    with server.connect(autocommit=True) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SELECT pg_current_snapshot()")  # it is taken by the first query
        yield connection
        connection.execute("ROLLBACK")


def _let_commits_end(connection: Any) -> None:
    """Until all that may have been at its commit is seen by others. Who waits for its client has
    not begun to commit."""
    connection.execute("SELECT pg_switch_wal()")  # flushes the log, for which they wait
    rows = connection.execute(
        "SELECT pid, backend_xid::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL "
        "AND state IS DISTINCT FROM 'idle in transaction' AND pid <> pg_backend_pid()"
    )
    wanted = set(rows.fetchall())
    give_up = time.monotonic() + COMMITS_END_SECONDS
    while wanted and time.monotonic() < give_up:
        time.sleep(0.01)
        rows = connection.execute(
            "SELECT pid, backend_xid::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL "
            "AND state IS DISTINCT FROM 'idle in transaction'"
        )
        wanted &= set(rows.fetchall())


def _changed(before: DatabaseFacts, after: DatabaseFacts) -> list[str]:
    earlier = {table.full_name: (table.rows, table.content_hash) for table in before.tables}
    return [
        table.full_name
        for table in after.tables
        if earlier.get(table.full_name) != (table.rows, table.content_hash)
    ]


def _churn(database: str, table: str, since: Counts, now: Counts) -> Churn:
    old, new = since.get(table, (0, 0)), now.get(table, (0, 0))
    return Churn(
        database=database,
        table=table,
        inserted=max(0, new[0] - old[0]),
        deleted=max(0, new[1] - old[1]),
    )
