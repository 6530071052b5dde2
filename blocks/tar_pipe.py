"""One tar stream, written by a thread into a pipe, read by whoever wants it: nothing of it is kept.

tarfile's own writer copies everything once more, and remembers every member.
"""

import fcntl
import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from policy.errors import DafnckError, NotApplied

BLOCK = tarfile.BLOCKSIZE
ENCODING = ("utf-8", "surrogateescape")
PIPE_BYTES = 1 << 20
READ_BYTES = 1 << 20


def text(name: bytes) -> str:
    """As tarfile wants names; written as the bytes that they are."""
    return name.decode(*ENCODING)


def head(out: BinaryIO, member: tarfile.TarInfo) -> None:
    out.write(member.tobuf(tarfile.PAX_FORMAT, *ENCODING))


def content(out: BinaryIO, size: int, pieces: Iterable[bytes]) -> str:
    """Of the member whose head was written: exactly `size` bytes. -> SHA-256 in hex"""
    digest, count = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        out.write(piece)
        count += len(piece)
    if count != size:
        raise NotApplied(f"{count:,} bytes came instead of {size:,}")
    out.write(bytes(-size % BLOCK))
    return digest.hexdigest()


def end(out: BinaryIO) -> None:
    out.write(bytes(2 * BLOCK))


@contextmanager
def piped(write: Callable[[BinaryIO], None], what: str) -> Iterator[BinaryIO]:
    """A pipe of what `write` writes in a thread. Raises NotApplied after the body, which must read
    it to its end, when that failed."""
    read, into = os.pipe()
    failed: list[Exception] = []

    def work() -> None:
        try:
            with os.fdopen(into, "wb", buffering=PIPE_BYTES) as out:
                write(out)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="tar", daemon=True)
    with os.fdopen(read, "rb") as pipe:
        with suppress(OSError):  # a user may have only so many large pipes
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        thread.start()
        try:
            yield pipe
        finally:
            pipe.close()  # it may wait for somebody to read
            thread.join()
    for error in failed:
        if isinstance(error, DafnckError):
            raise error
        if isinstance(error, BrokenPipeError):
            raise NotApplied(f"{what}: it was not read to its end")
        if isinstance(error, OSError):
            where = os.fsdecode(error.filename) if error.filename else ""
            words = f"{where}: {error.strerror}".removeprefix(": ")
            raise NotApplied(f"{what}: {words}; nothing was backed up") from None
        raise error


def members(archive: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Of a pipe, one after another, to its end. Raises tarfile's errors."""
    with tarfile.open(
        fileobj=archive, mode="r|", bufsize=READ_BYTES, encoding=ENCODING[0], errors=ENCODING[1]
    ) as tar:
        while (member := tar.next()) is not None:
            yield member, tar
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
    while archive.read(READ_BYTES):  # who sends the rest must not be cut off
        pass
