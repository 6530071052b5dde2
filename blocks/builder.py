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
import io
import json
import logging
import os
import platform
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32
from zlib import error as ZlibError

from blocks.application import by_command, check_whole, of_python
from blocks.checkouts import revision, version_of
from blocks.files import locked, locked_if_free, scratch, write_atomically
from blocks.images import Images, read_image, write_image
from blocks.source import Source
from blocks.steps import Steps
from policy.errors import DafnckError, Refused
from policy.image import Image, ImageBuild, named
from policy.service_file import Build

log = logging.getLogger("dafnck")

DIGEST = re.compile(r"[0-9a-f]{32}")


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
        source = Source(build, folder)
        digest, target = source.digest, self._artifacts / source.digest
        with locked(self._artifacts / "locks" / f"{digest}.lock"):
            if (target / "artifact.json").exists() and self._image_is_there(digest):
                os.utime(target / "artifact.json")
                return digest, True
            shutil.rmtree(target, ignore_errors=True)
            (target / "app").mkdir(parents=True)
            started = time.time()
            log_file = self._artifacts / f"{digest}.log"
            with log_file.open("w") as output:
                steps, work = Steps(output, log_file, build.within), target / "work"
                work.mkdir()  # also of a source without files
                source.copy(work)
                if build.image is not None:
                    self._build_image(build.image, source.folder, work, target, steps, folder)
                elif build.command is not None:
                    by_command(build.command, work, target, steps)
                elif build.python is not None:
                    of_python(build.python, source, work, target, steps)
                shutil.rmtree(work)
            check_whole(target)
            attest(digest, target, started)
            content = {
                "digest": digest,
                "built_at": started,
                "seconds": round(time.time() - started, 3),
                "build": build.model_dump(mode="json"),
                "files": len(source.files),
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

    def unpack(self, digest: str, archive: bytes) -> None:
        """Have an artifact that was built and packed elsewhere. What it is worth is told by its
        signature. Raises Refused for what is no such archive."""
        with scratch(self.scratch, "unpacked") as here:
            try:
                with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                    _write_out(tar, here / digest)
            except (tarfile.TarError, OSError, EOFError, ZlibError) as error:
                raise Refused(
                    f"the stored artifact {digest} cannot be unpacked ({error}); nothing was "
                    "started, what served serves. Release again and it is built anew"
                ) from None
            if self.size_bytes(digest) is None:  # what lies there is rubbish, or nothing does
                shutil.rmtree(self.folder(digest), ignore_errors=True)
                self._artifacts.mkdir(parents=True, exist_ok=True)
                (here / digest).rename(self.folder(digest))

    @contextmanager
    def source_of(self, build: Build, folder: Path, digest: str) -> Iterator[Path]:
        """A copy of what this artifact was built from, for as long as the body. Raises Refused when
        the source is another by now."""
        source = Source(build, folder)
        if source.digest != digest:
            raise Refused(
                f"the source {source.folder} was changed after it was built; nothing was started. "
                "Release again"
            )
        with scratch(self.scratch, "source") as copy:
            source.copy(copy)
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
            Images(self.scratch).have(image)
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
        return image is None or not image.built or Images(self.scratch).have(image)

    def _image_name(self) -> str:
        """Of this home's images: what another one of this machine removes is not ours."""
        return f"dafnck/{crc32(os.fsencode(self._artifacts.absolute())):08x}"

    def _remove_image(self, digest: str) -> bool:
        """-> False when that is for another time: it is in use, or the engine does not answer."""
        image = self.image_of(digest)
        if image is None or not image.built:
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

    def _build_image(
        self,
        wanted: ImageBuild,
        source: Path,
        work: Path,
        target: Path,
        steps: Steps,
        folder: Path,
    ) -> None:
        if wanted.reference is not None:
            write_image(target, named(wanted.reference))
            return
        tag = target.name[:12]
        names = [self._image_name(), *filter(None, [wanted.push])]
        (target / "tags").write_text("".join(f"{name}:{tag}\n" for name in names))
        labels = _labels(source, wanted.push)
        image = Images(self.scratch).build(
            wanted, work, folder, self._image_name(), tag, labels, steps
        )
        write_image(target, image)
        (target / "tags").unlink()


def _write_out(tar: tarfile.TarFile, folder: Path) -> None:
    """Folders and plain files, within this folder: an image consists of nothing else. Not by
    `extractall`, which cannot be held to that before Python 3.11.4."""
    folder.mkdir()
    folder = folder.resolve()
    for member in tar:
        path = folder / member.name
        if member.isdir() and path.resolve().is_relative_to(folder):
            path.mkdir(parents=True, exist_ok=True)
            continue
        content = tar.extractfile(member) if member.isfile() else None
        if content is None or not path.resolve().is_relative_to(folder):
            raise tarfile.TarError(f"{member.name} is no plain file of it")
        path.write_bytes(content.read())


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what tells one machine or moment from another."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


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
