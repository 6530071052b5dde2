"""A vault that is a folder: a disk that is mounted, or another machine's over a network."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blocks.files import HALF, remove_half_written, scratch
from policy.errors import BadInput, NotAllowed, NotApplied, Refused, Unreachable

PIECE_BYTES = 4 * 2**20


class FolderVault:
    """A file an object; none is ever seen half-written, also after a power cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def write(
        self, key: str, content: Iterable[bytes], locked_until: float | None = None
    ) -> tuple[int, str]:
        path = self._path(key)
        if locked_until is not None:
            raise BadInput(f"{self}: a folder cannot lock; remove lock_days, or use an S3")
        digest, size = hashlib.sha256(), 0
        with self._written(key), scratch(self._folder, "put") as here:
            half = here / "half"
            with half.open("xb", buffering=0) as file:
                for piece in _outside(content):
                    digest.update(piece)
                    size += len(piece)
                    _write_all(file.fileno(), piece)
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(half, path)
            self._sync(path.parent)
            if (held := path.stat().st_size) != size:
                raise NotApplied(f"{self}: {key} holds {held:,} bytes of {size:,}; remove it")
        return size, digest.hexdigest()

    def read(self, key: str) -> Iterator[bytes]:
        try:
            with self._path(key).open("rb", buffering=0) as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Refused(f"{self}: there is no {key}") from None
        except PermissionError as error:
            raise NotAllowed(f"{self}: {key} was not read: {error.strerror}") from None
        except OSError as error:
            raise Unreachable(f"{self}: {key} was not read: {error.strerror}") from None

    def sizes(self, prefix: str) -> dict[str, int]:
        found = {}
        for folder, folders, files in os.walk(self._folder, onerror=self._unlisted):
            folders[:] = [name for name in folders if not name.endswith(HALF)]
            for path in (Path(folder) / name for name in files):
                key = str(path.relative_to(self._folder))
                if key.startswith(prefix):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        found[key] = path.stat().st_size
        return found

    def _unlisted(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise Unreachable(f"{self} was not listed: {error.strerror}")

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise NotApplied(f"{self}: {key} was not deleted: {error.strerror}") from None
        for folder in self._up(path.parent):
            if folder == self._folder:
                break
            try:
                folder.rmdir()
            except OSError:
                break  # something else lies there

    def tidy(self, prefix: str) -> list[str]:
        """Of every prefix: half a file does not tell what it would have become."""
        before = self._halves()
        remove_half_written(self._folder)
        return sorted(before - self._halves())

    def _halves(self) -> set[str]:
        return {path.name for path in self._folder.glob(f".*{HALF}")}

    @contextmanager
    def _written(self, key: str) -> Iterator[None]:
        try:
            yield
        except _Raised as error:
            raise error.raised from None
        except OSError as error:
            raise NotApplied(
                f"{self}: {key} was not stored: {error.strerror}; nothing of it is there"
            ) from None

    def _sync(self, folder: Path) -> None:
        """A name is on the disk when its folder is."""
        for one in self._up(folder):
            handle = os.open(one, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _up(self, folder: Path) -> Iterator[Path]:
        """This folder and those around it, as far as the vault's own."""
        while folder != self._folder:
            yield folder
            folder = folder.parent
        yield folder

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") for part in parts):
            raise BadInput(f"{key!r} is no name of an object")
        return self._folder / key


class _Raised(Exception):
    def __init__(self, raised: BaseException) -> None:
        self.raised = raised


def _outside(content: Iterable[bytes]) -> Iterator[bytes]:
    """An error of the content is not one of the folder."""
    try:
        yield from content
    except OSError as error:
        raise _Raised(error) from error


def _write_all(handle: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(handle, rest) :]
