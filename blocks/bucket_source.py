"""The objects of a bucket as a backup: one tar stream, and a listing that the copy is held to.

    tar: a file an object, its key as DAFNCK.key, its type and metadata as DAFNCK.headers (JSON) in
    its extended header; the name of the file is the key wherever that is a path

Objects that change meanwhile are copied as they are read, and told; none is half one and half
another.
"""

import platform
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from blocks import tar_pipe
from blocks.bucket_objects import Objects, packed
from blocks.bucket_restore import HEADERS, KEY, LISTING, OBJECTS, BucketRestore, FolderOfObjects
from blocks.tree_listing import Tally, shown
from policy.backup_manifest import BackupKind, Facts
from policy.errors import BadInput, NotApplied

__all__ = ["BucketRestore", "BucketSource", "FolderOfObjects"]
NAMED = 10  # keys that are told one by one
GONE = "gone before they were read"


class BucketSource:
    """`credentials`: file of the local store's keys, instead of boto3's own."""

    kind: BackupKind = "bucket"

    def __init__(self, url: str, credentials: Path | None) -> None:
        self._objects = Objects(url, credentials)

    @contextmanager
    def begin(self) -> Iterator["_Copying"]:
        snapshot_at = time.time()
        if (keys := self._objects.keys()) is None:
            raise BadInput(f"{self._objects}: there is no such bucket; nothing was backed up")
        copying = _Copying(self._objects, keys, snapshot_at)
        try:
            yield copying
        finally:
            copying.close()


class _Copying:
    def __init__(self, objects: Objects, keys: list[str], snapshot_at: float) -> None:
        self._objects, self._keys, self.snapshot_at = objects, keys, snapshot_at
        self._tally = Tally()
        self._gone: list[str] = []
        self._whole = False
        self._running: Iterator[tuple[str, BinaryIO]] | None = None

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        self._running = self._streams()
        return self._running

    def _streams(self) -> Iterator[tuple[str, BinaryIO]]:
        with tar_pipe.piped(self._write, "the objects were not copied") as pipe:
            yield OBJECTS, pipe
        self._whole = True
        self._tally.file.seek(0)
        yield LISTING, self._tally.file

    def close(self) -> None:
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._tally.file.close()

    def _write(self, out: BinaryIO) -> None:
        for key in self._keys:
            if (found := self._objects.get(key)) is None:
                self._gone.append(key)
                continue
            member = tarfile.TarInfo(_as_path(key))
            member.size, member.mode, member.mtime = found.size, 0o600, int(self.snapshot_at)
            member.pax_headers = {KEY: quote(key), HEADERS: packed(found.headers)}
            tar_pipe.head(out, member)
            sha256 = tar_pipe.content(out, found.size, found.pieces)
            self._tally.add(found.entry(sha256))
        tar_pipe.end(out)

    def facts(self) -> Facts:
        if not self._whole:
            raise NotApplied("the objects were not read to their end: nothing is said of them")
        detail = {"host": platform.node(), "bucket": str(self._objects)}
        if self._gone:
            words = ", ".join(shown(key.encode()) for key in self._gone[:NAMED])
            more = f" and {len(self._gone) - NAMED} more" if len(self._gone) > NAMED else ""
            detail[GONE] = words + more
        return Facts(tree=self._tally.facts(), detail=detail)

    def tools(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"boto3": version("boto3")}


def _as_path(key: str) -> str:
    """A name that whoever unpacks it without us can have; '../a' and 'a//b' are none."""
    parts = key.split("/")
    return quote(key, safe="") if {"", ".", ".."} & set(parts) else key
