"""Gives a server that recovers the log it asks for, from the process that restores it.

The server runs as a user that may have neither the key nor our Python: its restore_command is a few
lines of shell, which ask through a pipe and find the segment, decrypted, in a folder of that user.
What comes next is fetched while the server replays.
"""

import os
import shlex
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from blocks.pg_throwaway import own_by_server_user
from blocks.ports import Vault
from blocks.wal_archive import read
from policy.errors import DafnckError
from policy.wal_segments import SEGMENT_BYTES, is_segment, number_of, segment, timeline_of

AHEAD = 3  # segments of 16 MiB, in memory
MOST_AHEAD_BYTES = 256 * 2**20
ANSWER_SECONDS = 60.0

# 1 is the end of the log for PostgreSQL, 255 stops the recovery.
SCRIPT = """#!/bin/sh
here=$(dirname "$0")
reply="$here/reply.$$"
mkfifo "$reply" || exit 255
trap 'rm -f "$reply"' EXIT
printf '%s %s\\n' "$1" "$$" > "$here/ask" || exit 255
read -r answer < "$reply" || exit 255
case $answer in
  there) mv -f "$here/spool" "$2" || exit 255 ;;
  none) exit 1 ;;
  *) exit 255 ;;
esac
"""


@dataclass
class Relay:
    command: str  # for restore_command
    asked: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)  # names, in the order they were asked for
    trouble: DafnckError | None = None  # why a file could not be given


@contextmanager
def relay(
    folder: Path,
    vault: Vault,
    prefix: str,
    identity_file: Path,
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> Iterator[Relay]:
    """`folder`: made, for this alone, beside the data directory (a rename gives the file over); a
    part of it belongs to the server's user."""
    folder.mkdir(mode=0o711)
    theirs = folder / "server"
    theirs.mkdir(mode=0o700)
    script, ask = theirs / "fetch", theirs / "ask"
    script.write_text(SCRIPT)
    os.mkfifo(ask, 0o600)
    own_by_server_user(theirs)
    told = Relay(f'/bin/sh {_quoted(str(script))} "%f" "%p"')
    ahead = 0 if segment_bytes * AHEAD > MOST_AHEAD_BYTES else AHEAD
    # Both ends, so that it neither waits for a first asker nor ends with the last.
    handle = os.open(ask, os.O_RDWR)
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="wal") as pool:
        log = _Log(vault, prefix, identity_file, pool, ahead, segment_bytes)
        thread = threading.Thread(target=_serve, args=(handle, theirs, log, told), name="wal-relay")
        thread.start()
        try:
            yield told
        finally:
            os.write(handle, b"\n")  # an empty line ends it
            thread.join()
            os.close(handle)
            log.forget()


class _Log:
    """The files, with those fetched already that will be asked for."""

    def __init__(
        self,
        vault: Vault,
        prefix: str,
        identity_file: Path,
        pool: ThreadPoolExecutor,
        ahead: int,
        segment_bytes: int,
    ) -> None:
        self._vault, self._prefix, self._identity = vault, prefix, identity_file
        self._pool, self._ahead, self._bytes = pool, ahead, segment_bytes
        self._coming: dict[str, Future[bytes | None]] = {}

    def read(self, name: str) -> bytes | None:
        coming = self._coming.pop(name, None)
        content = None
        if coming is not None:
            with suppress(DafnckError):  # it is looked for again, and told then
                content = coming.result()
        if content is None:
            content = read(self._vault, self._prefix, name, self._identity)
        if content is not None and is_segment(name):
            self._look_ahead(name)
        return content

    def _look_ahead(self, name: str) -> None:
        timeline, number = timeline_of(name), number_of(name, self._bytes)
        wanted = [segment(timeline, number + 1 + i, self._bytes) for i in range(self._ahead)]
        for old in self._coming.keys() - set(wanted):
            self._coming.pop(old).cancel()
        for one in wanted:
            if one not in self._coming:
                self._coming[one] = self._pool.submit(
                    read, self._vault, self._prefix, one, self._identity
                )

    def forget(self) -> None:
        for coming in self._coming.values():
            coming.cancel()
        self._coming.clear()


def _serve(handle: int, theirs: Path, log: _Log, told: Relay) -> None:
    with os.fdopen(os.dup(handle), "r") as asks:
        while line := asks.readline().strip():
            name, _, asker = line.rpartition(" ")
            told.asked.append(name)
            try:
                content = log.read(name)
                if content is not None:
                    _spool(theirs, content)
                    told.given.append(name)
                answer = "none" if content is None else "there"
            except DafnckError as error:
                told.trouble, answer = error, "trouble"
            except Exception as error:  # the server waits for an answer
                told.trouble = DafnckError(f"{name} was not fetched: {error!r}")
                answer = "trouble"
            _answer(theirs / f"reply.{asker}", answer)


def _spool(theirs: Path, content: bytes) -> None:
    """Written and given away where the other user cannot put another file in its place."""
    path = theirs.parent / "spool"
    path.write_bytes(content)
    path.chmod(0o600)
    own_by_server_user(path)
    os.replace(path, theirs / "spool")


def _answer(reply: Path, answer: str) -> None:
    """Whoever asked may be gone: nobody is waited for without end. The folder is another user's, so
    no link is followed, and nothing but a pipe written to."""
    if not reply.suffix[1:].isdigit():
        return
    give_up = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < give_up:
        try:
            handle = os.open(reply, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        except OSError:  # it does not read yet
            time.sleep(0.002)
            continue
        with suppress(BrokenPipeError), os.fdopen(handle, "w") as pipe:
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                pipe.write(f"{answer}\n")
        return


def _quoted(text: str) -> str:
    """For the shell, and PostgreSQL's own %."""
    return shlex.quote(text).replace("%", "%%")
