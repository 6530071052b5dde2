"""Files as one tar stream and back, held to one digest on both sides.

Nothing is ever written outside the folder that is unpacked to: files first, links last, and no
file where something lies already.
"""

import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from policy.backup_manifest import TreeFacts
from policy.errors import NotApplied

PIECE = 1 << 20


class Tally:
    """Counts and digests what goes by."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._bytes = 0

    def add(self, name: str, mode: int, size: int, sha256: str) -> None:
        self._lines.append(f"{quote(os.fsencode(name))} {mode:o} {size} {sha256}\n")
        self._bytes += size

    def facts(self) -> TreeFacts:
        digest = hashlib.sha256("".join(sorted(self._lines)).encode()).hexdigest()
        return TreeFacts(count=len(self._lines), total_bytes=self._bytes, digest=digest)


def under(place: Path, name: str) -> Iterator[tuple[str, Path]]:
    """This file, or this folder and all within it, sorted: (name in the archive, where it lies)."""
    path = place / name
    if path.is_symlink() or not path.is_dir():
        if path.is_symlink() or path.exists():
            yield name, path
        return
    yield name, path
    for entry in sorted(os.listdir(path)):
        yield from under(place, f"{name}/{entry}")


def pack(items: Iterable[tuple[str, Path]], out: BinaryIO) -> TreeFacts:
    """Write them to `out`. Raises NotApplied for what is neither file, folder nor link, OSError."""
    tally = Tally()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, path in items:
            _add(tar, tally, name, path)
    return tally.facts()


def _add(tar: tarfile.TarFile, tally: Tally, name: str, path: Path) -> None:
    found = path.lstat()
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    if stat.S_ISDIR(found.st_mode):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISLNK(found.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(member)
        tally.add(name, 0o777, 0, _of_link(member.linkname))
    elif stat.S_ISREG(found.st_mode):
        with path.open("rb") as file:
            member.size = os.fstat(file.fileno()).st_size
            content = _Hashing(file)
            tar.addfile(member, content)
            tally.add(name, member.mode, member.size, content.sha256.hexdigest())
    else:
        raise NotApplied(f"{path} is neither file nor folder nor link: it cannot be kept")


def unpack(archive: BinaryIO, folder: Path) -> None:
    """Into a folder that is empty. Raises NotApplied for what must not be in such an archive, and
    when the disk does not take it."""
    links: list[tuple[Path, str]] = []
    modes: list[tuple[Path, int]] = []
    try:
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for member in tar:
                path = _within(folder, member.name)
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    modes.append((path, member.mode | 0o700))
                elif member.issym():
                    links.append((path, member.linkname))
                else:
                    _write(tar, member, path)
        for path, target in links:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        for path, mode in modes:
            path.chmod(mode)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotApplied(f"it was not unpacked to {folder}: {error}") from None
    while archive.read(PIECE):  # zeros to the end of a block: who sends them must not be cut off
        pass


def _within(folder: Path, name: str) -> Path:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or not parts[0]:
        raise tarfile.TarError(f"{name!r} leads out of it")
    return folder / name


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise tarfile.TarError(f"{member.name!r} is neither file nor folder nor link")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with content, os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(content, file, PIECE)
        os.fchmod(handle, member.mode)


def facts_of(items: Iterable[tuple[str, Path]]) -> TreeFacts:
    """What `pack` said of the same files."""
    tally = Tally()
    for name, path in items:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            tally.add(name, 0o777, 0, _of_link(os.readlink(path)))
        elif not stat.S_ISDIR(found.st_mode):
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            tally.add(name, stat.S_IMODE(found.st_mode), found.st_size, sha256)
    return tally.facts()


def _of_link(target: str) -> str:
    return hashlib.sha256(os.fsencode(target)).hexdigest()


class _Hashing(io.RawIOBase):
    """A file that is digested while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.sha256.update(piece)
        return piece
