"""Runs programs that read what nobody vouches for: without our secrets, in a home of their own,
with limits of time and output. A program that does not end takes all it started with it."""

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blocks.files import scratch
from blocks.processes import marked

OUTPUT_BYTES = 256 * 2**20  # of any file it writes, its answer among them
TAIL_BYTES = 4096
MARK = "DAFNCK_CONFINED"  # names one run, in the environment of all it starts
PASSED_ON = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class CannotRun(Exception):
    """There is no such program, or it must not be run."""


@dataclass(frozen=True)
class Ended:
    code: int | None  # None: it did not end in time and was killed
    answer: Path  # what it wrote to its standard output
    errors: Path  # what it wrote to its standard error
    last_words: str  # the last useful line of that

    def why(self, within_seconds: float) -> str:
        if self.code is None:
            return f"did not end within {within_seconds:g}s"
        how = f"was ended by signal {-self.code}" if self.code < 0 else f"ended with {self.code}"
        return f"{how}: {self.last_words}" if self.last_words else how


@contextmanager
def confined(
    argv: list[str],
    scratch_place: Path,
    *,
    within_seconds: float,
    folder: Path | None = None,
    network: bool = False,
    add: Mapping[str, str] | None = None,
    over: threading.Event | None = None,
    file_bytes: int = 0,
) -> Iterator[Ended]:
    """Run it in `folder`, else in an empty one: what it reads may hold settings for it. Its home,
    temporary files and answer are in `scratch_place`, and gone after the body. `network`: it is
    told our proxies (which may hold a password). `over`: when it is set, the program is killed.
    `file_bytes`: so large a file it may write, if that is more than others may. Raises
    CannotRun."""
    names = PASSED_ON + (PROXIES + CERTIFICATES if network else ())
    environment = {name: os.environ[name] for name in names if name in os.environ}
    with scratch(scratch_place, "c") as here:  # short names: sockets have 108 bytes for theirs
        home = here / "h"
        home.mkdir()
        environment |= {"HOME": str(home), "TMPDIR": str(home), "NO_COLOR": "1", **(add or {})}
        environment[MARK] = here.name
        answer, errors = here / "answer", here / "errors"
        with answer.open("wb") as out, errors.open("wb") as err:
            files = out.fileno(), err.fileno()
            code = _run(
                argv,
                folder or home,
                environment,
                files,
                within_seconds,
                over,
                max(OUTPUT_BYTES, file_bytes),
            )
        yield Ended(code, answer, errors, _last_words(errors))


def _run(
    argv: list[str],
    folder: Path,
    environment: Mapping[str, str],
    files: tuple[int, int],
    within_seconds: float,
    over: threading.Event | None,
    file_bytes: int,
) -> int | None:
    """-> its exit code; None when it did not end in time."""
    try:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=marked(environment),
            stdin=subprocess.DEVNULL,
            stdout=files[0],
            stderr=files[1],
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise CannotRun(f"cannot run {argv[0]}: {words}") from error
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = file_bytes if hard == resource.RLIM_INFINITY else min(file_bytes, hard)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        give_up = time.monotonic() + within_seconds
        while time.monotonic() < give_up:
            if over is not None and over.is_set():
                raise CannotRun(f"{Path(argv[0]).name} was stopped")
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=min(0.2, within_seconds))
        return None
    finally:
        _end_group(process)
        _end_marked(environment[MARK])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """What it left running too: the group lives as long as one of its processes does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_marked(mark: str) -> None:
    """What it started in a session of its own, as daemons do."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            handle = os.pidfd_open(int(entry))
            try:
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _last_words(errors: Path) -> str:
    with errors.open("rb") as file:
        file.seek(max(0, errors.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")
