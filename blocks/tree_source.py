"""Directories and files as a backup: one tar stream, and a listing of what is really in it.

What a thread of ours reads, it hashes on the way: a file that changes meanwhile is in the listing
as it is in the stream. The listing comes second, when it is known.
"""

import hashlib
import json
import os
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from blocks.ports import StreamOf
from policy.backup_manifest import BackupKind, Difference, Facts, Manifest, TreeFacts
from policy.errors import BadInput, Damaged, NotApplied, Refused

FILES, LISTING = "files", "listing"
PIECE_BYTES = 2**20
SHOWN = 20  # differences


@dataclass
class Listing:
    """path -> (mode, bytes, SHA-256 of its content or target of the link)"""

    entries: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def digest(self) -> str:
        lines = (
            f"{path}\0{mode:o}\0{size}\0{content}\n"
            for path, (mode, size, content) in sorted(self.entries.items())
        )
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def facts(self) -> TreeFacts:
        sizes = sum(size for _, size, _ in self.entries.values())
        return TreeFacts(count=len(self.entries), total_bytes=sizes, digest=self.digest())

    def write(self) -> bytes:
        return json.dumps(self.entries).encode()

    @staticmethod
    def read(content: bytes) -> "Listing":
        return Listing({path: (m, s, c) for path, (m, s, c) in json.loads(content).items()})

    def differences(self, found: "Listing") -> list[Difference]:
        """What `found` has otherwise than this."""
        told = []
        for path in sorted({*self.entries, *found.entries}):
            wanted, there = self.entries.get(path), found.entries.get(path)
            if wanted != there:
                shown = path.encode(errors="surrogateescape").decode(errors="replace")
                told.append(
                    Difference(what=f"file {shown}", wanted=_worded(wanted), found=_worded(there))
                )
        return told[:SHOWN]


def _worded(entry: tuple[int, int, str] | None) -> str:
    if entry is None:
        return "is not there"
    mode, size, content = entry
    return f"mode {mode:o}, {size:,} bytes, {content[:16]}"


class TreeSource:
    kind: BackupKind = "files"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    @contextmanager
    def begin(self) -> Iterator["TreeCopy"]:
        for path in self._paths:
            if not os.path.lexists(path):
                raise BadInput(f"there is no {path}; nothing was backed up")
        yield TreeCopy(self._paths, time.time())


class TreeCopy:
    def __init__(self, paths: Sequence[Path], snapshot_at: float) -> None:
        self._paths, self._at = paths, snapshot_at
        self._listing, self._told = Listing(), dict[str, str]()

    @property
    def snapshot_at(self) -> float:
        return self._at

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        with piped(self._write) as pipe:
            yield FILES, pipe
        content = self._listing.write()
        with piped(lambda out: out.write(content)) as pipe:
            yield LISTING, pipe

    def facts(self) -> Facts:
        named = {"paths": ", ".join(map(str, self._paths))}
        return Facts(tree=self._listing.facts(), detail=named | self._told)

    def tools(self) -> dict[str, str]:
        return {"tar": "pax"}

    def _write(self, out: BinaryIO) -> None:
        with tarfile.open(
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE_BYTES
        ) as tar:
            for top in self._paths:
                for path in _walk(top):
                    self._add(tar, path)

    def _add(self, tar: tarfile.TarFile, path: Path) -> None:
        try:
            info = tar.gettarinfo(str(path))
        except FileNotFoundError:
            return  # it vanished after it was listed: it is in no backup of this moment
        except OSError as error:
            raise NotApplied(f"{path} cannot be read: {error.strerror}") from None
        if info is None:
            self._told[f"left out {path}"] = "a socket"
            return
        if info.isfifo() or info.ischr() or info.isblk():
            self._told[f"left out {path}"] = "a pipe or device"
            return
        name = info.name
        if info.isreg():
            try:
                with path.open("rb") as file:
                    hashed = _Hashed(file, info.size)
                    tar.addfile(info, hashed)  # type: ignore[arg-type]
            except FileNotFoundError:
                return
            except OSError as error:
                raise NotApplied(f"{path} cannot be read: {error.strerror}") from None
            if hashed.padded:
                self._told[f"shrank while read: {path}"] = f"{hashed.padded:,} bytes are zeros"
            self._listing.entries[name] = (info.mode & 0o7777, info.size, hashed.hexdigest())
            return
        tar.addfile(info)
        if info.islnk():
            # The same file under another name; its content is hashed where it came first.
            mode, size, content = self._listing.entries[info.linkname]
            self._listing.entries[name] = (mode, size, content)
        elif info.issym():
            self._listing.entries[name] = (0o777, 0, f"-> {info.linkname}")
        else:
            self._listing.entries[name] = (info.mode & 0o7777, 0, "directory")


class _Hashed:
    """Exactly so many bytes of a file, hashed; zeros for what it lost meanwhile."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self._digest = file, size, hashlib.sha256()
        self.padded = 0

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        piece = self._file.read(count)
        if len(piece) < count:
            self.padded += count - len(piece)
            piece += bytes(count - len(piece))
        self._left -= len(piece)
        self._digest.update(piece)
        return piece

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _walk(top: Path) -> Iterator[Path]:
    """Itself, then all below it, in an order that is always the same; links are not followed."""
    yield top
    if top.is_symlink() or not top.is_dir():
        return

    def unreadable(error: OSError) -> None:
        raise NotApplied(f"{error.filename} cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(top, onerror=unreadable):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder) / name


@contextmanager
def piped(write: Callable[[BinaryIO], object]) -> Iterator[BinaryIO]:
    """A pipe into which a thread writes; leaving it raises what the thread raised."""
    read_end, write_end = os.pipe()
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            with os.fdopen(write_end, "wb", PIECE_BYTES) as out:
                write(out)
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, name="piped", daemon=True)
    thread.start()
    try:
        with os.fdopen(read_end, "rb") as pipe:
            yield pipe
    finally:
        thread.join()
    if trouble:
        raise trouble[0]


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Nothing gets out of the folder, through links neither. Modes stay as they were: what comes
    back is the owner's own."""
    kept = tarfile.tar_filter(member, folder)
    return kept.replace(mode=(member.mode or 0) & 0o7777, deep=False)


class TreeRestore:
    """Into a folder that is empty or not there. What has another owner gets it when we are root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listing: Listing | None = None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        if self._folder.exists() and any(self._folder.iterdir()):
            raise Refused(f"{self._folder} is not empty; nothing was changed")
        self._folder.mkdir(parents=True, exist_ok=True)
        with stream_of(LISTING) as pipe:
            self._listing = Listing.read(pipe.read())
        try:
            with (
                stream_of(FILES) as pipe,
                tarfile.open(fileobj=pipe, mode="r|", bufsize=PIECE_BYTES) as tar,
            ):
                tar.extractall(self._folder, filter=_inside, numeric_owner=True)
        except (tarfile.TarError, EOFError) as error:
            raise Damaged(f"its tar stream cannot be read: {error}") from None
        except OSError as error:
            raise NotApplied(f"{self._folder}: {error.strerror or error}") from None

    def differences(self, manifest: Manifest) -> list[Difference]:
        assert self._listing
        assert manifest.facts.tree
        if self._listing.digest() != manifest.facts.tree.digest:
            return [
                Difference(
                    what="listing",
                    wanted=manifest.facts.tree.digest,
                    found=self._listing.digest(),
                )
            ]
        return self._listing.differences(self._found())

    def _found(self) -> Listing:
        found = Listing()
        wanted = self._listing.entries if self._listing else {}
        for path in _walk(self._folder):
            name = str(path.relative_to(self._folder))
            there = path.lstat()
            mode = stat.S_IMODE(there.st_mode)
            if stat.S_ISLNK(there.st_mode):
                found.entries[name] = (0o777, 0, f"-> {path.readlink()}")
            elif stat.S_ISDIR(there.st_mode):
                if name in wanted:  # those above what was backed up are nobody's
                    found.entries[name] = (mode, 0, "directory")
            else:
                digest = hashlib.sha256()
                with path.open("rb") as file:
                    while piece := file.read(PIECE_BYTES):
                        digest.update(piece)
                found.entries[name] = (mode, there.st_size, digest.hexdigest())
        return found
