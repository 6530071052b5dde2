"""A logical backup of a database: pg_dump, and what the database holds, both of one snapshot.

pg_dump writes to a pipe, uncompressed in its custom format: whoever reads it compresses better, and
on the other cores. Meanwhile a second connection counts and hashes in the same snapshot: what the
dump forgets is found when the restored copy is counted the same way.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

from blocks.pg_facts import database_facts
from blocks.postgres import Server, last_words, pg_tool, tool_version
from policy.backup_manifest import BackupKind, Facts
from policy.database_facts import DatabaseFacts
from policy.errors import NotApplied

LOCK_WAIT = "60s"  # for a table that somebody alters
ROLES, DUMP = "roles", "dump"


class LogicalSource:
    """`hashes`: whether the content of each table is hashed, which reads it a second time."""

    kind: BackupKind = "postgres"

    def __init__(self, server: Server, *, hashes: bool = True) -> None:
        self._server, self._hashes = server, hashes

    @contextmanager
    def begin(self) -> Iterator["LogicalCopy"]:
        from psycopg import Error, IsolationLevel

        connection = self._server.connect()
        try:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            try:
                row = connection.execute(
                    "SELECT pg_export_snapshot(), extract(epoch FROM clock_timestamp()), "
                    "current_setting('server_version_num')::int"
                ).fetchone()
            except Error as error:
                words = self._server.without_secrets(str(error))
                raise NotApplied(f"{self._server} gives no snapshot: {words}") from None
            with ThreadPoolExecutor(1, thread_name_prefix="facts") as pool:
                yield LogicalCopy(
                    self._server, pool, str(row[0]), float(row[1]), row[2] // 10000, self._hashes
                )
        finally:
            connection.close()


class LogicalCopy:
    def __init__(
        self,
        server: Server,
        pool: ThreadPoolExecutor,
        snapshot: str,
        snapshot_at: float,
        major: int,
        hashes: bool,
    ) -> None:
        self._server, self._snapshot, self._at, self._major = server, snapshot, snapshot_at, major
        self._hashes = hashes
        self._facts: Future[DatabaseFacts] = pool.submit(self._look)

    @property
    def snapshot_at(self) -> float:
        return self._at

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        roles = pg_tool("pg_dumpall", self._major)
        words = [roles, "--roles-only", "--no-role-passwords", "--no-password", "--no-sync"]
        with self._tool(list(map(str, words))) as pipe:
            yield ROLES, pipe
        words = [pg_tool("pg_dump", self._major), "--format=custom", "--compress=0"]
        words += [f"--snapshot={self._snapshot}", f"--lock-wait-timeout={LOCK_WAIT}"]
        with self._tool([*map(str, words), "--no-password", "--no-sync"]) as pipe:
            yield DUMP, pipe

    @contextmanager
    def _tool(self, argv: list[str]) -> Iterator[BinaryIO]:
        """Its output; raises NotApplied at the end when it failed."""
        with tempfile.TemporaryFile() as said, self._server.tool_environment() as environment:
            process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
            )
            assert process.stdout
            try:
                yield process.stdout  # type: ignore[misc]
            except BaseException:
                process.kill()
                raise
            finally:
                process.stdout.close()
                code = process.wait()
            if code != 0:
                said.seek(0)
                raise NotApplied(last_words(self._server, argv[0], code, said.read()))

    def _look(self) -> DatabaseFacts:
        from psycopg import Error, IsolationLevel
        from psycopg.sql import SQL, Literal

        connection: Any = self._server.connect()
        try:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(self._snapshot)))
            return database_facts(connection, hashes=self._hashes)
        except Error as error:
            words = self._server.without_secrets(str(error))
            raise NotApplied(f"{self._server} could not be counted: {words}") from None
        finally:
            connection.close()

    def facts(self) -> Facts:
        return Facts(database=self._facts.result(), detail={"database": str(self._server)})

    def tools(self) -> dict[str, str]:
        return {"pg_dump": tool_version(pg_tool("pg_dump", self._major))}
