"""A stage for backups: a PostgreSQL of the test's own, a vault in a folder, keys; and tools of
PostgreSQL that lie."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.backup_catalogue import Catalogue, Entry, Place
from blocks.pg_throwaway import throwaway
from blocks.postgres import Server, pg_tool
from blocks.recovery_key import RecoveryKey
from blocks.signing import Keys
from blocks.stack import Ports, Stack
from blocks.vaults import vault
from policy.backup import Target
from policy.backup_manifest import Manifest
from policy.drill import Drill
from tasks.backup import take
from tasks.backup_site import BackupSite, Store
from tasks.drill import drill

DURABLE = {"autovacuum": "on", "wal_level": "replica", "max_wal_senders": "4"}


@dataclass
class Stage:
    """`later`: seconds by which the clock is ahead."""

    folder: Path
    server: Server
    site: BackupSite
    later: float = field(default=0.0)

    def sql(self, *statements: str, at: str | None = None) -> None:
        server = self.server.at(at) if at else self.server
        with server.connect(autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def with_target(self, **more: Any) -> BackupSite:
        wanted = self.site.target.model_dump() | more
        return self.site.but(target=Target.model_validate(wanted))

    def take(self) -> Manifest:
        return take(self.site)

    def entry(self) -> Entry:
        return self.site.catalogue.entries(self.site.place)[0]

    def drill(self, site: BackupSite | None = None, backup_id: str | None = None) -> Drill:
        return drill.fn(site or self.site, backup_id)

    def stored(self, manifest: Manifest, name: str = "dump.zst.age") -> Path:
        """The file in the vault."""
        return self.folder / "vault" / self.site.place.prefix / manifest.id / name

    def twin(self, *statements: str) -> None:
        """A copy of the database, changed."""
        with self.server.at("template1").connect(autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS twin")
            connection.execute(f"CREATE DATABASE twin TEMPLATE {self.server.dbname}")
        self.sql(*statements, at="twin")

    @contextmanager
    def lying(self, script: str) -> Iterator[None]:
        """While the newest pg_dump there is is this shell script; $REAL is the true one."""
        tools = self.folder / "lying"
        tools.mkdir(exist_ok=True)
        file = tools / "pg_dump"
        real = pg_tool("pg_dump")
        file.write_text(
            "#!/bin/sh\n"
            '[ "$1" = --version ] && { echo "pg_dump (PostgreSQL) 99.0"; exit 0; }\n'
            f"REAL={real}\n{script}\n"
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{tools}:{path}"
        pg_tool.cache_clear()
        try:
            yield
        finally:
            os.environ["PATH"] = path
            pg_tool.cache_clear()


# Dumps the twin instead, in no snapshot of anybody's.
OF_THE_TWIN = """
for word; do case $word in --snapshot=*) ;; *) set -- "$@" "$word";; esac; shift; done
PGDATABASE=twin exec $REAL "$@"
"""


@contextmanager
def stage(folder: Path, room: Path, target: dict[str, Any] | None = None) -> Iterator[Stage]:
    """`room`: a folder that the server's user gets to."""
    with throwaway(room / "postgres", settings=DURABLE) as postgres:
        with postgres.connect(autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        server = postgres.at("shop")
        yield _stage(folder, server, target or {})


def _stage(folder: Path, server: Server, target: dict[str, Any]) -> Stage:
    url = f"postgresql://{server.user}@/shop?host={server.parameters['host']}"
    home = folder / "home"
    stack = Stack(home=home, ports=Ports(), ledger_url=str(home / "ledger.db"))
    keys = Keys(stack.secrets, stack.keys)
    signer = keys.make()
    key = RecoveryKey(stack.secrets / "recovery-key.txt")
    recipient = key.make({signer: (stack.keys / f"{signer}.pem").read_text()})
    made: Stage
    site = BackupSite(
        stack,
        Place("shop", "prod", "db"),
        Target.model_validate({"postgres": url} | target),
        Catalogue(vault(f"file://{folder / 'vault'}"), keys),
        None,
        key,
        (recipient,),
        None,
        Store(f"file://{folder / 'vault'}", None),
        clock=lambda: _now() + made.later,
    )
    made = Stage(folder, server, site)
    return made


def _now() -> float:
    import time

    return time.time()
