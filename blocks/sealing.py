"""Seals streams so that only the holder of a key opens them: zstd, then age.

    age -d -i recovery-key.txt dump.zst.age | zstd -d        opens one without us

The work is done in a process of its own: pyrage holds the interpreter while it encrypts, and falls
to a fiftieth of its speed beside another busy thread. Plain content goes from whoever writes it to
that process without passing through us.

The plain content is held to the checksum of zstd's frame (XXH64), every 64 KiB of the sealed one
to a code of age's (Poly1305). What is sealed is for whoever reads it to hold to a digest.

Invariant: content counts as whole only when the process has said so. An end of a pipe says nothing.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from blocks.processes import marked
from policy.errors import BadInput, DafnckError, Damaged, NotApplied

CHUNK_BYTES = 4 * 2**20
PIPE_BYTES = 2**20
REASONS = {
    "key": "the key does not open it",
    "cut": "it is cut",
    "changed": "it was changed",
    "end": "it is cut, or its end was changed",
}


class Sealing:
    """One stream that is being sealed."""

    def __init__(self, child: "_Child") -> None:
        self._child = child
        self._plain: int | None = None

    def chunks(self) -> Iterator[bytes]:
        """The sealed content, in pieces of 4 MiB. Raises NotApplied at the end when it is not
        whole, BadInput for a recipient that is none."""
        while piece := self._child.out.read(CHUNK_BYTES):
            yield piece
        self._plain = self._child.result("it was not sealed")

    def plain_bytes(self) -> int:
        """After the last chunk: how much was read from the source."""
        assert self._plain is not None, "not all chunks were read"
        return self._plain


@contextmanager
def sealing(source: BinaryIO, recipients: Sequence[str]) -> Iterator[Sealing]:
    """`source`: a pipe or file of the system's, at the place where to begin. `recipients`: age or
    SSH public keys; each of them opens it alone. Leaving early ends the work."""
    if not recipients:
        raise BadInput("nobody could open it: there is no recipient")
    with _child("seal", list(recipients), stdin=source.fileno()) as child:
        yield Sealing(child)


@contextmanager
def opening(
    content: Iterable[bytes],
    identity_file: Path,
    plain_bytes: int | None = None,
    *,
    whole: bool = True,
) -> Iterator[BinaryIO]:
    """A pipe of the plain content, read by us or handed to a process. Raises Damaged at the end of
    the body when the content is cut or changed, sealed for another key, or not so many bytes;
    BadInput for a file that is no identity; what `content` raises.

    `whole=False`: the body may stop reading early; then only what it read is known to be good."""
    if not os.access(identity_file, os.R_OK):
        raise BadInput(f"{identity_file} cannot be read: the key of the backups is needed")
    words = [str(identity_file.absolute())]
    with _child("open", words, stdin=subprocess.PIPE) as child, _Feeder(child, content) as feeder:
        try:
            yield child.out
        except Exception as error:
            # Whoever reads fails by a stream that ends too soon: the damage is the cause then.
            if cause := _trouble(child, feeder, plain_bytes, whole):
                raise cause from error
            raise
        if cause := _trouble(child, feeder, plain_bytes, whole):
            raise cause


def _trouble(
    child: "_Child", feeder: "_Feeder", plain_bytes: int | None, whole: bool
) -> BaseException | None:
    if not whole and not child.said():
        return feeder.error
    while not child.out.closed and child.out.read(CHUNK_BYTES):
        pass
    try:
        found = child.result("it was not opened")
    except DafnckError as error:
        return feeder.error or error
    if plain_bytes is not None and found != plain_bytes:
        return Damaged(f"it is not what was written: {found:,} bytes, written were {plain_bytes:,}")
    return feeder.error


class _Feeder:
    """Hands content to the process, in a thread."""

    def __init__(self, child: "_Child", content: Iterable[bytes]) -> None:
        self._child, self._content = child, content
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="opening", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> "_Feeder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._child.end()
        self._thread.join()

    def _feed(self) -> None:
        into = self._child.process.stdin
        assert into is not None
        pieces = iter(self._content)
        try:
            for piece in pieces:
                into.write(piece)
                if self._over.is_set():
                    break
        except BrokenPipeError:
            pass  # it has ended, and said why
        except BaseException as error:
            self.error = error
        finally:
            with suppress(BrokenPipeError):
                into.close()
            if close := getattr(pieces, "close", None):
                close()


class _Child:
    def __init__(self, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
        assert process.stdout is not None
        self.process, self._said = process, said
        self.out: BinaryIO = process.stdout  # type: ignore[assignment]
        self._words = b""

    def said(self) -> bool:
        """Has it ended its work, or died? Asks without waiting."""
        os.set_blocking(self._said.fileno(), False)
        try:
            self._words += os.read(self._said.fileno(), 65536)
        except BlockingIOError:
            return False
        finally:
            os.set_blocking(self._said.fileno(), True)
        return True

    def result(self, what: str) -> int:
        """-> bytes of the plain content. Waits for its end."""
        said: dict[str, Any] = {}
        with suppress(ValueError):
            said = json.loads(self._words + self._said.read())
        code = self.process.wait()
        if kind := said.get("failed"):
            if kind == "input":
                raise BadInput(f"{what}: {said['why']}")
            if kind in REASONS:
                raise Damaged(f"{REASONS[kind]} ({said['why']})")
            raise NotApplied(f"{what}: {said['why']}")
        if code or not said:
            assert self.process.stderr is not None
            last = self.process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            raise NotApplied(f"{what}: {' '.join(['its process ended by', str(code), *last])}")
        return int(said["bytes"])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def _child(act: str, words: list[str], stdin: int) -> Iterator[_Child]:
    read, write = os.pipe()
    with open(read, "rb") as said:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "blocks.sealing_process", act, str(write), *words],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(write,),
                cwd=Path(__file__).parents[1],  # where `blocks` is found
                env=marked({"PATH": os.defpath, "LC_ALL": "C.UTF-8"}),
            )
        finally:
            os.close(write)
        try:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # a user may have only so many large pipes
                        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            child = _Child(process, said)
            try:
                yield child
            finally:
                child.end()
        finally:
            for one in (process.stdin, process.stdout, process.stderr):
                if one is not None:
                    with suppress(BrokenPipeError):
                        one.close()
