"""New logins at a steady rate while the password of a PostgreSQL login turns over.

    python -m bench.rotation [--per-second 200] [--rotations 5] [--json FILE]

A service under supervisord in a stack of its own, with the secret in its environment; a PostgreSQL
that asks for SCRAM. Each login is by the value that the replicas of the release that serves have in
their environment, looked at ten times a second, as an application has it that is started anew.
`dafnck secret rotate` is run by the worker: new value, set, tried, made current, the service
released again, the grace time (2 s), the old login closed and seen to be refused.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench.stage import PROBE, probe_file, stage
from blocks.pg_throwaway import throwaway
from blocks.secret_files import SecretFiles
from blocks.supervisor import Supervisor

HBA = "local all postgres trust\nlocal all all scram-sha-256\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-second", type=int, default=200)
    parser.add_argument("--rotations", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path(".bench/rotation.json"))
    wanted = parser.parse_args()
    room = Path(tempfile.mkdtemp(prefix="dafnck-bench-", dir="/var/tmp"))
    room.chmod(0o711)
    try:
        with (
            tempfile.TemporaryDirectory(dir="/var/tmp") as place,
            stage(Path(place)) as here,
            throwaway(room / "postgres", settings={"max_connections": "300"}) as server,
        ):
            with server.connect(autocommit=True) as connection:
                (hba,) = connection.execute("SHOW hba_file").fetchone()
                Path(hba).write_text(HBA)
                connection.execute("SELECT pg_reload_conf()")
                connection.execute("CREATE ROLE shop")
                connection.execute("CREATE ROLE shop_a LOGIN PASSWORD 'first' IN ROLE shop")
                connection.execute("ALTER ROLE shop_a SET role TO shop")
                connection.execute("CREATE DATABASE shop OWNER shop")
            result = _measured(here.stack, server.parameters["host"], Path(place), wanted)
    finally:
        shutil.rmtree(room)
    print(json.dumps(result, indent=1))
    wanted.json.parent.mkdir(exist_ok=True)
    wanted.json.write_text(json.dumps(result, indent=1))


def _measured(stack: Any, host: str, place: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    files = SecretFiles(stack)
    files.put("shop/admin", f"postgresql://postgres@/postgres?host={host}&port=5432")
    files.put("shop/url", f"postgresql://shop_a:first@/shop?host={host}&port=5432")
    shutil.copy(PROBE, place / "probe.py")
    logins = {"admin": "secret://shop/admin", "role": "shop", "users": ["shop_a", "shop_b"]}
    file = probe_file(
        place / "dafnck.yaml",
        "shop",
        {
            "run": {"secrets": {"DATABASE_URL": "secret://shop/url"}, "drain": "2s"},
            "rotate": {"shop/url": {"postgres": logins, "grace": "2s"}},
        },
    )
    _dafnck(stack, "release", file, "--version", "1")
    load = Load(stack, wanted.per_second)
    took = []
    with load:
        time.sleep(2)
        for _ in range(wanted.rotations):
            began = time.monotonic()
            _dafnck(stack, "secret", "rotate", "shop/url", "--now", "--patience", "60s")
            took.append(time.monotonic() - began)
            time.sleep(1)
    versions = files.versions("shop/url")
    return {
        "rotations": len(took),
        "closed": sum(one.disabled_at is not None for one in versions.all),
        "seconds_of_a_rotation": median(took),
        "logins": load.logins,
        "logins_per_second": load.logins / load.seconds,
        "failed": len(load.failed),
        "why": sorted(set(load.failed))[:5],
        "cores": os.cpu_count(),
    }


def _dafnck(stack: Any, *words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "deployments.cli", *map(str, words)],
        env={**os.environ, "DAFNCK_HOME": str(stack.home)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


class Load:
    """Logins by what the application has, at a steady rate."""

    def __init__(self, stack: Any, per_second: int) -> None:
        self._supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
        self._per_second, self._over = per_second, threading.Event()
        self._value = ""
        self.logins, self.seconds, self.failed = 0, 0.0, list[str]()
        self._threads = [
            threading.Thread(target=work) for work in (self._look_again, self._log_in_again)
        ]

    def __enter__(self) -> "Load":
        self._look()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        """The newest release whose replica runs."""
        programs = self._supervisor.programs()
        names = [n for n in programs if n.startswith("shop-local-") and n.endswith(".0")]
        for name in sorted(names, key=lambda one: -int(one.split("-")[2].split(".")[0])):
            with suppress(OSError, StopIteration):
                environ = Path(f"/proc/{programs[name].pid}/environ").read_text().split("\0")
                found = next(one for one in environ if one.startswith("DATABASE_URL="))
                self._value = found.partition("=")[2]
                return

    def _look_again(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _log_in_again(self) -> None:
        began, asked = time.monotonic(), 0
        with ThreadPoolExecutor(max_workers=32) as pool:
            while not self._over.is_set():
                due = int((time.monotonic() - began) * self._per_second)
                for _ in range(due - asked):
                    pool.submit(self._log_in, self._value)
                asked = due
                time.sleep(0.005)
        self.seconds = time.monotonic() - began

    def _log_in(self, value: str) -> None:
        try:
            psycopg.connect(value, connect_timeout=20).close()
            self.logins += 1
        except psycopg.OperationalError as error:
            self.failed.append(" ".join(str(error).split())[-120:])


if __name__ == "__main__":
    main()
