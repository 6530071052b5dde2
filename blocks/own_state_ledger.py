"""The ledger as one SQLite file, wherever it lies, and back to where it shall lie."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from blocks.ledger_audit_tables import have_audit
from blocks.ledger_store import LedgerStore
from blocks.ledger_tables import (
    audit,
    audit_head,
    decisions,
    intents,
    leases,
    meta,
    releases,
    rollouts,
    samples,
)
from policy.errors import NotApplied, Refused, Unreachable
from policy.release import Phase, Release

WAIT_SECONDS = 10.0  # for whoever keeps an SQLite database from being read
AT_ONCE = 500  # rows


def sqlite_file(url: str) -> Path | None:
    """None for a ledger that a server keeps."""
    if "://" not in url:
        return Path(url)
    parsed = sa.make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def copy_ledger(url: str, target: Path) -> None:
    """One moment of it. Raises Unreachable, NotApplied."""
    source = sqlite_file(url)
    if source is not None:
        copy_sqlite(source, target)
        return
    ledger = _Moved(url)
    try:
        ledger.save_to(target)
    finally:
        ledger.close()
    _settle(target)


def copy_sqlite(source: Path, target: Path) -> None:
    """One moment of a database that others write to meanwhile; nobody waits for us. Raises
    Unreachable when it cannot be read, NotApplied when it is not whole."""
    try:
        # Read and write: else the log of a database that nobody has open could not be read.
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as there:
            there.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000:.0f}")
            with closing(sqlite3.connect(target)) as here:
                there.backup(here)
    except sqlite3.DatabaseError as error:
        raise Unreachable(f"{source} was not copied ({error}); nothing was changed") from None
    _settle(target)
    if trouble := sqlite_trouble(target):
        raise NotApplied(f"{source} is not whole, no backup was made of it: {trouble}")


def _settle(file: Path) -> None:
    """One file, without a log beside it."""
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A copy that nobody writes to, without leaving anything beside it."""
    address = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as db:
        yield db


def sqlite_trouble(file: Path) -> str:
    """What SQLite finds broken in it; empty when nothing is."""
    try:
        with reading(file) as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == "ok" else str(found)


def rows(file: Path) -> dict[str, int]:
    """Table of the ledger -> how many rows it has in this copy."""
    with reading(file) as db:
        there = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        return {
            name: int(db.execute(str(sa.select(sa.func.count()).select_from(table))).fetchone()[0])
            for name, table in sorted(meta.tables.items())
            if name in there
        }


def newest_rollout(file: Path) -> int | None:
    with reading(file) as db:
        newest: int | None = db.execute("SELECT max(id) FROM rollouts").fetchone()[0]
        return newest


def head_of_audit(file: Path) -> str:
    """number:hash of the newest entry; empty when there is none."""
    with reading(file) as db:
        try:
            row = db.execute("SELECT number, hash FROM audit_head").fetchone()
        except sqlite3.OperationalError:
            return ""  # of an older version
    return f"{row[0]}:{row[1]}" if row else ""


def last_sign(file: Path) -> float | None:
    """When anything was last written down in this copy. Seconds since the epoch."""
    columns = (
        *(rollouts.c.started_at, rollouts.c.finished_at, rollouts.c.closed_at),
        *(intents.c.at, intents.c.outcome_at, decisions.c.at, samples.c.at, leases.c.taken_at),
    )
    with reading(file) as db:
        told = [db.execute(str(sa.select(sa.func.max(one)))).fetchone()[0] for one in columns]
    return max((float(at) for at in told if at is not None), default=None)


def serving(file: Path) -> list[Release]:
    """What a recovery starts again: every stable release, and those that stand frozen."""
    query = (
        "SELECT content FROM releases WHERE id IN (SELECT release_id FROM stables UNION "
        "SELECT release_id FROM rollouts WHERE phase = ?) ORDER BY id"
    )
    with reading(file) as db:
        found = db.execute(query, (Phase.FROZEN.value,)).fetchall()
    return [Release.model_validate_json(content) for (content,) in found]


def frozen_places(file: Path) -> list[tuple[str, str]]:
    """(service, environment) in which a rollout stands between two releases."""
    query = "SELECT DISTINCT service, environment FROM rollouts WHERE phase = ? ORDER BY 1, 2"
    with reading(file) as db:
        return [(a, b) for a, b in db.execute(query, (Phase.FROZEN.value,))]


def load_ledger(file: Path, url: str) -> None:
    """Have this copy in the ledger of this URL, whole or not at all; a no-op when it is there.
    Raises Refused for a ledger that holds something else."""
    ledger = _Moved(url)
    try:
        ledger.load_from(file)
    finally:
        ledger.close()


class _Moved(LedgerStore):
    def save_to(self, target: Path) -> None:
        copy = sa.create_engine(f"sqlite:///{target}", hide_parameters=True)
        try:
            meta.create_all(copy)
            have_audit(copy)
            with (
                self._answering(),
                self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as db,
                copy.begin() as out,
            ):
                for table in meta.sorted_tables:
                    _copy_rows(table, db, out)
        finally:
            copy.dispose()

    def load_from(self, file: Path) -> None:
        copy = _Moved(str(file))  # has the columns that it did not know yet
        try:
            with copy._reading() as source, self._writing() as db:
                if (
                    db.execute(sa.select(rollouts.c.id).limit(1)).first()
                    or db.execute(sa.select(releases.c.id).limit(1)).first()
                    or db.execute(sa.select(audit.c.number).limit(1)).first()
                ):
                    if _what(db) == _what(source):
                        return
                    raise Refused(
                        f"the ledger {self._engine.url.render_as_string(hide_password=True)} holds "
                        "something else already; nothing was changed. Name an empty database: "
                        "DAFNCK_LEDGER_URL"
                    )
                for table in meta.sorted_tables:
                    _copy_rows(table, source, db)
                if db.dialect.name == "postgresql":
                    _go_on_counting(db)
        finally:
            copy.close()


def _copy_rows(table: sa.Table, source: sa.Connection, target: sa.Connection) -> None:
    if table is audit_head:  # it has its row from the beginning
        target.execute(table.delete())
    found = source.execution_options(yield_per=AT_ONCE).execute(table.select())
    for part in found.mappings().partitions():
        target.execute(table.insert(), [dict(row) for row in part])


def _what(db: sa.Connection) -> list[object]:
    """Enough to tell one ledger from another."""
    return [
        *db.execute(sa.select(rollouts.c.id, rollouts.c.started_at).order_by(rollouts.c.id)).all(),
        *db.execute(sa.select(releases.c.id).order_by(releases.c.id)).all(),
        *db.execute(sa.select(audit_head.c.number, audit_head.c.hash)).all(),
    ]


def _go_on_counting(db: sa.Connection) -> None:
    """A sequence knows nothing of rows that brought their numbers along."""
    for table in meta.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            if (newest := db.execute(sa.select(sa.func.max(column))).scalar()) is not None:
                db.execute(sa.select(sa.func.setval(sequence, newest)))
