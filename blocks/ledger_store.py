"""How the ledger is opened, its tables made, read and written: SQLAlchemy over SQLite (WAL) by
default, PostgreSQL by URL. Whatever goes wrong with the database is Unreachable, in one line."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random,
)

from blocks.ledger_audit_tables import have_audit
from blocks.ledger_tables import meta
from policy.errors import Unreachable

WRITE_SECONDS = 10.0  # so long another process may keep SQLite from being written to
BRIEF_SECONDS = 1.0  # where looking at the release, or traffic that goes back, would have to wait
IDLE_SECONDS = 60  # of our own process, in the middle of a transaction
SILENT_SECONDS = 5  # of a server: no lease lapses while its holder waits for one answer


class LedgerStore:
    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url`: an SQLAlchemy URL, or the path of an SQLite file."""
        if "://" not in url:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{url}"
        self.url = url
        self.clock, self.monotonic, self.sleep = clock, monotonic, sleep
        sqlite = url.startswith("sqlite")
        connect = {"timeout": WRITE_SECONDS} if sqlite else _patience(sa.make_url(url))
        # What is written may hold secrets: contents of configuration files, environments.
        self._engine = sa.create_engine(
            url, pool_pre_ping=not sqlite, hide_parameters=True, connect_args=connect
        )
        if sqlite:
            sa.event.listen(self._engine, "connect", _sqlite_settings)
        # Other processes may be making the same tables at the same moment.
        again = Retrying(
            retry=retry_if_exception_type(DBAPIError),
            wait=wait_random(0, 0.2),
            stop=stop_after_attempt(10) | stop_after_delay(SILENT_SECONDS),
            reraise=True,
        )
        with self._answering():
            again(_have_tables, self._engine)

    @property
    def home(self) -> str | None:
        """Who shares this ledger, when other machines cannot reach it; None when they can."""
        if not self.url.startswith("sqlite"):
            return None
        file = Path(f"{self.url.removeprefix('sqlite:///')}.home")
        if not file.exists():
            made = file.with_name(f".{file.name}.{uuid4().hex}")
            made.write_text(uuid4().hex[:12])
            with suppress(FileExistsError):
                os.link(made, file)  # whole, or another process was faster
            made.unlink()
        # With the host: a copy of the file on another machine is another home.
        return f"{socket.gethostname()}-{file.read_text()}"

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._answering(), self._engine.begin() as db:
            yield db

    @contextmanager
    def _writing_briefly(self) -> Iterator[sa.Connection]:
        """For what is good to have: a ledger that another process locks is not waited for."""
        with self._writing() as db:
            if db.dialect.name != "sqlite":
                yield db
                return
            db.exec_driver_sql(f"PRAGMA busy_timeout = {BRIEF_SECONDS * 1000:.0f}")
            try:
                yield db
            finally:
                db.exec_driver_sql(f"PRAGMA busy_timeout = {WRITE_SECONDS * 1000:.0f}")

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._answering(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # an answer, not a failure
        except SQLAlchemyError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            why = getattr(error, "orig", None) or error
            raise Unreachable(
                f"the ledger {where} cannot be used ({why}); what serves serves. Look at "
                "its disk and its server, then: dafnck status"
            ) from error


def _have_tables(engine: sa.Engine) -> None:
    """Make the tables that are missing, and in older ones the nullable columns that are. Whoever
    comes second fails on what the first one made, and finds it when asked again."""
    meta.create_all(engine)
    have_audit(engine)
    there = sa.inspect(engine)
    for table in meta.sorted_tables:
        known = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known and column.nullable:
                written = sa.schema.CreateColumn(column).compile(engine)
                with engine.begin() as db:
                    db.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {written}"))


def _patience(url: sa.URL) -> dict[str, Any]:
    """With a PostgreSQL server that does not answer. What the URL says itself is obeyed."""
    if url.get_backend_name() != "postgresql":
        return {}
    limits = {
        "connect_timeout": SILENT_SECONDS,
        "options": f"-c statement_timeout={SILENT_SECONDS * 1000} "
        # Who is stopped in the middle holds nobody else up for long.
        f"-c idle_in_transaction_session_timeout={IDLE_SECONDS * 1000}",
        "tcp_user_timeout": SILENT_SECONDS * 1000,  # a network that swallows what is sent
        "keepalives_idle": SILENT_SECONDS,
        "keepalives_interval": 1,
        "keepalives_count": SILENT_SECONDS,  # or an answer
    }
    return {name: limit for name, limit in limits.items() if name not in url.query}


def _sqlite_settings(connection: Any, _record: Any) -> None:
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
