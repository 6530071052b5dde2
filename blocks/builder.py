"""Builds artifacts: a folder named by the digest of everything that went into it.

    artifacts/<digest>/app/           files of the service, the working directory of its replicas
                       venv/          for Python builds, relocatable
                       artifact.json  written last: without it the folder is rubbish

The same inputs are built once. Nothing that runs writes here.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from blocks.files import locked, locked_if_free, write_atomically
from blocks.processes import marked
from policy.errors import BadInput, DafnckError
from policy.service_file import Build

LEFT_OUT = {".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache"}
PRIVATE = ("PREFECT_", "DAFNCK_")  # our own settings, passwords among them


class BuildFailed(DafnckError):
    exit_code = 1


class Builder:
    def __init__(self, artifacts: Path) -> None:
        self._artifacts = artifacts

    def build(self, build: Build, folder: Path) -> tuple[str, bool]:
        """-> (digest, was it there already). `folder` is the service file's place."""
        source = (folder / build.source).resolve()
        if not source.is_dir():
            raise BadInput(f"build: source: there is no directory {source}; nothing was built")
        files = list(_source_files(source))
        _check_inside(build, source, files)
        digest = _digest(build, source, files)
        target = self._artifacts / digest
        with locked(self._artifacts / "locks" / f"{digest}.lock"):
            if (target / "artifact.json").exists():
                os.utime(target / "artifact.json")
                return digest, True
            shutil.rmtree(target, ignore_errors=True)
            (target / "app").mkdir(parents=True)
            started = time.time()
            log = self._artifacts / f"{digest}.log"
            with log.open("w") as output:
                self._fill(build, source, files, target, _Steps(output, log, build.within))
            content = {
                "digest": digest,
                "built_at": started,
                "seconds": round(time.time() - started, 3),
                "build": build.model_dump(mode="json"),
                "files": len(files),
                "python": platform.python_version() if build.python else None,
            }
            write_atomically(target / "artifact.json", json.dumps(content, indent=1))
        return digest, False

    def remove_unused(self, in_use: set[str], *, idle_seconds: float = 3600.0) -> list[str]:
        """Remove what no release needs and nobody asked for of late: an artifact that was built a
        moment ago may be on its way into a release."""
        removed = []
        for marker in sorted(self._artifacts.glob("*/artifact.json")):
            digest = marker.parent.name
            if digest in in_use or time.time() - marker.stat().st_mtime < idle_seconds:
                continue
            with locked(self._artifacts / "locks" / f"{digest}.lock"):
                # The marker goes first: a half-removed artifact must not look whole.
                marker.unlink(missing_ok=True)
                shutil.rmtree(marker.parent, ignore_errors=True)
                (self._artifacts / f"{digest}.log").unlink(missing_ok=True)
            removed.append(digest)
        return removed

    def remove_half_built(self) -> list[str]:
        """Remove what nobody builds any more and nobody finished. The log stays."""
        removed = []
        for folder in sorted(self._artifacts.glob("*/")):
            marker = folder / "artifact.json"
            if folder.name == "locks" or marker.exists():
                continue
            with locked_if_free(self._artifacts / "locks" / f"{folder.name}.lock") as free:
                if free and not marker.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder.name)
        return removed

    def _fill(
        self, build: Build, source: Path, files: list[Path], target: Path, steps: "_Steps"
    ) -> None:
        if build.command is not None:
            work = target / "work"
            _copy(source, files, work)
            command = build.command
            out = str(target / "app")
            if isinstance(command, str):
                steps.run(["/bin/sh", "-c", command.replace("{out}", shlex.quote(out))], work)
            else:
                steps.run([word.replace("{out}", out) for word in command], work)
            shutil.rmtree(work)
            if not any((target / "app").iterdir()):
                raise BuildFailed(
                    "the build command left {out} empty; nothing was released, what served serves"
                )
            return
        assert build.python is not None
        from uv import find_uv_bin

        _copy(source, files, target / "app")
        uv = os.fsdecode(find_uv_bin())
        python = build.python.version or sys.executable
        venv = target / "venv"
        steps.run([uv, "venv", "--relocatable", "--python", python, str(venv)], source)
        install = [uv, "pip", "install", "--compile-bytecode", "--link-mode", "copy"]
        install += ["--python", str(venv / "bin" / "python")]
        if build.python.requirements:
            install += ["--requirement", build.python.requirements]
        if build.python.project:
            install.append(str((source / build.python.project).resolve()))
        steps.run(install, source)


class _Steps:
    """Commands with one time limit together and one log."""

    def __init__(self, output: IO[str], log: Path, within_seconds: float) -> None:
        self._output = output
        self._log = log
        self._within = within_seconds
        self._deadline = time.monotonic() + within_seconds

    def run(self, argv: list[str], cwd: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PRIVATE)}
        environment["PYC_INVALIDATION_MODE"] = "UNCHECKED_HASH"
        environment["NO_COLOR"] = "1"
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=marked(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildFailed(f"build: cannot run {argv[0]}: {error.strerror}") from error
        try:
            code = process.wait(timeout=max(0.1, self._deadline - time.monotonic()))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
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

    def _last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        useful = [line for line in lines if line.strip()]
        return "\n".join(f"  | {line}" for line in useful[-15:])


def _check_inside(build: Build, source: Path, files: list[Path]) -> None:
    """What an artifact is made from must be among what names it."""
    if build.python is None:
        return
    wanted = build.python.requirements
    if wanted and Path(os.path.normpath(wanted)) not in files:
        raise BadInput(
            f"build.python.requirements: {wanted} is not part of the source {source}: there is no "
            "such file, it is outside, or git ignores it; nothing was built"
        )
    project = build.python.project
    if project and not (source / project).resolve().is_relative_to(source):
        raise BadInput(f"build.python.project: {project} is outside of {source}; nothing was built")


def _source_files(source: Path) -> Iterator[Path]:
    """What git tracks or would track; without git everything but caches. Relative, sorted."""
    listed = _git(source, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    else:
        names = set()
        for folder, folders, here in os.walk(source):
            folders[:] = set(folders) - LEFT_OUT
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            names |= {(Path(folder) / name).relative_to(source) for name in [*here, *links]}
    # Files and links alone: to open a pipe or a socket is to wait for ever.
    yield from sorted(n for n in names if (source / n).is_symlink() or (source / n).is_file())


def _digest(build: Build, source: Path, files: list[Path]) -> str:
    """SHA-256 over the way of building, the platform and every file's path, mode and content."""
    total = hashlib.sha256()
    way = build.model_dump(mode="json", exclude={"within", "source"})
    interpreter = sys.version_info[:2] if build.python else None
    total.update(json.dumps([way, platform.machine(), interpreter], sort_keys=True).encode())
    for name in files:
        path = source / name
        if path.is_symlink():
            kind, content = b"link", os.fsencode(os.readlink(path))
        else:
            kind = b"exec" if os.access(path, os.X_OK) else b"file"
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        total.update(b"\0".join([os.fsencode(name), kind, content, b""]))
    return total.hexdigest()[:32]


def _copy(source: Path, files: list[Path], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name, follow_symlinks=False)


def version_of(folder: Path) -> str:
    """What git calls the source; 'unversioned' outside of a repository."""
    described = _git(folder, "describe", "--always", "--dirty", "--tags")
    return described.decode().strip() if described else "unversioned"


def _git(folder: Path, *words: str) -> bytes | None:
    """What git says of a folder; None outside of a repository and where there is no git."""
    if not shutil.which("git"):
        return None
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
