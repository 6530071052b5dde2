"""The objects of a bucket out of a backup: into an empty bucket, or into a folder for a drill."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote

from blocks import tar_pipe, tree_listing
from blocks.bucket_objects import Object, Objects, packed
from blocks.ports import StreamOf
from blocks.tree_listing import PIECE, Entry, entries, unnamed
from policy.backup_manifest import Difference, Manifest
from policy.errors import BadInput, NotApplied

OBJECTS, LISTING = "objects", "listing"
KEY, HEADERS = "DAFNCK.key", "DAFNCK.headers"


class BucketRestore:
    """Into a bucket, or a prefix of one, that is empty or not there."""

    def __init__(self, url: str, credentials: Path | None) -> None:
        self._objects = Objects(url, credentials)
        self._listing: BinaryIO | None = None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        there = self._objects.keys(most=2)  # the prefix may be an object itself
        if there:
            raise BadInput(f"{self._objects} is not empty; nothing was changed. Name another")
        self._listing = file = unnamed(self)
        if there is None:
            self._objects.have()
        with _unpacking(str(self._objects)), stream_of(OBJECTS) as archive:
            for key, size, headers, content in _members(archive):
                self._objects.put(key, size, headers, content)
        with stream_of(LISTING) as listing:
            tree_listing.keep(listing, file, manifest.facts.tree)

    def differences(self, manifest: Manifest) -> list[Difference]:
        """Reads every object again."""
        if self._listing is None:
            raise NotApplied(f"nothing was restored to {self._objects}")
        return tree_listing.differences(entries(self._listing), self._found())

    def _found(self) -> Iterator[Entry]:
        for key in self._objects.keys() or []:
            if found := self._objects.get(key):
                digest = hashlib.sha256()
                for piece in found.pieces:
                    digest.update(piece)
                yield found.entry(digest.hexdigest())


class FolderOfObjects:
    """For a drill: a file an object, beside one of what is said of it. Names of files are digests
    of keys, which may be anything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listing: BinaryIO | None = None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        if self._folder.exists() and next(self._folder.iterdir(), None):
            raise BadInput(f"{self._folder} is not empty; nothing was changed. Name another")
        self._listing = file = unnamed(self)
        with _unpacking(str(self._folder)):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with stream_of(OBJECTS) as archive:
                for key, size, headers, content in _members(archive):
                    self._put(key, size, headers, content)
            with stream_of(LISTING) as listing:
                tree_listing.keep(listing, file, manifest.facts.tree)

    def _put(self, key: str, size: int, headers: dict[str, Any], content: IO[bytes]) -> None:
        path = self._folder / hashlib.sha256(key.encode()).hexdigest()
        with path.open("xb") as file:
            while piece := content.read(PIECE):
                file.write(piece)
        if (written := path.stat().st_size) != size:
            raise NotApplied(f"{key}: {written:,} bytes were written of {size:,}")
        path.with_suffix(".json").write_text(packed({"key": key, "headers": headers}))

    def differences(self, manifest: Manifest) -> list[Difference]:
        if self._listing is None:
            raise NotApplied(f"nothing was restored to {self._folder}")
        said = [json.loads(path.read_text()) for path in self._folder.glob("*.json")]
        said.sort(key=lambda one: one["key"].encode().split(b"/"))
        return tree_listing.differences(entries(self._listing), map(self._entry, said))

    def _entry(self, said: dict[str, Any]) -> Entry:
        path = self._folder / hashlib.sha256(said["key"].encode()).hexdigest()
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        return Object(said["key"], size, said["headers"], iter(())).entry(sha256)


@contextmanager
def _unpacking(where: str) -> Iterator[None]:
    """Errors of an archive, and of a disk, in our words."""
    try:
        yield
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotApplied(f"it was not unpacked to {where}: {error}") from error


def _members(archive: BinaryIO) -> Iterator[tuple[str, int, dict[str, Any], IO[bytes]]]:
    """(key, bytes, headers, content)"""
    for member, tar in tar_pipe.members(archive):
        said = member.pax_headers
        if not member.isreg() or KEY not in said or HEADERS not in said:
            raise tarfile.TarError(f"{member.name!r} is no object")
        content = tar.extractfile(member)
        assert content is not None
        yield unquote(said[KEY]), member.size, json.loads(said[HEADERS]), content
