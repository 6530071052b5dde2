"""Builds artifacts: a folder named by the digest of everything that went into it.

    artifacts/<digest>/app/           files of the service, the working directory of its replicas
                       venv/          for Python builds, relocatable
                       attestations/  what is said of it under signature
                       artifact.json  written last: without it the folder is rubbish

The same inputs are built once. Nothing that runs writes here.
"""

import gzip
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.checkouts import git
from blocks.files import locked, locked_if_free, scratch, write_atomically
from blocks.steps import BuildFailed, Steps
from policy.errors import BadInput, Refused
from policy.service_file import Build

LEFT_OUT = {".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache"}


class Builder:
    def __init__(self, artifacts: Path) -> None:
        self._artifacts = artifacts
        self.scratch = artifacts.parent / "scratch"  # for what lives no longer than its use

    def build(
        self,
        build: Build,
        folder: Path,
        attest: Callable[[str, Path, float], None] = lambda digest, target, started: None,
    ) -> tuple[str, bool]:
        """-> (digest, was it there already). `folder` is the service file's place, or a checkout.
        `attest` is called with digest, artifact and when the build began, once all is built; the
        artifact is whole after it."""
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
                self._fill(build, source, files, target, Steps(output, log, build.within))
            attest(digest, target, started)
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

    def folder(self, digest: str) -> Path:
        """Where an artifact lies; nothing may write there."""
        return self._artifacts / digest

    def size_bytes(self, digest: str) -> int | None:
        """Of all files of an artifact; None when it is not whole."""
        if not (self.folder(digest) / "artifact.json").exists():
            return None
        return sum(
            path.lstat().st_size for path in self.folder(digest).rglob("*") if not path.is_dir()
        )

    @contextmanager
    def packed(self, digest: str) -> Iterator[Path]:
        """A tar archive of an artifact, for as long as the body; the same bytes for the same
        artifact."""
        with scratch(self.scratch, "packed") as here:
            archive = here / "artifact.tar.gz"
            with (
                archive.open("wb") as raw,
                gzip.GzipFile("", "wb", 1, raw, mtime=0) as zipped,
                tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for path in sorted(self.folder(digest).rglob("*")):
                    name = str(path.relative_to(self.folder(digest)))
                    tar.add(path, name, recursive=False, filter=_anonymous)
            yield archive

    @contextmanager
    def image_archive(self, digest: str) -> Iterator[Path | None]:
        """The image that an artifact is, as `docker save` writes it, for as long as the body; None
        when it is none."""
        yield None

    @contextmanager
    def source_of(self, build: Build, folder: Path, digest: str) -> Iterator[Path]:
        """A copy of what this artifact was built from, for as long as the body. Raises Refused when
        the source is another by now."""
        source = (folder / build.source).resolve()
        files = list(_source_files(source))
        with scratch(self.scratch, "source") as copy:
            _copy(source, files, copy)
            if _digest(build, copy, files) != digest:
                raise Refused(
                    f"the source {source} was changed after it was built; nothing was started. "
                    "Release again"
                )
            yield copy

    def discard(self, digest: str) -> bool:
        """Remove an artifact that is not what it should be. -> whether there was one. The next
        release that needs it builds it anew."""
        if not digest or "/" in digest or not self.folder(digest).is_dir():
            return False
        with locked(self._artifacts / "locks" / f"{digest}.lock"):
            (self.folder(digest) / "artifact.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder(digest))
        return True

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
        self, build: Build, source: Path, files: list[Path], target: Path, steps: "Steps"
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
    """What git tracks or would track, in submodules too; without git everything but caches.
    Relative, sorted."""
    listed = git(source, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
        for module in [name for name in names if (source / name / ".git").exists()]:
            names |= {module / name for name in _source_files(source / module)}
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
    way = build.model_dump(mode="json", exclude={"within", "source", "git"})
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


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what tells one machine or moment from another."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _copy(source: Path, files: list[Path], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name, follow_symlinks=False)
