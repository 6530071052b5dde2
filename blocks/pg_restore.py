"""Restores a logical backup into an empty database, and says in what it is not the one that was
backed up."""

import subprocess
import tempfile
from collections.abc import Sequence

from blocks.pg_dump import DUMP
from blocks.pg_facts import database_facts
from blocks.pg_some_tables import must_be_there, restore_tables
from blocks.ports import StreamOf
from blocks.postgres import Server, last_words, pg_tool
from policy.backup_manifest import Difference, Manifest
from policy.database_compare import differences
from policy.errors import NotApplied, Refused

OBJECTS = """
    SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    AND n.nspname NOT LIKE 'pg\\_%%'
"""


class DatabaseRestore:
    """`create_roles`: those that own something, or may something, as roles that cannot log in.
    `tables`: these alone, by their full names."""

    def __init__(
        self, server: Server, *, create_roles: bool = False, tables: Sequence[str] = ()
    ) -> None:
        self._server, self._create_roles = server, create_roles
        self._tables, self._only = tables, list(tables) or None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        facts = manifest.facts.database
        assert facts
        must_be_there(facts, self._tables)
        self._must_be_empty()
        major = int(facts.server_version.partition(".")[0])
        argv = [str(pg_tool("pg_restore", major)), "--exit-on-error", "--no-password"]
        argv.append(f"--dbname={self._server.dbname}")
        if self._create_roles:
            self._have_roles(facts.roles)
        if self._tables:
            with self._server.tool_environment() as environment, stream_of(DUMP) as pipe:
                self._only = restore_tables(
                    self._server, self._tables, facts, argv, environment, pipe
                )
            return
        argv.append("--single-transaction")
        with tempfile.TemporaryFile() as said, self._server.tool_environment() as environment:
            with stream_of(DUMP) as pipe:
                code = subprocess.run(
                    argv,
                    env=environment,
                    stdin=pipe,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    check=False,
                ).returncode
            # What is wrong with the stream was told by leaving it: a tool fails because of that.
            if code != 0:
                said.seek(0)
                raise NotApplied(last_words(self._server, argv[0], code, said.read()))

    def differences(self, manifest: Manifest) -> list[Difference]:
        wanted = manifest.facts.database
        assert wanted
        hashed = any(table.content_hash for table in wanted.tables)
        with self._server.connect() as connection:
            found = database_facts(connection, hashes=hashed)
        return differences(wanted, found, only=self._only)

    def _must_be_empty(self) -> None:
        with self._server.connect() as connection:
            count = connection.execute(OBJECTS).fetchone()[0]
        if count:
            raise Refused(f"{self._server} is not empty: {count} objects; nothing was changed")

    def _have_roles(self, roles: Sequence[str]) -> None:
        from psycopg.sql import SQL, Identifier

        with self._server.connect(autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            for role in roles:
                if role not in there and not role.startswith("pg_"):
                    connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(role)))
