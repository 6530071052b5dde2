"""The outside world in words of ours: what a platform must offer. Five methods at most each.

`tests/test_block_contracts.py` runs the same tests over every implementation, the fakes included.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from policy.backup_manifest import BackupKind, Difference, Facts, Manifest
from policy.notice import Notice
from policy.release import Endpoints, MatchRules, Release
from policy.samples import Counters


@runtime_checkable
class Workloads(Protocol):
    """Runs replicas of releases: local processes, containers, pods."""

    def start(self, release: Release, replicas: int) -> None:
        """Have `replicas` replicas wanted. Idempotent; returns before they are ready.
        More than before are added, fewer are stopped with the release's grace time."""

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        """Where it listens and what is ready, asked now. Nothing wanted: `wanted` is 0.
        `quick`: ready is what the platform runs, without asking the application."""

    def stop(self, release_id: str, grace_seconds: float) -> None:
        """Stop all replicas: SIGTERM, after the grace time SIGKILL. Returns when they are gone.
        What the release needs to be started again stays."""

    def running(self) -> list[str]:
        """Ids of the releases that have replicas wanted."""

    def remove(self, release_id: str) -> None:
        """Forget a stopped release and free its disk space."""


@runtime_checkable
class TrafficRouter(Protocol):
    """Decides which release answers a request, for one service in one environment."""

    def attach(self, endpoints: Endpoints) -> None:
        """Let the router know where a release listens; it gets no traffic by that alone.
        Idempotent, and next to free when it is known already."""

    def detach(self, release_id: str) -> None:
        """Forget a release that has no share."""

    def shares(self) -> dict[str, int]:
        """Release id -> percent of the requests, as the router itself holds it; every attached
        release is named. Raises Unreachable when the router does not answer."""

    def set_shares(self, shares: dict[str, int]) -> None:
        """Send these percentages to these attached releases, 0 to all others, and read back.
        A release without a share loses its cohort too. Empty: nothing serves. Raises NotApplied
        for a release that is not attached, nothing is changed then; NotApplied or Unreachable when
        the router does not confirm: the wish is stored and taken up when it can."""

    def match(self, rules: MatchRules | None) -> None:
        """Preview header, cohort and stickiness; None removes them."""


@runtime_checkable
class TrafficMetrics(Protocol):
    def read(self) -> dict[str, Counters]:
        """Release id -> totals since the source started. A source that was restarted begins at
        zero. Raises Unreachable."""


@runtime_checkable
class Notifier(Protocol):
    """Tells people."""

    def send(self, to: str, notices: Sequence[Notice]) -> None:
        """To a target, by its name, in this order. Takes up to some minutes. Raises Refused for a
        target that is not known, NotApplied when it did not take them; no message holds a part of
        its URL."""

    def record(self, notice: Notice) -> None:
        """Into the log of notifications."""


@runtime_checkable
class ObjectStore(Protocol):
    """Keeps things beyond the life of a machine. Keys are paths without a leading slash. Raises
    Unreachable when it does not answer, NotAllowed when it does not let us in."""

    def put(self, key: str, content: bytes | Path) -> None:
        """Store these bytes, or this file, whole or not at all; what was there is replaced."""

    def get(self, key: str) -> bytes | None:
        """None when there is no such object."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Key -> bytes of every object whose key begins so."""

    def delete(self, key: str) -> None:
        """Also when it is not there."""


@runtime_checkable
class Vault(Protocol):
    """Keeps backups: streams of any length, in constant memory. Keys are paths without a leading
    slash. Raises Unreachable when it does not answer for minutes, NotAllowed when it does not let
    us in."""

    def write(
        self, key: str, content: Iterable[bytes], locked_until: float | None = None
    ) -> tuple[int, str]:
        """Store it whole or not at all, read back what the store holds of it. `locked_until`:
        seconds since the epoch, before which nobody can delete it. -> (bytes, SHA-256 in hex).
        What `content` raises is raised, and nothing is stored. Raises BadInput when the store
        cannot lock."""

    def read(self, key: str) -> Iterator[bytes]:
        """In pieces of some MiB. A dropped connection is taken up where it broke. Raises Refused
        when there is no such object."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Key -> bytes of every object whose key begins so, also of one that somebody hid with a
        delete marker while it was locked."""

    def delete(self, key: str) -> None:
        """For good: every version. Also when it is not there. Raises Refused when it is locked."""

    def tidy(self, prefix: str) -> list[str]:
        """Remove what writes left that died, of processes that do not live any more. -> what."""


@runtime_checkable
class BackupSource(Protocol):
    """What is backed up."""

    @property
    def kind(self) -> BackupKind: ...

    def begin(self) -> AbstractContextManager["Copying"]:
        """Fix the moment that the copy shows. Raises BadInput, Unreachable or NotAllowed."""


@runtime_checkable
class Copying(Protocol):
    """A copy under way, of one moment."""

    @property
    def snapshot_at(self) -> float:
        """What was committed by then is in it. Seconds since the epoch."""

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        """(name, an open pipe or file) one after another; each is read to its end before the next
        is asked for. Raises NotApplied, at the latest when the next one is asked for, when what
        wrote it failed: an end of the stream alone proves nothing."""

    def facts(self) -> Facts:
        """After the last stream: what must be true of a restored copy. Raises NotApplied."""

    def tools(self) -> dict[str, str]:
        """Program -> version."""


StreamOf = Callable[[str], AbstractContextManager[BinaryIO]]


@runtime_checkable
class Restoring(Protocol):
    """A place that a backup is restored to."""

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        """Have it there, whole. `stream_of(name)`: its decrypted content; leaving the context
        raises Damaged when it was not what was written. Raises NotApplied."""

    def differences(self, manifest: Manifest) -> list[Difference]:
        """What is not as the manifest says. Empty: the backup is proved."""


@runtime_checkable
class Rotator(Protocol):
    """Turns one kind of credential over. No message holds a value."""

    def make(self, current: str) -> str:
        """A new value; nothing outside is changed. Raises Refused, BadInput."""

    def set(self, value: str, current: str) -> None:
        """Have it accepted. Idempotent; the current one is accepted all the while."""

    def test(self, value: str) -> None:
        """Raises NotApplied unless it opens what it shall open."""

    def in_use(self, value: str, current: str) -> list[str]:
        """Who uses it just now, in words; empty also when that cannot be known."""

    def close(self, value: str, current: str) -> str:
        """It opens nothing from now on, and the current one is as good as before. Idempotent. ->
        the words by which it was refused, when it was tried after that. Raises NotApplied when it
        still opens something."""
