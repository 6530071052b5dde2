"""A PostgreSQL that archives its log to a vault, and backups of it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pyrage
from conftest import wait_for

from blocks.pg_physical import PhysicalSource
from blocks.ports import StreamOf, Vault
from blocks.postgres import Server, pg_tool, server_of
from blocks.vaults import vault as vault_of
from blocks.wal_archive import archived
from blocks.wal_settings import WalSettings
from deployments.wal_commands import postgresql_conf
from policy.backup_manifest import Manifest, StoredStream

PREFIX = "backups/shop/prod/database"
USER = "postgres"


def as_server() -> list[str]:
    """What starts a program as the user of the server. Our Python, which it runs, may be where only
    root reads: it may read all here, as a service's user may read what it was given."""
    if os.geteuid() != 0:
        return []
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *reads]


def give(path: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(path, user.pw_uid, user.pw_gid)


@dataclass
class Primary:
    folder: Path
    data: Path
    vault: Vault
    settings: Path
    key: Path
    port: int = 5432
    segment_mib: int = 1
    process: "subprocess.Popen[bytes] | None" = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"

    @property
    def server(self) -> Server:
        return server_of(f"postgresql://{USER}@/postgres?host={self.folder}&port={self.port}")

    def make(self, *, archiving: bool = True) -> None:
        words = [
            "-D",
            str(self.data),
            "-U",
            USER,
            "-A",
            "trust",
            "--no-sync",
            f"--wal-segsize={self.segment_mib}",
        ]
        subprocess.run(
            [*as_server(), str(pg_tool("initdb")), *words], check=True, capture_output=True
        )
        if archiving:
            with (self.data / "postgresql.conf").open("a") as file:
                file.write(postgresql_conf(self.settings, 300))

    def start(self, *settings: str) -> None:
        words = ["-D", str(self.data), "-k", str(self.folder), "-h", "", "-p", str(self.port), "-F"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*as_server(), str(pg_tool("postgres")), *words]
                + [word for one in settings for word in ("-c", one)],
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, f"PostgreSQL answers: {self.log}")

    def _answers(self) -> bool:
        try:
            self.server.connect().close()
        except (psycopg.OperationalError, Exception) as error:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(self.log.read_text()[-2000:]) from error
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGKILL takes the whole server with it, as a machine that dies."""
        if self.process is None:
            return
        if how == signal.SIGKILL:
            children = subprocess.run(
                ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
            )
            for pid in [self.process.pid, *map(int, children.stdout.split())]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        else:
            self.process.send_signal(how)
        self.process.wait()
        self.process = None

    def run(self, *statements: str) -> list[Any]:
        with self.server.connect(autocommit=True) as connection:
            for statement in statements:
                done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def archive_all(self, prefix: str = PREFIX) -> None:
        """Until all that is committed is in the vault."""
        [(name,)] = self.run(
            "SELECT pg_current_xact_id()", "SELECT pg_walfile_name(pg_switch_wal())"
        )
        last = "SELECT last_archived_wal >= %s FROM pg_stat_archiver"
        with self.server.connect(autocommit=True) as connection:
            wait_for(
                lambda: connection.execute(last, (name,)).fetchone() == (True,),
                f"{name} is archived",
                60,
            )
        assert name in archived(self.vault, prefix)

    def source(self, **options: Any) -> PhysicalSource:
        return PhysicalSource(self.server, self.vault, PREFIX, **options)


@contextmanager
def a_primary(*, archiving: bool = True, segment_mib: int = 1) -> Iterator[Primary]:
    with tempfile.TemporaryDirectory(prefix="wal-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stored = folder / "vault"
        stored.mkdir()
        give(stored)
        give(folder)
        key = pyrage.x25519.Identity.generate()
        (folder / "key").write_text(f"{key}\n")
        (folder / "key").chmod(0o600)
        url = f"file://{stored}"
        WalSettings(url, PREFIX, (str(key.to_public()),), identity=str(folder / "key")).write(
            folder / "wal.json"
        )
        primary = Primary(
            folder,
            folder / "data",
            vault_of(url),
            folder / "wal.json",
            folder / "key",
            segment_mib=segment_mib,
        )
        primary.make(archiving=archiving)
        primary.start()
        try:
            yield primary
        finally:
            primary.stop(signal.SIGQUIT)


@dataclass
class Backup:
    manifest: Manifest
    file: Path

    @property
    def stream_of(self) -> StreamOf:
        @contextmanager
        def open_it(name: str) -> Iterator[BinaryIO]:
            assert name == "base"
            with self.file.open("rb") as file:
                yield file

        return open_it


def take(primary: Primary, file: Path, **options: Any) -> Backup:
    with primary.source(**options).begin() as copy:
        for _, stream in copy.streams():
            with file.open("wb") as out:
                shutil.copyfileobj(stream, out, 2**20)
        facts = copy.facts()
        at = copy.snapshot_at
    size = file.stat().st_size
    stream_facts = StoredStream(name="base", size_bytes=size, sha256="", plain_bytes=size)
    manifest = Manifest(
        id="20261125T021500Z-3f9c21",
        service="shop",
        environment="prod",
        target="database",
        kind="postgres-physical",
        started_at=at,
        snapshot_at=at,
        finished_at=at,
        streams=(stream_facts,),
        facts=facts,
        recipients=(),
    )
    return Backup(manifest, file)


@contextmanager
def writes(primary: Primary, clients: int = 2) -> Iterator[None]:
    """pgbench, until the body ends; and a heartbeat, which remembers what was committed."""
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(primary, over), name="heartbeat")
    bench = subprocess.Popen(
        [
            *(str(pg_tool("pgbench")), "-n", "-c", str(clients), "-T", "600", "-R", "100"),
            *("-h", str(primary.folder), "-p", str(primary.port), "-U", USER, "postgres"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        bench.kill()
        bench.wait()


def _beat(primary: Primary, over: threading.Event) -> None:
    with primary.server.connect(autocommit=True) as connection:
        while not over.wait(0.02):
            try:
                connection.execute(
                    "INSERT INTO heartbeat (at, lsn) VALUES "
                    "(clock_timestamp(), pg_current_wal_insert_lsn())"
                )
            except psycopg.OperationalError:
                return  # the server was killed
