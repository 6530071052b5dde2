"""Backups side by side with what people do by hand, in one run on one machine.

    python -m bench.backup [--scale 70] [--rounds 3] [--json FILE]

A pgbench database (scale 70 is about 1 GB). In turns:
    a   pg_dump | zstd -3 > file                      no encryption, no upload
    b   pg_dump -Fc > file; upload by boto3           its own compression, no encryption
    c   ours without the manifest's hashes            zstd, age, multipart upload to SeaweedFS
    d   ours, whole                                   the same, every table hashed
Then restores, in turns too, each into a new database in one transaction:
    a   zstd -d < file | pg_restore
    b   download by boto3; pg_restore
    c   ours from SeaweedFS                           checked, opened, restored
    d   ours, whole                                   and every table compared with the manifest
Cores: processor time of the way and its children (not of the database's server), over its seconds.
Memory: peak of this process above what its imports took, and that of its children together (the
process that seals or opens, and the tools of PostgreSQL).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from backup_stage import Stage as BackupStage
from backup_stage import stage as backup_stage

from bench.stage import stage
from blocks.backup_catalogue import Catalogue
from blocks.pg_dump import LogicalSource
from blocks.pg_restore import DatabaseRestore
from blocks.postgres import pg_tool
from blocks.signing import Keys
from tasks import backup as backups
from tasks.backup_site import default_vault
from tasks.drill import streams_of


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(".bench/backup.json"))
    wanted = parser.parse_args()
    room = Path(tempfile.mkdtemp(prefix="dafnck-bench-", dir="/var/tmp"))
    try:
        with (
            tempfile.TemporaryDirectory(dir="/var/tmp") as place,
            stage(Path(place)) as here,
            backup_stage(Path(place), room) as there,
        ):
            result = _measured(here.stack, there, room, wanted.scale, wanted.rounds)
    finally:
        shutil.rmtree(room)
    print(json.dumps(result, indent=1))
    wanted.json.parent.mkdir(exist_ok=True)
    wanted.json.write_text(json.dumps(result, indent=1))


def _measured(stack: Any, there: BackupStage, room: Path, scale: int, rounds: int) -> Any:
    with there.server.tool_environment() as environment:
        pgbench = [str(pg_tool("pgbench")), "-i", "-q", "-s", str(scale)]
        subprocess.run(pgbench, env=environment, check=True, capture_output=True)
        there.site = there.site.but(catalogue=_catalogue(there, stack))
        imported = _peak_mb(resource.RUSAGE_SELF)
        children = Children()
        backed_up = _in_turns(
            rounds,
            {
                "pg_dump | zstd": lambda: _shell(
                    environment, f"{_dump()} | zstd -q -3 -f -o {room}/a"
                ),
                "pg_dump -Fc, upload": lambda: _by_hand(environment, there, room / "b"),
                "ours, no hashes": lambda: _ours(there, hashes=False),
                "ours": children.seen(lambda: _ours(there, hashes=True)),
            },
        )
        restored = _in_turns(
            rounds,
            {
                "zstd -d | pg_restore": lambda: _shell(
                    _new(there, environment), f"zstd -d -c {room}/a | {_restore()}"
                ),
                "download, pg_restore": lambda: _back_by_hand(there, environment, room / "b"),
                "ours, not compared": lambda: _ours_back(there, environment, compared=False),
                "ours": children.seen(lambda: _ours_back(there, environment, compared=True)),
            },
        )
    return {
        "database_bytes": _size(there),
        "backup": backed_up,
        "restore": restored,
        "memory_mb": {
            "this_process_above_imports": _peak_mb(resource.RUSAGE_SELF) - imported,
            "its_children": children.peak_mb,
        },
        "cores": os.cpu_count(),
    }


def _in_turns(rounds: int, ways: dict[str, Callable[[], None]]) -> dict[str, Any]:
    took: dict[str, list[float]] = {name: [] for name in ways}
    cores: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            began, worked = time.monotonic(), _processor_seconds()
            way()
            took[name].append(time.monotonic() - began)
            cores[name].append((_processor_seconds() - worked) / took[name][-1])
            print(f"{number + 1}: {name}: {took[name][-1]:.1f} s", file=sys.stderr)
    seconds = {name: median(times) for name, times in took.items()}
    by_hand, fair, whole = list(seconds)[:2], *list(seconds)[2:]
    faster = min(seconds[name] for name in by_hand)
    return {
        "seconds": seconds,
        "all": took,
        "cores_used": {name: median(used) for name, used in cores.items()},
        "ratio": {fair: faster / seconds[fair], whole: faster / seconds[whole]},
    }


class Children:
    """The most memory that processes begun by a way had at one moment, together: resident, without
    what they share with others."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def seen(self, way: Callable[[], None]) -> Callable[[], None]:
        def watched() -> None:
            over, before = threading.Event(), set(_children())
            thread = threading.Thread(target=self._look, args=(over, before))
            thread.start()
            try:
                way()
            finally:
                over.set()
                thread.join()

        return watched

    def _look(self, over: threading.Event, before: set[psutil.Process]) -> None:
        while not over.wait(0.1):
            total = 0
            for child in _children() - before:
                with suppress(psutil.Error):
                    if child.name() == "postgres":
                        continue  # of the server
                    total += child.memory_full_info().uss
            self.peak_mb = max(self.peak_mb, total / 2**20)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _processor_seconds() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb(whose: int) -> float:
    return resource.getrusage(whose).ru_maxrss / 1024


def _catalogue(there: BackupStage, stack: Any) -> Catalogue:
    return Catalogue(default_vault(stack), Keys(there.site.stack.secrets, there.site.stack.keys))


def _dump() -> str:
    return f"{pg_tool('pg_dump')} --format=custom --compress=0"


def _shell(environment: dict[str, str], line: str) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-c", line], env=environment, check=True)


def _by_hand(environment: dict[str, str], there: BackupStage, file: Path) -> None:
    _shell(environment, f"{pg_tool('pg_dump')} --format=custom --file={file}")
    with file.open("rb") as content:
        pieces = iter(lambda: content.read(8 * 2**20), b"")
        there.site.vault.write("by-hand/b", pieces)


def _ours(there: BackupStage, *, hashes: bool) -> None:
    source = LogicalSource(there.server, hashes=hashes)
    backups.take(there.site, source)


def _new(there: BackupStage, environment: dict[str, str]) -> dict[str, str]:
    """A new empty database. -> the environment of a tool that works in it."""
    with there.server.at("template1").connect(autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS restored")
        connection.execute("CREATE DATABASE restored")
    return environment | {"PGDATABASE": "restored"}


def _restore() -> str:
    return f"{pg_tool('pg_restore')} --dbname=restored --single-transaction --exit-on-error"


def _back_by_hand(there: BackupStage, environment: dict[str, str], file: Path) -> None:
    into = _new(there, environment)
    with file.open("wb") as content:
        for piece in there.site.vault.read("by-hand/b"):
            content.write(piece)
    _shell(into, f"{_restore()} {file}")


def _ours_back(there: BackupStage, environment: dict[str, str], *, compared: bool) -> None:
    _new(there, environment)
    manifest = there.entry().manifest
    assert manifest
    restoring = DatabaseRestore(there.server.at("restored"))
    restoring.restore(manifest, streams_of(there.site, manifest))
    if compared:
        found = restoring.differences(manifest)
        assert not found, found


def _size(there: BackupStage) -> int:
    with there.server.connect() as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0])


if __name__ == "__main__":
    main()
