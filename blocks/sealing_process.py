"""The work of `blocks.sealing`, in a process without another Python thread.

    python -m blocks.sealing_process seal RESULT_FD RECIPIENT...
    python -m blocks.sealing_process open RESULT_FD IDENTITY_FILE

From stdin to stdout. The result goes to RESULT_FD as one line of JSON before stdout ends:
{"bytes": n} of the plain content, or {"failed": kind, "why": words}.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

PIECE_BYTES = 2**20
READ_BYTES = 2**16
LEVEL, THREADS = 3, 2  # of zstd
SENTINEL = b"the frame before this one is whole"


class Failed(Exception):
    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class Measured:
    """Counts what is read through it."""

    def __init__(self, handle: int) -> None:
        self._handle, self.bytes = handle, 0

    def read(self, size: int = -1) -> bytes:
        # Room for more than 128 KiB would be mapped and unmapped anew for each piece of a pipe,
        # which takes as long as all else that is done here.
        piece = os.read(self._handle, READ_BYTES if size < 0 else min(size, READ_BYTES))
        self.bytes += len(piece)
        return piece


def seal(recipients: Sequence[str]) -> dict[str, object]:
    import pyrage
    import zstandard

    try:
        to = [_recipient(one) for one in recipients]
    except pyrage.RecipientError as error:
        raise Failed("input", f"a recipient is none: {error}") from None
    plain = Measured(0)
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=THREADS, write_checksum=True)
    squeezed: Any = compressor.stream_reader(cast(BinaryIO, plain), read_size=PIECE_BYTES)
    with open(1, "wb", buffering=PIECE_BYTES, closefd=False) as out:
        # It asks for 8 KiB at a time.
        pyrage.encrypt_io(io.BufferedReader(squeezed, PIECE_BYTES), out, to)
    return {"bytes": plain.bytes}


def _recipient(text: str) -> Any:
    import pyrage

    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    return kind.from_str(text)


class Sink:
    """Where decompressed content goes: to stdout as long as somebody reads it. What comes after is
    looked at to its end all the same."""

    def __init__(self) -> None:
        self.bytes, self.read = 0, True
        self.tail: bytes | None = None

    def write(self, piece: bytes | memoryview) -> int:
        if self.tail is not None:
            self.tail += bytes(piece)
            return len(piece)
        self.bytes += len(piece)
        rest = memoryview(piece)
        while self.read and rest:
            try:
                rest = rest[os.write(1, rest) :]
            except BrokenPipeError:
                self.read = False
        return len(piece)


class Opened:
    """What age writes decrypted content to. Keeps what went wrong here: age would word it anew."""

    def __init__(self, sink: Sink) -> None:
        import zstandard

        self._sink, self._any = sink, False
        decompressor = zstandard.ZstdDecompressor()
        to = cast(BinaryIO, sink)
        self._to = decompressor.stream_writer(to, write_size=PIECE_BYTES, closefd=False)
        self.error: BaseException | None = None

    def write(self, piece: bytes) -> int:
        try:
            self._any = self._any or bool(piece)
            self._to.write(piece)
        except BaseException as error:
            self.error = error
            raise
        return len(piece)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Was it a whole frame? Only one after it comes out as what it is."""
        import zstandard

        self._sink.tail = b""
        try:
            self._to.write(zstandard.compress(SENTINEL))
        except zstandard.ZstdError:
            raise Failed("cut", "its zstd frame has no end") from None
        if self._sink.tail != SENTINEL or not self._any:
            raise Failed("cut", "its zstd frame has no end")


def unseal(identity_file: str) -> dict[str, object]:
    import pyrage
    import zstandard

    identities = _identities(Path(identity_file))
    sink = Sink()
    opened = Opened(sink)
    with open(0, "rb", buffering=PIECE_BYTES, closefd=False) as content:
        try:
            pyrage.decrypt_io(content, opened, identities)
        except Exception as error:
            if isinstance(opened.error, zstandard.ZstdError):
                raise Failed("changed", f"zstd: {opened.error}") from None
            if opened.error is not None:
                raise opened.error from None
            raise _of_age(error, at_its_end=not content.read(1)) from None
        if content.read(1):
            raise Failed("changed", "something follows its end")
    opened.close()
    return {"bytes": sink.bytes}


def _of_age(error: Exception, at_its_end: bool) -> Failed:
    """Cut within one of age's chunks looks like a change of the last one."""
    said = str(error)
    if "No matching keys" in said:
        return Failed("key", said)
    if any(
        word in said.lower() for word in ("truncated", "unexpected end", "fill whole", "incomplete")
    ):
        return Failed("cut", said)
    return Failed("end" if at_its_end else "changed", said)


def _identities(file: Path) -> list[Any]:
    import pyrage

    try:
        text = file.read_text()
        if text.startswith("-----BEGIN"):
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        found = [
            pyrage.x25519.Identity.from_str(line)
            for line in lines
            if line and not line.startswith("#")
        ]
    except (OSError, ValueError, pyrage.IdentityError) as error:
        # What the file holds must not be told.
        raise Failed("input", f"{file} is no age identity ({type(error).__name__})") from None
    if not found:
        raise Failed("input", f"{file} is no age identity: it holds no key")
    return found


def main() -> int:
    act, handle, *words = sys.argv[1:]
    acts: dict[str, Callable[[], dict[str, object]]] = {
        "seal": lambda: seal(words),
        "open": lambda: unseal(words[0]),
    }
    try:
        result = acts[act]()
    except Failed as error:
        result = {"failed": error.kind, "why": error.why}
    except OSError as error:
        result = {"failed": "system", "why": str(error)}
    with open(int(handle), "w") as file:
        json.dump(result, file)
    return 1 if "failed" in result else 0


if __name__ == "__main__":
    sys.exit(main())
