"""Builds artifacts: a folder named by the digest of everything that went into it.

    artifacts/<digest>/app/           files of the service, the working directory of its replicas
                       venv/          for Python builds, relocatable
                       image.json     for images, which the Docker engine and a registry hold
                       tags           while one is built: how the engine will know it
                       attestations/  what is said of it under signature
                       artifact.json  written last: without it the folder is rubbish

The same inputs are built once. Nothing that runs writes here.
"""

import gzip
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

from blocks.checkouts import git, revision, version_of
from blocks.files import locked, locked_if_free, scratch, write_atomically
from blocks.images import Images, read_image, write_image
from blocks.steps import BuildFailed, Steps
from policy.errors import BadInput, DafnckError, Refused
from policy.image import Image
from policy.service_file import Build

log = logging.getLogger("dafnck")

DIGEST = re.compile(r"[0-9a-f]{32}")
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
            if (target / "artifact.json").exists() and self._image_is_there(digest):
                os.utime(target / "artifact.json")
                return digest, True
            shutil.rmtree(target, ignore_errors=True)
            (target / "app").mkdir(parents=True)
            started = time.time()
            log_file = self._artifacts / f"{digest}.log"
            with log_file.open("w") as output:
                steps = Steps(output, log_file, build.within)
                work = target / "work"
                self._take(build, source, files, work, digest)
                self._fill(build, source, work, files, target, steps, folder)
                shutil.rmtree(work)
            _check_whole(target)
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
        if image := self.image_of(digest):
            return image.size_bytes
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
        if not DIGEST.fullmatch(digest) or not self.folder(digest).is_dir():
            return False
        with locked(self._artifacts / "locks" / f"{digest}.lock"):
            (self.folder(digest) / "artifact.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder(digest))
        return True

    def image_of(self, digest: str) -> Image | None:
        """The image that this artifact is; None when it is made of files."""
        return read_image(self.folder(digest))

    @contextmanager
    def image_archive(self, digest: str) -> Iterator[Path | None]:
        """The image as `docker save` writes it, for as long as the body; None when it is none."""
        image = self.image_of(digest)
        if image is None:
            yield None
            return
        with scratch(self.scratch, "archive") as here:
            Images(self.scratch).save(image, here / "image.tar")
            yield here / "image.tar"

    def remove_unused(self, in_use: set[str], *, idle_seconds: float = 3600.0) -> list[str]:
        """Remove what no release needs and nobody asked for of late: an artifact that was built a
        moment ago may be on its way into a release."""
        removed = []
        for marker in sorted(self._artifacts.glob("*/artifact.json")):
            digest = marker.parent.name
            if digest in in_use or time.time() - marker.stat().st_mtime < idle_seconds:
                continue
            with locked(self._artifacts / "locks" / f"{digest}.lock"):
                if not self._remove_image(digest):
                    continue
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
                if free and not marker.exists() and self._remove_half_built_image(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder.name)
        return removed

    def _image_is_there(self, digest: str) -> bool:
        """An image may have gone from the engine: it is pulled by its digest, or built again."""
        image = self.image_of(digest)
        return image is None or Images(self.scratch).have(image)

    def _image_name(self) -> str:
        """Of this home's images: what another one of this machine removes is not ours."""
        return f"dafnck/{crc32(os.fsencode(self._artifacts.absolute())):08x}"

    def _remove_image(self, digest: str) -> bool:
        """-> False when that is for another time: it is in use, or the engine does not answer."""
        image = self.image_of(digest)
        if image is None:
            return True
        name = f"{self._image_name()}:{digest[:12]}"
        try:
            return Images(self.scratch).remove(image, name)
        except DafnckError as error:
            log.warning("artifact %s stays for now: %s", digest, error)
            return False

    def _remove_half_built_image(self, folder: Path) -> bool:
        """-> False when that is for another time."""
        try:
            if (folder / "tags").exists():
                Images(self.scratch).remove_tags((folder / "tags").read_text().split())
        except DafnckError as error:
            log.warning("what is left of %s stays for now: %s", folder.name, error)
            return False
        return True

    def _take(self, build: Build, source: Path, files: list[Path], work: Path, digest: str) -> None:
        """A copy of the source, to build from: what a build writes beside it is no part of it, and
        what somebody changes in it meanwhile goes into nothing."""
        _copy(source, files, work)
        if _digest(build, work, files) != digest:
            raise Refused(
                f"the source {source} was changed while it was copied; nothing was started, what "
                "served serves. Release again"
            )
        if (source / ".git").is_dir() and not (work / ".git").exists():
            # Builds ask git for a version; the files are those of the copy.
            (work / ".git").write_text(f"gitdir: {source / '.git'}\n")

    def _fill(
        self,
        build: Build,
        source: Path,
        work: Path,
        files: list[Path],
        target: Path,
        steps: "Steps",
        folder: Path,
    ) -> None:
        if build.image is not None:
            tag = target.name[:12]
            names = [self._image_name(), *filter(None, [build.image.push])]
            (target / "tags").write_text("".join(f"{name}:{tag}\n" for name in names))
            image = Images(self.scratch).build(
                build.image,
                work,
                folder,
                self._image_name(),
                tag,
                _labels(source, build.image.push),
                steps,
            )
            write_image(target, image)
            (target / "tags").unlink()
            return
        if build.command is not None:
            command = build.command
            out = str(target / "app")
            if isinstance(command, str):
                steps.run(["/bin/sh", "-c", command.replace("{out}", shlex.quote(out))], work)
            else:
                steps.run([word.replace("{out}", out) for word in command], work)
            if not any((target / "app").iterdir()):
                raise BuildFailed(
                    "the build command left {out} empty; nothing was released, what served serves"
                )
            return
        assert build.python is not None
        from uv import find_uv_bin

        _copy(work, files, target / "app")
        uv = os.fsdecode(find_uv_bin())
        python = build.python.version or sys.executable
        venv = target / "venv"
        steps.run([uv, "venv", "--relocatable", "--python", python, str(venv)], work)
        install = [uv, "pip", "install", "--compile-bytecode", "--link-mode", "copy"]
        install += ["--python", str(venv / "bin" / "python")]
        if build.python.requirements:
            install += ["--requirement", build.python.requirements]
        if build.python.project:
            project = (work / build.python.project).resolve()
            if (project / "uv.lock").exists():
                locked_to = target / "locked.txt"
                export = [uv, "export", "--quiet", "--frozen", "--no-dev", "--no-editable"]
                export += ["--no-emit-project", "--project", str(project)]
                steps.run([*export, "--output-file", str(locked_to)], work)
                steps.run([*install, "--requirement", str(locked_to)], work)
                locked_to.unlink()
                install.append("--no-deps")  # all of them are there, as the lock file says
            install.append(str(project))
        steps.run(install, work)


def _check_whole(target: Path) -> None:
    """An artifact holds all that it is made of: what lies elsewhere could be changed unseen."""
    for part in ("app", "venv"):
        if (target / part).is_symlink():
            raise BuildFailed("the build made {out} a link; nothing was released")
    for path in (target / "app").rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(target.resolve()):
            raise BuildFailed(
                f"the build left a link that leads out of the artifact, "
                f"{path.relative_to(target)} to {os.readlink(path)}; copy what it means. Nothing "
                "was released, what served serves"
            )
    for told in (target / "venv").glob("lib/python*/site-packages/*.dist-info/direct_url.json"):
        if json.loads(told.read_text()).get("dir_info", {}).get("editable"):
            raise BuildFailed(
                f"{told.parent.name.partition('-')[0]} is installed in editable mode, so that it "
                "is not part of the artifact; name it without -e. Nothing was released, what "
                "served serves"
            )


def _check_inside(build: Build, source: Path, files: list[Path]) -> None:
    """What an artifact is made from must be among what names it."""
    if build.image is not None:
        dockerfile = Path(os.path.normpath(Path(build.image.context, build.image.dockerfile)))
        if dockerfile not in files:
            raise BadInput(
                f"build.image.dockerfile: {dockerfile} is not part of the source {source}: there "
                "is no such file, or git ignores it; nothing was built"
            )
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


def _labels(source: Path, push: str | None) -> dict[str, str]:
    """What the image says of itself (OCI image spec, annotations); of git what git knows."""
    told = revision(source)
    labels = {
        "title": (push or str(source)).rpartition("/")[2],
        "source": told.uri,
        "revision": told.commit,
        "version": version_of(source) if told.commit else "",
        # Not the time of the build: the same commit gives the same label.
        "created": told.commit and datetime.fromtimestamp(told.authored_at or 0, UTC).isoformat(),
    }
    return {f"org.opencontainers.image.{key}": value for key, value in labels.items() if value}
