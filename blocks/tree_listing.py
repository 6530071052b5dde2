"""What is in a tree, a line an entry, in the order in which a walk meets them; and in which way two
trees differ, in constant memory.

    srv/shop\\0100644\\012\\0<SHA-256>        path, st_mode in octal, bytes, content
    srv/link\\0120777\\00\\0shop              a link: where it points

Paths and targets are percent-encoded, whatever bytes they hold. The SHA-256 of all lines is the
digest of the tree.
"""

import hashlib
import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

from policy.backup_manifest import Difference, TreeFacts
from policy.errors import Damaged

PIECE = 1 << 20
SHOWN = 20  # differences that are told one by one


@dataclass(frozen=True)
class Entry:
    path: bytes  # without a leading slash
    mode: int  # st_mode: kind and permissions; 0 for an object of a bucket
    size: int
    content: str  # SHA-256 in hex; of a link its target, encoded; of a directory empty

    @property
    def order(self) -> list[bytes]:
        """A directory before what is in it, that before all that comes after the directory."""
        return self.path.split(b"/")

    def line(self) -> bytes:
        words = (quote_from_bytes(self.path), f"{self.mode:o}", str(self.size), self.content)
        return "\0".join(words).encode() + b"\n"

    def __str__(self) -> str:
        kind = KINDS.get(stat.S_IFMT(self.mode), "object" if self.mode == 0 else "special file")
        words = [f"{kind} of mode {stat.S_IMODE(self.mode):o}" if self.mode else kind]
        if kind == "link":
            words.append(f"to {shown(unquote_to_bytes(self.content))}")
        elif kind != "directory":
            sha256, *rest = self.content.split(" ")
            words += [f"{self.size:,} bytes", f"SHA-256 {sha256[:12]}…", *map(unquote, rest)]
        return ", ".join(words)


KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def shown(path: bytes) -> str:
    """For people, in one line, and for JSON, which takes no half characters."""
    words = path.decode(errors="backslashreplace")
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in words)


def unnamed(owner: object) -> BinaryIO:
    """A file that is gone with its owner, and by any death of ours."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    weakref.finalize(owner, file.close)
    return file


def of_link(target: bytes) -> str:
    return quote_from_bytes(target)


class Tally:
    """A listing that is being written: into a file without a name, which a death removes too."""

    def __init__(self) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        self._digest, self._count, self._bytes = hashlib.sha256(), 0, 0

    def add(self, entry: Entry) -> None:
        line = entry.line()
        self.file.write(line)
        self._digest.update(line)
        self._count += 1
        self._bytes += entry.size

    def facts(self) -> TreeFacts:
        return TreeFacts(
            count=self._count, total_bytes=self._bytes, digest=self._digest.hexdigest()
        )


def entries(listing: BinaryIO) -> Iterator[Entry]:
    """Of a listing from its begin. Raises Damaged."""
    listing.seek(0)
    for line in listing:
        try:
            path, mode, size, content = line.decode().rstrip("\n").split("\0")
            yield Entry(unquote_to_bytes(path), int(mode, 8), int(size), content)
        except ValueError:
            raise Damaged("the listing of the backup cannot be read") from None


def keep(listing: BinaryIO, into: BinaryIO, facts: TreeFacts | None) -> None:
    """Copy a listing. Raises Damaged when it is not the one of these facts."""
    digest = hashlib.sha256()
    while piece := listing.read(PIECE):
        digest.update(piece)
        into.write(piece)
    if facts is None or digest.hexdigest() != facts.digest:
        raise Damaged("the listing of the backup is not the one that its manifest says")


@dataclass(frozen=True)
class Met:
    """On a walk. `folder`: the open directory that it is in, as long as the walk stands here;
    None for the top. Whatever is opened from there is in the tree, whoever moves it meanwhile."""

    path: bytes
    found: os.stat_result
    folder: int | None

    def open(self, flags: int) -> int:
        """Through no link. Raises OSError with the whole path."""
        name = self.path if self.folder is None else os.path.basename(self.path)
        try:
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=self.folder)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, self.path) from None

    def target(self) -> bytes:
        name = self.path if self.folder is None else os.path.basename(self.path)
        return os.readlink(name, dir_fd=self.folder)


def walk(top: bytes, gone: Callable[[bytes], None]) -> Iterator[Met]:
    """This path, and all within it when it is a directory, in order. What is gone when it is
    looked at is told. Raises OSError for what cannot be looked at."""
    left: list[tuple[int | None, Iterator[bytes]]] = [(None, iter([top]))]
    try:
        while left:
            folder, paths = left[-1]
            if (path := next(paths, None)) is None:
                left.pop()
                if folder is not None:
                    os.close(folder)
                continue
            name = path if folder is None else os.path.basename(path)
            inner = None
            try:
                met = Met(path, os.lstat(name, dir_fd=folder), folder)
                if stat.S_ISDIR(met.found.st_mode):
                    inner = met.open(os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                gone(path)
                continue
            if inner is not None:
                inside = sorted(map(os.fsencode, os.listdir(inner)))
                left.append((inner, iter([os.path.join(path, name) for name in inside])))
            yield met
    finally:
        for folder, _ in left:
            if folder is not None:
                os.close(folder)


def differences(wanted: Iterable[Entry], found: Iterable[Entry]) -> list[Difference]:
    """Both in order. Directories that only lead to a wanted one need not be wanted themselves."""
    counted = _Counted()
    expected, there = iter(wanted), iter(found)
    want, have = next(expected, None), next(there, None)
    while want or have:
        if want is None or (have is not None and have.order < want.order):
            assert have
            if want is None or not _leads_to(have, want):
                counted.add(have.path, "nothing", f"there is a {have} too many")
            have = next(there, None)
        elif have is None or want.order < have.order:
            counted.add(want.path, str(want), "it is missing")
            want = next(expected, None)
        else:
            if (want.mode, want.size, want.content) != (have.mode, have.size, have.content):
                counted.add(want.path, str(want), str(have))
            want, have = next(expected, None), next(there, None)
    return counted.found()


def _leads_to(have: Entry, want: Entry) -> bool:
    return stat.S_ISDIR(have.mode) and want.path.startswith(have.path + b"/")


class _Counted:
    def __init__(self) -> None:
        self._first: list[Difference] = []
        self._count = 0

    def add(self, path: bytes, wanted: str, found: str) -> None:
        self._count += 1
        if self._count <= SHOWN:
            self._first.append(Difference(what=shown(path), wanted=wanted, found=found))

    def found(self) -> list[Difference]:
        if self._count <= SHOWN:
            return self._first
        words = f"{self._count - SHOWN} more differ"
        return [*self._first, Difference(what="all others", wanted="none does", found=words)]
