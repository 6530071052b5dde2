"""Directories and files out of a backup, into a folder of their own, and held to the listing.

Nothing is ever written outside that folder: every path is opened from it step by step, through no
link, whatever the archive says.
"""

import hashlib
import logging
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

from blocks import tar_pipe, tree_attributes, tree_listing
from blocks.ports import StreamOf
from blocks.tree_listing import PIECE, Entry, entries, of_link, shown, unnamed, walk
from policy.backup_manifest import Difference, Manifest
from policy.errors import BadInput, NotApplied

log = logging.getLogger("dafnck")

STEP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
FILES, LISTING = "files", "listing"
AS_OWNER = stat.S_ISUID | stat.S_ISGID
ZEROS = bytes(PIECE)


class TreeRestore:
    """Into `folder`, which is empty or not there. `owners`: they come back too, and with them the
    right to run as them (setuid, setgid), else everything is ours without it; as root, and nobody
    else, one can."""

    def __init__(self, folder: Path, *, owners: bool | None = None) -> None:
        self._folder = folder
        self._owners = os.geteuid() == 0 if owners is None else owners
        self._listing: BinaryIO | None = None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        """All of it, or nothing is left there."""
        if os.path.lexists(self._folder) and (
            not self._folder.is_dir() or next(self._folder.iterdir(), None)
        ):
            raise BadInput(f"{self._folder} is not empty; nothing was changed. Name another")
        self._listing = file = unnamed(self)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                _Unpacking(self._folder, self._owners) as into,
                stream_of(FILES) as archive,
            ):
                for member, tar in tar_pipe.members(archive):
                    into.add(member, tar)
            with stream_of(LISTING) as listing:
                tree_listing.keep(listing, file, manifest.facts.tree)
        except BaseException as error:
            _empty(self._folder)
            if isinstance(error, tarfile.TarError | OSError | EOFError):
                words = f"it was not unpacked to {self._folder}, where nothing is left: {error}"
                raise NotApplied(words) from error
            raise
        if into.refused:
            words = ", ".join(sorted(into.refused))
            log.warning("%s: attributes that cannot be given here: %s", self._folder, words)

    def differences(self, manifest: Manifest) -> list[Difference]:
        if self._listing is None:
            raise NotApplied(f"nothing was restored to {self._folder}")
        wanted = entries(self._listing)
        if not self._owners:
            wanted = (replace(one, mode=one.mode & ~AS_OWNER) for one in wanted)
        return tree_listing.differences(wanted, _found(self._folder))


def _empty(folder: Path) -> None:
    """Of what we put there: before, there was nothing."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _found(folder: Path) -> Iterator[Entry]:
    """What is on the disk, read again."""
    top = os.fsencode(folder)
    for met in walk(top, lambda path: None):
        path, found = met.path, met.found
        if path == top:
            continue
        size, content = 0, ""
        if stat.S_ISLNK(found.st_mode):
            content = of_link(met.target())
        elif stat.S_ISREG(found.st_mode):
            size = found.st_size
            try:
                with open(met.open(os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                content = f"unknown: {error.strerror}"
        yield Entry(os.path.relpath(path, top), found.st_mode, size, content)


@dataclass(frozen=True)
class _Directory:
    """Gets its mode and time when nothing is written into it any more."""

    name: bytes
    member: tarfile.TarInfo


class _Unpacking:
    def __init__(self, folder: Path, owners: bool) -> None:
        self.refused: set[str] = set()  # attributes
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._last: tuple[bytes, int] | None = None  # the directory of the last one, open
        self._directories: list[_Directory] = []
        self._owners = owners

    def __enter__(self) -> "_Unpacking":
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        try:
            if kind is None:
                for one in reversed(self._directories):
                    handle = self._opened(one.name)
                    try:
                        self._finish(handle, one.member)
                    finally:
                        os.close(handle)
        finally:
            if self._last:
                os.close(self._last[1])
            os.close(self._root)

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        name = _safe(member.name)
        folder, leaf = self._folder_of(name)
        if member.isdir():
            try:
                os.mkdir(leaf, 0o700, dir_fd=folder)
            except FileExistsError:
                os.close(os.open(leaf, STEP, dir_fd=folder))  # a directory, or it is refused
            self._directories.append(_Directory(name, member))
        elif member.issym():
            os.symlink(member.linkname.encode(*tar_pipe.ENCODING), leaf, dir_fd=folder)
            self._own(leaf, folder, member)
            os.utime(leaf, ns=_times(member), dir_fd=folder, follow_symlinks=False)
        elif member.islnk():
            self._link(member, leaf, folder)
        elif member.isreg():
            self._file(member, tar, leaf, folder)
        else:
            raise tarfile.TarError(f"{shown(name)} is neither file nor directory nor link")

    def _file(
        self, member: tarfile.TarInfo, tar: tarfile.TarFile, leaf: bytes, folder: int
    ) -> None:
        content = tar.extractfile(member)
        assert content is not None
        with open(os.open(leaf, NEW, 0o600, dir_fd=folder), "wb", buffering=0) as file:
            left = member.size
            while left:
                if not (piece := content.read(min(left, PIECE))):
                    raise tarfile.TarError("it ends too soon")
                left -= len(piece)
                if piece == ZEROS[: len(piece)]:
                    file.seek(len(piece), os.SEEK_CUR)  # a hole
                else:
                    _write(file, piece)
            file.truncate(member.size)
            self._finish(file.fileno(), member)

    def _link(self, member: tarfile.TarInfo, leaf: bytes, folder: int) -> None:
        other = _safe(member.linkname)
        there = self._opened(os.path.dirname(other))
        try:
            os.link(
                os.path.basename(other),
                leaf,
                src_dir_fd=there,
                dst_dir_fd=folder,
                follow_symlinks=False,
            )
        finally:
            os.close(there)

    def _finish(self, handle: int, member: tarfile.TarInfo) -> None:
        if self._owners:
            os.chown(handle, member.uid, member.gid)
        self.refused.update(tree_attributes.write(handle, member.pax_headers))
        # After the owner, which takes bits away, and an access list, which has some of them.
        os.chmod(handle, member.mode if self._owners else member.mode & ~AS_OWNER)
        os.utime(handle, ns=_times(member))

    def _own(self, leaf: bytes, folder: int, member: tarfile.TarInfo) -> None:
        if self._owners:
            os.chown(leaf, member.uid, member.gid, dir_fd=folder, follow_symlinks=False)

    def _folder_of(self, name: bytes) -> tuple[int, bytes]:
        """-> (its directory, open; its name there). That of the last one mostly."""
        path, leaf = os.path.split(name)
        if self._last is None or self._last[0] != path:
            opened = self._opened(path)
            if self._last:
                os.close(self._last[1])
            self._last = (path, opened)
        return self._last[1], leaf

    def _opened(self, path: bytes) -> int:
        """Step by step, through no link; what is not there is made."""
        handle = os.dup(self._root)
        for step in filter(None, path.split(b"/")):
            try:
                try:
                    inner = os.open(step, STEP, dir_fd=handle)
                except FileNotFoundError:
                    os.mkdir(step, 0o755, dir_fd=handle)
                    inner = os.open(step, STEP, dir_fd=handle)
            finally:
                os.close(handle)
            handle = inner
        return handle


def _write(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:  # a disk that is nearly full takes some of it first
        view = view[file.write(view) :]


def _safe(name: str) -> bytes:
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise tarfile.TarError(f"{name!r} leads out of it")
    return name.encode(*tar_pipe.ENCODING)


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    """(of the last look, of the last change), in nanoseconds."""
    exact = member.pax_headers.get("mtime", "")
    seconds, _, rest = exact.lstrip("-").partition(".")
    if seconds.isdigit() and (not rest or rest.isdigit()):
        found = int(seconds) * 10**9 + int(rest.ljust(9, "0")[:9])
        found = -found if exact.startswith("-") else found
    else:
        found = int(member.mtime) * 10**9
    return found, found
