"""Some tables out of a dump of a whole database, in one pass over its pipe.

All definitions are restored first, for a table needs types, functions and schemas that no list of
the dump names; then the data, constraints and indexes of the chosen ones; then all other tables
and views are dropped. What a chosen table is a part of (its parent) stays, and a partitioned one
brings its partitions.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from blocks.postgres import Server, last_words
from policy.database_compare import needs_others
from policy.database_facts import DatabaseFacts
from policy.errors import BadInput, NotApplied

if TYPE_CHECKING:
    from psycopg import Connection

_PIECE = 1 << 16
_NAMES = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
"""
_OWNED = """
SELECT n.nspname, c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.deptype IN ('a', 'i') AND d.refobjid = ANY (%s::oid[])
"""
_FAMILY = """
WITH RECURSIVE below AS (
  SELECT unnest(%(chosen)s::oid[]) AS oid
  UNION SELECT i.inhrelid FROM pg_inherits i JOIN below b ON b.oid = i.inhparent
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition),
above AS (
  SELECT unnest(%(chosen)s::oid[]) AS oid
  UNION SELECT i.inhparent FROM pg_inherits i JOIN above a ON a.oid = i.inhrelid)
SELECT oid, true FROM below
UNION SELECT oid, false FROM above WHERE oid NOT IN (SELECT oid FROM below)
"""
_OTHERS = """
SELECT n.nspname, c.relname, c.relkind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND c.oid <> ALL (%(kept)s::oid[]) AND NOT EXISTS (SELECT FROM pg_depend e
    WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
"""
_DROP = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}
# Entries of pg_restore's list that name a table: "<these words> <schema> <table> …".
OF_A_TABLE = (
    "TABLE DATA",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
)

Names = dict[int, tuple[str, str]]  # OID -> (schema, name)


def must_be_there(facts: DatabaseFacts, tables: Sequence[str]) -> None:
    """Raises BadInput for a name that is no table of the backup."""
    known = {one.full_name for one in facts.tables if one.kind in ("table", "partitioned table")}
    for name in tables:
        if name not in known:
            near = [one for one in sorted(known) if one.partition(".")[2] == name]
            raise BadInput(
                f"the backup has no table {name}; nothing was restored. Name it with its schema"
                + (f": {near[0]}" if near else "")
            )


def restore_tables(
    server: Server,
    tables: Sequence[str],
    facts: DatabaseFacts,
    argv: Sequence[str],
    environment: dict[str, str],
    stream: BinaryIO,
) -> list[str]:
    """`tables`: full names, `argv`: pg_restore with its options. -> full names of what came back
    with its rows. Raises NotApplied; the database then holds a part of it."""
    with tempfile.TemporaryFile() as head:
        entries = _contents(argv[0], stream, head)
        with _run(server, [*argv, "--section=pre-data"], environment) as into:
            _pour(_read(head), into)
        with server.connect(autocommit=True) as connection:
            full, parents = _family(connection, tables)
            wanted = tuple(_entries(connection, full, facts))
            # Of a partitioned table it is made for each partition.
            wanted += tuple(_listed("TRIGGER", *pair) for pair in parents.values())
            chosen = [line for line in entries if _entry(line).startswith(wanted)]
            with (
                closing(_List(chosen)) as list_,
                _run(server, [*argv, f"--use-list={list_.path}"], environment) as into,
            ):
                # What was read for the list goes before what was not.
                _pour(_read(head), into)
                _pour(iter(lambda: stream.read(1 << 20), b""), into)
            _drop_others(connection, [*full, *parents])
        return sorted(".".join(pair) for pair in full.values())


class _List:
    """In memory: nothing of it stays when we are killed; pg_restore reads it by a name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._handle = os.memfd_create("contents")
        text = "\n".join(lines) + "\n"
        with os.fdopen(os.dup(self._handle), "wb") as file:
            file.write(text.encode(errors="surrogateescape"))
        self.path = f"/proc/{os.getpid()}/fd/{self._handle}"

    def close(self) -> None:
        os.close(self._handle)


class _run:
    """A pg_restore that reads what the body writes. It may have what it wants before the end."""

    def __init__(self, server: Server, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._server, self._argv, self._environment = server, argv, environment

    def __enter__(self) -> IO[bytes]:
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._argv,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            bufsize=0,
        )
        assert self._process.stdin
        return self._process.stdin

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._process.stdin
        with self._said:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            if kind is not None:
                self._process.kill()
            if (code := self._process.wait()) != 0 and kind is None:
                self._said.seek(0)
                words = last_words(self._server, self._argv[0], code, self._said.read())
                raise NotApplied(words)


def _family(connection: "Connection[Any]", tables: Sequence[str]) -> tuple[Names, Names]:
    """-> (with their rows, for being their parents)"""
    names = {oid: (schema, name) for oid, schema, name in connection.execute(_NAMES)}
    chosen = [oid for oid, pair in names.items() if ".".join(pair) in tables]
    full: Names = {}
    parents: Names = {}
    for oid, with_rows in connection.execute(_FAMILY, {"chosen": chosen}):
        (full if with_rows else parents)[oid] = names[oid]
    return full, parents


def _entries(connection: "Connection[Any]", full: Names, facts: DatabaseFacts) -> Iterator[str]:
    """How the entries of what is wanted begin in the list."""
    by_name = {".".join(pair): pair for pair in full.values()}
    for pair in full.values():
        for words in OF_A_TABLE:
            yield _listed(words, *pair)
    for pair in connection.execute(_OWNED, (list(full),)):
        yield _listed("SEQUENCE SET", *pair)
    for name, table in facts.hangs_on.items():
        if table not in by_name:
            continue
        schema, of = by_name[table]
        kind, _, rest = name.partition(" ")
        if kind == "index":
            own = rest.removeprefix(f"{schema}.")
            yield _listed("INDEX", schema, own)
            part = f"partition {table}"
            if part in facts.definitions and not needs_others(facts.definitions, part, by_name):
                yield _listed("INDEX ATTACH", schema, own)
        elif kind == "constraint" and not needs_others(facts.definitions, name, by_name):
            own = rest.removeprefix(f"{table}.")
            yield _listed("FK CONSTRAINT", schema, of, own)
            yield _listed("COMMENT", schema, "CONSTRAINT", own, "ON", of)
        elif kind == "statistics":
            yield _listed("STATISTICS", *rest.split(".", 1))
        elif kind == "trigger":
            yield _listed("COMMENT", schema, "TRIGGER", rest.removeprefix(f"{table}."), "ON", of)
        elif name.startswith("comment on index "):
            own = name.removeprefix("comment on index ").removeprefix(f"{schema}.")
            yield _listed("COMMENT", schema, "INDEX", own)


def _drop_others(connection: "Connection[Any]", kept: Sequence[int]) -> None:
    from psycopg.sql import SQL, Identifier

    with connection.transaction():
        # Their shells came with the definitions; their content is not a table's.
        connection.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
        for schema, name, kind in connection.execute(_OTHERS, {"kept": list(kept)}).fetchall():
            words = SQL("DROP {} IF EXISTS {} CASCADE")  # an other one may have taken it along
            what = SQL(_DROP.get(kind, "TABLE"))
            connection.execute(words.format(what, Identifier(schema, name)))


def _read(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(1 << 20):
        yield piece


def _pour(pieces: Iterable[bytes], into: IO[bytes]) -> None:
    """All is read, whether it is wanted or not: what is not read to its end is not checked."""
    wanted = True
    for piece in pieces:
        left = memoryview(piece)
        while wanted and left:
            try:
                left = left[into.write(left) :]
            except BrokenPipeError:  # it has what it wants, or failed and says so
                wanted = False


def _contents(pg_restore: str | Path, stream: BinaryIO, head: IO[bytes]) -> list[str]:
    """The dump's list of contents; what was read for it is in `head`."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
        with subprocess.Popen(
            [pg_restore, "--list"], stdin=subprocess.PIPE, stdout=told, stderr=said, bufsize=0
        ) as listing:
            assert listing.stdin
            with suppress(BrokenPipeError):  # it has read its list
                while listing.poll() is None and (piece := os.read(stream.fileno(), _PIECE)):
                    head.write(piece)
                    listing.stdin.write(piece)
            with suppress(BrokenPipeError):
                listing.stdin.close()
            code = listing.wait()
        if code != 0:
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split())[-600:]
            raise NotApplied(f"pg_restore cannot read the dump: {words}. Nothing was restored")
        told.seek(0)
        lines = told.read().decode(errors="surrogateescape").splitlines()
        return [line for line in lines if line and not line.startswith(";")]


def _entry(line: str) -> str:
    """'CONSTRAINT shop orders orders_pkey owner' of '3412; 1259 16409 CONSTRAINT shop …'."""
    return f"{line.partition('; ')[2].partition(' ')[2].partition(' ')[2]} "


def _listed(*words: str) -> str:
    """As the list has it: a name that holds a line break is on one line there. Names with blanks
    may match one entry too many, of a table that is dropped afterwards."""
    return re.sub(r"[\r\n]", " ", " ".join(words)) + " "
