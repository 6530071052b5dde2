"""Files that are never seen half-written."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blocks.processes import Process, own
from policy.errors import Unreachable

HALF = ".half"


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write beside the target and rename over it. A crash leaves the old content, and a file that
    `remove_half_written` knows for a dead process's."""
    write_bytes_atomically(path, text.encode(), mode)


def write_bytes_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_mark())
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def scratch(place: Path, name: str) -> Iterator[Path]:
    """A folder in `place` that is gone after the body; what a crash leaves is known for a dead
    process's as well."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=place, prefix=f".{name}.", suffix=_mark(), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def _mark() -> str:
    me = own()
    return f".{me.pid}-{me.started}{HALF}"


def remove_half_written(folder: Path) -> None:
    """Remove what dead processes were writing in this folder and in those within it."""
    for pattern in (f".*{HALF}", f"*/.*{HALF}"):
        for path in folder.glob(pattern):
            pid, _, started = path.name.removesuffix(HALF).rpartition(".")[2].partition("-")
            if pid.isdigit() and not Process(int(pid), started).alive():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def read_plain_file(path: Path, most_bytes: int) -> bytes:
    """Of a file that somebody else left there: a link, a pipe or a device could have us wait for
    ever or read without end. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no plain file")
        if found.st_size > most_bytes:
            raise OSError(f"it is larger than {most_bytes >> 20} MiB")
        return file.read()


@contextmanager
def locked(path: Path, within_seconds: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel frees it when the holder dies.

    Raises Unreachable when somebody else holds it for longer than `within_seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if within_seconds is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _lock_within(file, path, within_seconds)
        yield


def _lock_within(file: IO[str], path: Path, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise Unreachable(
                    f"another process holds {path} for {seconds:g}s: does one stand still (state T "
                    f"in ps)? Nothing was changed. Continue it or end it: fuser {path}"
                ) from None
            time.sleep(0.01)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """-> whether the lock is held now; somebody else has it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
