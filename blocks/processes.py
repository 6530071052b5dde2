"""Which processes of this machine still live, and ends what a dead one left running.

Invariant: a process is its pid together with its start time in the kernel's clock ticks since
boot. No pid that the kernel gave to another program is taken for it, and no clock that somebody
sets changes it.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHILD_OF = "DAFNCK_CHILD_OF"  # in the environment of what we start and what that starts


@dataclass(frozen=True)
class Process:
    pid: int
    started: str  # clock ticks since boot

    def alive(self) -> bool:
        """A zombie is dead: it does nothing any more."""
        return _stat(self.pid) == (self.started, True)


def own() -> Process:
    stat = _stat(os.getpid())
    assert stat is not None
    return Process(os.getpid(), stat[0])


@cache
def machine() -> str:
    """Where pids mean the same: this boot of this kernel, this pid namespace (a container)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """This environment for a child that must not outlive us."""
    me = own()
    return {**environment, CHILD_OF: f"{me.pid} {me.started} {machine()}"}


def unmarked(environment: Mapping[str, str]) -> dict[str, str]:
    """This environment for a child that outlives us and those who started us."""
    return {name: value for name, value in environment.items() if name != CHILD_OF}


def end_orphans(within_seconds: float = 5.0) -> list[int]:
    """SIGKILL for what dead processes of ours started with `marked`. -> the pids.

    What forks faster than we look is looked for again, for so long."""
    ended: list[int] = []
    give_up = time.monotonic() + within_seconds
    while (found := list(_orphans())) and time.monotonic() < give_up:
        for pid in found:
            if _end_orphan(pid):
                ended.append(pid)
        time.sleep(0.05)
    return ended


def _end_orphan(pid: int) -> bool:
    """A handle first, then another look: what it names cannot become another program."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False  # gone meanwhile
    try:
        if not is_orphan(pid):
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    finally:
        os.close(handle)


def _orphans() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and is_orphan(int(entry)):
            yield int(entry)


def is_orphan(pid: int) -> bool:
    """Was it started by a process of ours that is dead? Of this user's processes alone: others
    cannot be read, and are not ours."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    mark = f"{CHILD_OF}=".encode()
    return any(
        entry.startswith(mark) and not lives(entry[len(mark) :].decode(errors="replace"))
        for entry in environment
    )


def lives(mark: str) -> bool:
    """The process that `marked` named so; of one on another machine nothing is known."""
    parent, started, where = mark.split(" ", 2)
    return where != machine() or Process(int(parent), started).alive()


def _stat(pid: int) -> tuple[str, bool] | None:
    """(start time, still able to act); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a name may hold spaces and parentheses
    return fields[19], fields[0] not in "ZXx"
