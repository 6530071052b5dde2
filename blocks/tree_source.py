"""Directories and files as a backup: one tar stream, and a listing that the copy is held to.

What is kept: content, modes, owners (given back by root alone), times to the nanosecond, extended
attributes with access lists, links and hard links, names of any bytes. Not: sockets, pipes and
devices, which are told. Holes of sparse files go as zeros, which compress to nothing, and are holes
again. Files that change meanwhile are copied as they are read, and told: only the state of a
database needs one moment for all, and has a kind of backup of its own.
"""

import os
import platform
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blocks import tar_pipe, tree_attributes
from blocks.tree_listing import Entry, Met, Tally, of_link, shown, walk
from blocks.tree_restore import TreeRestore
from policy.backup_manifest import BackupKind, Facts
from policy.errors import BadInput, NotApplied

__all__ = ["TreeRestore", "TreeSource"]
PIECE = 1 << 20
NAMED = 10  # paths that are told one by one
FILES, LISTING = "files", "listing"


class TreeSource:
    """Each path is in the archive under its own absolute path."""

    kind: BackupKind = "files"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    @contextmanager
    def begin(self) -> Iterator["_Copying"]:
        copying = _Copying(list(_tops(self._paths)))
        try:
            yield copying
        finally:
            copying.close()


def _tops(paths: Sequence[Path]) -> Iterator[bytes]:
    """In the order of a walk, none within another. Raises BadInput."""
    tops = {os.path.abspath(os.fsencode(path)) for path in paths}
    for top in sorted(tops, key=lambda path: path.split(b"/")):
        if not os.path.exists(top):
            raise BadInput(f"{shown(top)} is not there; nothing was backed up")
        if not any(other != top and top.startswith(os.path.join(other, b"")) for other in tops):
            yield top


class _Copying:
    def __init__(self, tops: list[bytes]) -> None:
        self._tops, self.snapshot_at = tops, time.time()
        self._tally = Tally()
        self._whole = False
        self._running: Iterator[tuple[str, BinaryIO]] | None = None
        self._linked: dict[tuple[int, int], Entry] = {}  # inode with several names -> its first
        self._told: dict[str, list[bytes]] = {}

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        self._running = self._streams()
        return self._running

    def _streams(self) -> Iterator[tuple[str, BinaryIO]]:
        with tar_pipe.piped(self._write, "files were not copied") as pipe:
            yield FILES, pipe
        self._whole = True
        self._tally.file.seek(0)
        yield LISTING, self._tally.file

    def close(self) -> None:
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._tally.file.close()

    def facts(self) -> Facts:
        if not self._whole:
            raise NotApplied("files were not read to their end: nothing can be said of them")
        detail = {
            "host": platform.node(),
            "paths": ", ".join(map(shown, self._tops)),
        }
        for what, paths in self._told.items():
            words = ", ".join(shown(path) for path in paths[:NAMED])
            more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
            detail[what] = words + more
        return Facts(tree=self._tally.facts(), detail=detail)

    def tools(self) -> dict[str, str]:
        return {"python": platform.python_version()}

    def _tell(self, what: str, path: bytes) -> None:
        self._told.setdefault(what, []).append(path)

    def _write(self, out: BinaryIO) -> None:
        for top in self._tops:
            # A link that was named is followed; what it leads to has the name of the link.
            real = os.path.realpath(top)
            for met in walk(real, lambda path: self._tell(GONE, path)):
                if name := (top + met.path[len(real) :]).lstrip(b"/"):
                    self._add(out, met, name)
        tar_pipe.end(out)

    def _add(self, out: BinaryIO, met: Met, name: bytes) -> None:
        found, inode = met.found, (met.found.st_dev, met.found.st_ino)
        if stat.S_ISDIR(found.st_mode):
            self._add_directory(out, met, name)
        elif stat.S_ISLNK(found.st_mode):
            self._add_link(out, met, name)
        elif not stat.S_ISREG(found.st_mode):
            self._tell(SPECIAL, met.path)
        elif first := self._linked.get(inode):
            member = _member(name, found, tarfile.LNKTYPE)
            member.linkname = tar_pipe.text(first.path)
            tar_pipe.head(out, member)
            self._tally.add(Entry(name, first.mode, first.size, first.content))
        elif entry := self._add_file(out, met, name):
            self._tally.add(entry)
            if found.st_nlink > 1:
                self._linked[inode] = entry

    def _add_directory(self, out: BinaryIO, met: Met, name: bytes) -> None:
        try:
            handle = met.open(os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            self._tell(GONE, met.path)
            return
        try:
            more = tree_attributes.read(handle)
        finally:
            os.close(handle)
        tar_pipe.head(out, _member(name, met.found, tarfile.DIRTYPE, more))
        self._tally.add(Entry(name, met.found.st_mode, 0, ""))

    def _add_link(self, out: BinaryIO, met: Met, name: bytes) -> None:
        try:
            target = met.target()
        except (FileNotFoundError, NotADirectoryError):
            self._tell(GONE, met.path)
            return
        member = _member(name, met.found, tarfile.SYMTYPE)
        member.linkname = tar_pipe.text(target)
        tar_pipe.head(out, member)
        self._tally.add(Entry(name, met.found.st_mode, 0, of_link(target)))

    def _add_file(self, out: BinaryIO, met: Met, name: bytes) -> Entry | None:
        try:
            # Somebody may put a link or a pipe in its place: nothing is followed or waited for.
            handle = met.open(os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            self._tell(GONE, met.path)
            return None
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                self._tell(CHANGED, met.path)
                return None
            more = tree_attributes.read(handle)
            tar_pipe.head(out, _member(name, found, tarfile.REGTYPE, more))
            pieces = _exactly(handle, met.path, found.st_size)
            sha256 = tar_pipe.content(out, found.st_size, pieces)
            after = os.fstat(handle)
        finally:
            os.close(handle)
        if (after.st_size, after.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
            self._tell(CHANGED, met.path)
        return Entry(name, found.st_mode, found.st_size, sha256)


GONE = "gone before they were read"
CHANGED = "changed while they were read"
SPECIAL = "left out: sockets, pipes, devices"


def _exactly(handle: int, path: bytes, size: int) -> Iterator[bytes]:
    """The head says how many bytes come: no more of a file that grows, zeros for one that
    shrinks."""
    while size:
        try:
            piece = os.read(handle, min(size, PIECE))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        piece = piece or bytes(min(size, PIECE))
        size -= len(piece)
        yield piece


def _member(
    name: bytes, found: os.stat_result, kind: bytes, more: Mapping[str, str] | None = None
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(tar_pipe.text(name))
    member.type, member.mode = kind, stat.S_IMODE(found.st_mode)
    member.uid, member.gid = found.st_uid, found.st_gid
    member.size = found.st_size if kind == tarfile.REGTYPE else 0
    # As a float it would lose the nanoseconds.
    member.mtime = found.st_mtime_ns / 10**9
    member.pax_headers = {"mtime": _exact(found.st_mtime_ns), **(more or {})}
    return member


def _exact(nanoseconds: int) -> str:
    sign, (seconds, rest) = "-" * (nanoseconds < 0), divmod(abs(nanoseconds), 10**9)
    return f"{sign}{seconds}.{rest:09d}"
