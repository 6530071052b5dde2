"""The commands of a build, with one time limit together and one log."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blocks.processes import marked
from policy.errors import DafnckError

# Our own settings, passwords among them, and what opens the object store.
PRIVATE = ("PREFECT_", "DAFNCK_", "AWS_")


class BuildFailed(DafnckError):
    exit_code = 1


class Steps:
    def __init__(
        self,
        output: IO[str],
        log: Path,
        within_seconds: float,
        over: threading.Event | None = None,
    ) -> None:
        """`over`: when it is set, what runs is killed."""
        self._over = over
        self._output = output
        self._log = log
        self._within = within_seconds
        self._deadline = time.monotonic() + within_seconds
        self._hidden: Sequence[str] = ()

    @contextmanager
    def hiding(self, values: Sequence[str]) -> Iterator[None]:
        """What runs in the body may print these: the log gets *** instead."""
        self._hidden = values
        try:
            yield
        finally:
            self._hidden = ()

    def run(self, argv: list[str], cwd: Path, add: Mapping[str, str] | None = None) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PRIVATE)}
        environment["PYC_INVALIDATION_MODE"] = "UNCHECKED_HASH"
        environment["NO_COLOR"] = "1"
        environment["GIT_OPTIONAL_LOCKS"] = "0"  # a build that asks git changes no repository
        environment |= add or {}
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=marked(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._hidden else self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildFailed(f"build: cannot run {argv[0]}: {error.strerror}") from error
        reader = self._reader(process)
        try:
            code = self._wait(process)
            if reader:
                reader.join()
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if reader:
                reader.join()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildFailed(
                    f"the build did not end within {self._within:g}s (build: within); nothing was "
                    f"released\n{self._last_lines()}"
                ) from None
            raise
        if code != 0:
            raise BuildFailed(
                f"the build failed: {Path(argv[0]).name} ended with {code}; nothing was released, "
                f"what served still serves\n{self._last_lines()}\nwhole log: {self._log}"
            )

    def _reader(self, process: subprocess.Popen[bytes]) -> threading.Thread | None:
        """Writes the log by lines, without what is hidden."""
        pipe, hidden = process.stdout, self._hidden
        if pipe is None:
            return None

        def read() -> None:
            with pipe:
                for raw in pipe:
                    line = raw.decode(errors="replace")
                    for value in hidden:
                        line = line.replace(value, "***")
                    self._output.write(line)
                    self._output.flush()

        reader = threading.Thread(target=read, name="log")
        reader.start()
        return reader

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            left = max(0.1, self._deadline - time.monotonic())
            if self._over is not None and self._over.is_set():
                raise BuildFailed("it was stopped")
            try:
                return process.wait(timeout=min(0.2, left) if self._over else left)
            except subprocess.TimeoutExpired:
                if time.monotonic() >= self._deadline:
                    raise

    def _last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        useful = [line for line in lines if line.strip()]
        return "\n".join(f"  | {line}" for line in useful[-15:])
