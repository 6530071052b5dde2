"""The files of a data directory that a server recovers in: unpacked, checked, and configured for
nothing but that.

Invariant: a server that recovers here reaches nobody and changes nothing elsewhere. Beside what
holds for every throw-away server, it subscribes to nothing and runs no jobs.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blocks.pg_throwaway import own_by_server_user
from blocks.postgres import pg_tool
from policy.errors import BadInput, Damaged, NotApplied, Unreachable

# Libraries that act on their own once a server runs: jobs, replication.
ACTORS = ("pg_cron", "pglogical", "bdr", "pg_squeeze", "pg_partman_bgw")
CONFIGURATION = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
SIGNAL = "recovery.signal"
COPY_BYTES = 2**20

# A hot standby wants at least what the primary had, as its log says.
_AT_LEAST = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
)
_NAMED_OTHERWISE = {
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}


def unpack(stream: BinaryIO, data: Path) -> None:
    """A tar of pg_basebackup into `data`, which is empty or not there, for the server's user.
    Raises BadInput, Damaged, NotApplied."""
    if data.is_dir() and any(data.iterdir()):
        raise BadInput(
            f"{data} is not empty; nothing was restored. Name another directory, or move away what "
            "is in it"
        )
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=COPY_BYTES) as tar:
            tar.extractall(data, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise Damaged(f"the copy is no whole archive ({error}); {data} is half restored") from None
    except OSError as error:
        raise NotApplied(
            f"{data} cannot be written ({error.strerror}) and is half restored: make room, empty "
            "it, and restore again"
        ) from None
    while stream.read(COPY_BYTES):
        pass  # its padding: what is not read to its end is not checked
    for path in (data, *data.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    own_by_server_user(data)


def verify(data: Path, major: int) -> None:
    """Every file against the manifest that pg_basebackup wrote. Raises Damaged."""
    tool = pg_tool("pg_verifybackup", exactly=major)
    done = subprocess.run(
        [tool, "--no-parse-wal", "--quiet", data], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " / ".join((done.stderr or done.stdout).splitlines()[:3])
        raise Damaged(f"pg_verifybackup refuses what was restored to {data}: {said[:600]}")


@contextmanager
def laid_aside(data: Path, place: Path) -> Iterator[None]:
    """Its own configuration is in `place` during the body, where no server reads it."""
    aside = place / "configuration"
    aside.mkdir(mode=0o700)
    for name in CONFIGURATION:
        if (data / name).exists():
            shutil.move(data / name, aside / name)
    try:
        yield
    finally:
        for path in aside.iterdir():
            shutil.move(path, data / path.name)
            own_by_server_user(data / path.name)


def settings_of(data: Path, log: Path, major: int, libraries: tuple[str, ...]) -> dict[str, str]:
    """With which a server recovers in `data`, whatever its target. It writes to `log`, in a folder
    of its user. Raises Unreachable when a library is not installed."""
    return {
        **_shape(data, major),
        "hot_standby": "on",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": ",".join(_loadable(libraries, major)),
        "recovery_target_timeline": "latest",
        "logging_collector": "on",
        "log_directory": str(log.parent),
        "log_filename": log.name,
        "log_rotation_age": "0",
        "log_rotation_size": "0",
        "log_min_messages": "log",
        "lc_messages": "C",
    }


def recover_at_next_start(data: Path, log: Path) -> None:
    log.unlink(missing_ok=True)
    # The folder is the server's user's: no link of its is followed.
    os.close(os.open(data / SIGNAL, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    own_by_server_user(data / SIGNAL)


def stop(data: Path, within_seconds: float = 600.0) -> None:
    """Have the server of this data directory write out all that it has, and end. Raises
    NotApplied."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        handle = os.pidfd_open(pid)
    except (OSError, ValueError) as error:
        raise NotApplied(f"the server of {data} ended by itself ({error})") from None
    try:
        signal.pidfd_send_signal(handle, signal.SIGINT)  # its fast shutdown
        if not select.select([handle], [], [], within_seconds)[0]:
            raise NotApplied(f"the server of {data} did not stop within {within_seconds:g}s")
    finally:
        os.close(handle)


def without_archiving(data: Path) -> None:
    """A copy beside the server that it is of must not write into that one's log."""
    path = data / "postgresql.auto.conf"
    with path.open("a") as file:
        file.write("archive_mode = 'off'  # a copy: ALTER SYSTEM RESET archive_mode\n")
    own_by_server_user(path)


def system_identifier(data: Path) -> int:
    """Of the server whose data directory it is. Raises NotApplied."""
    major = int((data / "PG_VERSION").read_text())
    found = re.search(r"^Database system identifier:\s+(\d+)$", _control(data, major), re.MULTILINE)
    if found is None:
        raise NotApplied(f"pg_controldata does not say whose {data} is")
    return int(found[1])


def _control(data: Path, major: int) -> str:
    tool = pg_tool("pg_controldata", exactly=major)
    done = subprocess.run(
        [tool, data],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise NotApplied(f"pg_controldata cannot read {data}: {done.stderr.strip()[:300]}")
    return done.stdout


def _shape(data: Path, major: int) -> dict[str, str]:
    """What the server must be at least, as its control file has it."""
    said = _control(data, major)
    found = dict(re.findall(r"^(\w+) setting:\s+(\S+)$", said, re.MULTILINE))
    shape = {_NAMED_OTHERWISE.get(name, name): found[name] for name in _AT_LEAST if name in found}
    return {**shape, "track_commit_timestamp": found.get("track_commit_timestamp", "off")}


def _loadable(libraries: tuple[str, ...], major: int) -> list[str]:
    """Raises Unreachable when one is not installed: what it wrote could not be read without."""
    wanted = [name for name in libraries if Path(name).name.removesuffix(".so") not in ACTORS]
    if not wanted:
        return []
    done = subprocess.run(
        [pg_tool("pg_config", exactly=major), "--pkglibdir"],
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(done.stdout.strip())
    lacking = [
        name
        for name in wanted
        if not (folder / f"{Path(name).name.removesuffix('.so')}.so").exists()
    ]
    if lacking:
        raise Unreachable(
            f"the server had shared_preload_libraries = {', '.join(lacking)}, which are not in "
            f"{folder}; what was restored is whole, and was not started. Install them (apt-cache "
            f"search postgresql-{major}), then restore again"
        )
    return wanted
