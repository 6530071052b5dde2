"""Backups side by side with what people do by hand, in one run on one machine.

    python -m bench.backup [--scale 70] [--rounds 3] [--json FILE]

A pgbench database (scale 70 is about 1 GB). In turns:
    a   pg_dump | zstd -3 > file                      no encryption, no upload
    b   pg_dump -Fc > file; upload by boto3           its own compression, no encryption
    c   ours without the manifest's hashes            zstd, age, multipart upload to SeaweedFS
    d   ours, whole                                   the same, every table hashed
Restores: `zstd -d | pg_restore` of a file, and ours from SeaweedFS. Peak memory of our process and
its children is that above a process that has imported the same and done nothing.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from backup_stage import Stage as BackupStage
from backup_stage import stage as backup_stage

from bench.stage import stage
from blocks.backup_catalogue import Catalogue
from blocks.postgres import pg_tool
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
        size = _size(there)
        ways: dict[str, Callable[[], None]] = {
            "pg_dump | zstd": lambda: _shell(environment, f"{_dump()} | zstd -q -3 -f -o {room}/a"),
            "pg_dump -Fc, upload": lambda: _by_hand(environment, there, room / "b"),
            "ours, no hashes": lambda: _ours(there, hashes=False),
            "ours": lambda: _ours(there, hashes=True),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                began = time.monotonic()
                way()
                took[name].append(time.monotonic() - began)
                print(f"{number + 1}: {name}: {took[name][-1]:.1f} s", file=sys.stderr)
    seconds = {name: median(times) for name, times in took.items()}
    faster = min(seconds["pg_dump | zstd"], seconds["pg_dump -Fc, upload"])
    read = _reading(there)
    return {
        "database_bytes": size,
        "seconds": seconds,
        "all": took,
        "ratio_without_hashes": faster / seconds["ours, no hashes"],
        "ratio": faster / seconds["ours"],
        "read_back_mb_per_second": read,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_rss_of_a_child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "cores": os.cpu_count(),
    }


def _catalogue(there: BackupStage, stack: Any) -> Catalogue:
    from blocks.signing import Keys

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
    from blocks.pg_dump import LogicalSource

    source = LogicalSource(there.server, hashes=hashes)
    backups.take(there.site, source)


def _reading(there: BackupStage) -> float:
    entry = there.entry()
    assert entry.manifest
    began, count = time.monotonic(), 0
    with streams_of(there.site, entry.manifest)("dump") as pipe:
        while piece := pipe.read(2**20):
            count += len(piece)
    return count / 1e6 / (time.monotonic() - began)


def _size(there: BackupStage) -> int:
    with there.server.connect() as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0])


if __name__ == "__main__":
    main()
