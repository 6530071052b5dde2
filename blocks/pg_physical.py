"""A physical backup of a whole PostgreSQL server: `pg_basebackup`, beside the log that the server
archives itself (`wal_archive.py`).

Invariant: a copy alone is no backup. It ends well only when the log that it needs is in the vault,
and the log up to a place of which it is known what every table held there.
"""

import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from blocks.pg_proved_place import Counts, a_place, databases, facts_of, written
from blocks.ports import Copying, Vault
from blocks.postgres import Server, pg_tool, tool_version
from blocks.wal_readiness import check, finish_segment, missing, wait_archived
from policy.backup_manifest import BackupKind, Facts
from policy.errors import BadInput, DafnckError, NotApplied
from policy.wal_facts import WalFacts
from policy.wal_segments import segments

STREAM = "base"
LOOK_SECONDS = 1.0
# The server waits in it for its archiver, for ever if need be.
WAITS = "waiting for wal archiving to finish"


class PhysicalSource:
    """A BackupSource. `prefix`: of the target's keys, as its WAL is archived under.
    `wal_within_seconds`: how long the server's archiver may take for what a backup needs of it.
    `settings_file`: of the WAL archive, for what an error says to write to postgresql.conf."""

    kind: BackupKind = "postgres-physical"

    def __init__(
        self,
        server: Server,
        vault: Vault,
        prefix: str,
        *,
        hashes: bool = True,
        wal_within_seconds: float = 600.0,
        settings_file: Path | None = None,
    ) -> None:
        self._server, self._vault, self._prefix = server, vault, prefix
        self._hashes, self._within = hashes, wal_within_seconds
        self._settings_file = settings_file

    def begin(self) -> AbstractContextManager[Copying]:
        return self._begin()

    @contextmanager
    def _begin(self) -> Iterator[Copying]:
        with ExitStack() as held:
            connection = held.enter_context(self._server.connect(autocommit=True))
            check(connection, self._settings_file)
            _one_tablespace(connection)
            tool = pg_tool("pg_basebackup", connection.info.server_version // 10000)
            names = databases(connection)
            since = written(self._server, names)
            segment = finish_segment(connection)
            wait_archived(connection, self._vault, self._prefix, segment, self._within)
            environment = held.enter_context(self._server.tool_environment())
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="dafnck-")))
            copy = _Copy(
                server=self._server,
                connection=connection,
                vault=self._vault,
                prefix=self._prefix,
                tool=tool,
                environment=dict(environment),
                scratch=scratch,
                since=since,
                hashes=self._hashes,
                within_seconds=self._within,
                label=f"dafnck {secrets.token_hex(8)}",
            )
            held.callback(copy.end)
            yield copy


def _one_tablespace(connection: Any) -> None:
    rows = connection.execute(
        "SELECT spcname FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')"
    ).fetchall()
    if rows:
        raise BadInput(
            f"the server has tablespaces of its own ({', '.join(str(row[0]) for row in rows)}): a "
            "physical backup of them is not supported. Move what is in them to pg_default "
            "(ALTER TABLE … SET TABLESPACE) and drop them, or take a logical backup"
        )


@dataclass
class _Copy:
    server: Server
    connection: Any
    vault: Vault
    prefix: str
    tool: Path
    environment: dict[str, str]
    scratch: Path
    since: dict[str, Counts]
    hashes: bool
    within_seconds: float
    label: str
    copied: bool = False
    process: "subprocess.Popen[bytes] | None" = None
    moment: float = 0.0
    stuck: bool = False

    @property
    def snapshot_at(self) -> float:
        """Of the proved place, which comes after the copy; when it began, before that."""
        return self.moment or time.time()

    def tools(self) -> dict[str, str]:
        return {"pg_basebackup": tool_version(self.tool)}

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        with (self.scratch / "said").open("w+b") as said:
            process = self._start(said)
            over = threading.Event()
            watch = threading.Thread(target=self._watch, args=(process, over), name="archiver")
            watch.start()
            try:
                assert process.stdout is not None
                yield STREAM, process.stdout  # type: ignore[misc]
                process.stdout.close()
                code = process.wait()
            finally:
                over.set()
                self.end()
                watch.join()
            if code != 0:
                raise NotApplied(
                    f"pg_basebackup ended with {code}; there is no backup of it. It said: "
                    + self._why(said)
                )
        self.copied = True

    def _start(self, said: IO[bytes]) -> "subprocess.Popen[bytes]":
        self.process = subprocess.Popen(
            [
                *(self.tool, "--pgdata=-", "--format=tar", "--wal-method=none"),
                *("--checkpoint=fast", "--manifest-checksums=SHA256", "--no-password"),
                *(f"--label={self.label}",),
            ],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        return self.process

    def _watch(self, process: "subprocess.Popen[bytes]", over: threading.Event) -> None:
        """End it when the server waits too long for its archiver. When the server is gone,
        pg_basebackup notices itself."""
        import psycopg

        since: float | None = None
        with (
            suppress(psycopg.Error, DafnckError),
            self.server.connect(autocommit=True) as connection,
        ):
            while not over.wait(LOOK_SECONDS):
                waits = connection.execute(
                    "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = %s", (WAITS,)
                ).fetchone()
                if not waits or not waits[0]:
                    since = None
                elif since is None:
                    since = time.monotonic()
                elif time.monotonic() - since > self.within_seconds:
                    self.stuck = True
                    process.send_signal(signal.SIGTERM)
                    return

    def _why(self, said: IO[bytes]) -> str:
        if self.stuck:
            return (
                f"the server's archiver did not store the log of the copy within "
                f"{self.within_seconds:g}s; look into the server's log"
            )
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line]
        return " / ".join(lines[-3:])[-600:] or "nothing"

    def end(self) -> None:
        """What still runs is killed: nobody reads it to its end."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdout is not None:
            process.stdout.close()
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def facts(self) -> Facts:
        if not self.copied:
            raise NotApplied("the copy was not read to its end; there are no facts of it")
        start, stop, timeline = self._ends()
        stopped_at = self._clock()
        system, version, segment_bytes, libraries, superuser = self.connection.execute(
            "SELECT (SELECT system_identifier::text FROM pg_control_system()), "
            "current_setting('server_version'), (SELECT setting::bigint FROM pg_settings "
            "WHERE name = 'wal_segment_size'), current_setting('shared_preload_libraries'), "
            "(SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1)"
        ).fetchone()
        with a_place(self.server, self.connection, list(self.since)) as place:
            last = finish_segment(self.connection)
            self.moment = place.at
            proved = facts_of(place, self.server, self.since, hashes=self.hashes)
        wait_archived(self.connection, self.vault, self.prefix, last, self.within_seconds)
        needed = segments(timeline, start, stop, segment_bytes)
        reach = segments(timeline, start, proved.lsn, segment_bytes)
        if lacking := missing(self.vault, self.prefix, {*needed, *reach}):
            raise NotApplied(
                f"the log of the copy has holes in {self.prefix}/wal: {', '.join(lacking[:5])}"
                f"{' …' if len(lacking) > 5 else ''}; there is no backup of it. Look into the log "
                "of the server's archiver, then take another"
            )
        return Facts(
            detail={"database": self.server.dbname},
            wal=WalFacts(
                system_identifier=system,
                timeline=timeline,
                start_lsn=start,
                stop_lsn=stop,
                segments=tuple(needed),
                segment_bytes=segment_bytes,
                server_version=version,
                stopped_at=stopped_at,
                proved_lsn=proved.lsn,
                proved_at=proved.at,
                at_start=proved.before,
                at_stop=proved.after,
                churn=proved.churn,
                superuser=superuser or "postgres",
                libraries=tuple(one.strip() for one in libraries.split(",") if one.strip()),
            ),
        )

    def _ends(self) -> tuple[str, str, int]:
        """-> where the log of the copy begins and ends, and its timeline: the server wrote a file
        of it when it ended."""
        rows = self.connection.execute(
            "SELECT pg_read_file('pg_wal/' || name) FROM pg_ls_waldir() WHERE name LIKE '%.backup' "
            "ORDER BY modification DESC"
        )
        for (text,) in rows.fetchall():
            told = dict(line.split(": ", 1) for line in str(text).splitlines() if ": " in line)
            if told.get("LABEL") == self.label:
                start = told["START WAL LOCATION"].split(" ")[0]
                stop = told["STOP WAL LOCATION"].split(" ")[0]
                return start, stop, int(told["STOP TIMELINE"])
        raise NotApplied(
            f"the server keeps no pg_wal/*.backup of this copy ({self.label}): it cannot be told "
            "which log it needs; there is no backup of it. Take another"
        )

    def _clock(self) -> float:
        row = self.connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        return float(row[0])
