"""What comes back after a disaster, in which order, how long it took and what was lost.

A service is started when all its data is there, and never before: one that finds an empty database
may fill it.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from policy.backup import Target
from policy.release import Release

Kind = Literal["database", "bucket", "files"]
ORDER: tuple[Kind, ...] = ("database", "bucket", "files")  # what names the others' names first


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wanted(_Frozen):
    """One thing that was backed up and comes back."""

    service: str
    environment: str  # of which the backups are
    name: str
    target: Target  # where it comes back to, and what it is held to
    stores: tuple[str, ...] = ()  # that its file names, besides the one that is recovered from

    @property
    def kind(self) -> Kind:
        if self.target.postgres is not None:
            return "database"
        return "bucket" if self.target.bucket is not None else "files"

    @property
    def key(self) -> str:
        return f"{self.service}/{self.environment}/{self.name}"


class Came(_Frozen):
    """How one target came back."""

    key: str
    kind: Kind
    backup_id: str | None = None
    until: float | None = None  # seconds since the epoch: all until then is there again
    seconds: float = 0.0
    restored_bytes: int = 0
    rpo: float = 0.0  # asked for
    rto: float = 0.0
    notes: tuple[str, ...] = ()  # older backups that were taken, and why
    trouble: str = ""  # why it is not there, or not as it was

    @property
    def good(self) -> bool:
        return not self.trouble


class Served(_Frozen):
    """How a service came back."""

    service: str
    environment: str
    release: str
    version: str
    trouble: str = ""


class Recovery(_Frozen):
    """One recovery, from its first attempt to its end: what is known of it so far."""

    store: str
    host: str
    began_at: float  # seconds since the epoch, of the first attempt
    attempts: int = 1
    to_time: float | None = None  # asked for
    own_backup: str | None = None
    own_until: float | None = None
    lost_at: float | None = None  # the newest sign of life: what came later left none
    done: dict[str, float] = {}  # step -> seconds, of those that are over
    came: tuple[Came, ...] = ()
    served: tuple[Served, ...] = ()
    notes: tuple[str, ...] = ()
    finished_at: float | None = None

    @property
    def seconds(self) -> float | None:
        """From the first attempt to the last check."""
        return None if self.finished_at is None else self.finished_at - self.began_at

    @property
    def troubles(self) -> list[str]:
        data = [f"{one.key}: {one.trouble}" for one in self.came if one.trouble]
        return data + [f"{one.release}: {one.trouble}" for one in self.served if one.trouble]

    def lost_seconds(self, until: float | None) -> float | None:
        """Of what is there again until then; at most so much was lost."""
        if until is None or self.lost_at is None:
            return None
        return max(0.0, self.lost_at - until)

    def has(self, came: Came) -> "Recovery":
        """With this; what was said of the same target before is replaced."""
        others = tuple(one for one in self.came if one.key != came.key)
        return self.model_copy(update={"came": (*others, came)})


def wanted(releases: Iterable[Release], *, of: str | None = None) -> list[Wanted]:
    """What these releases back up, in the order in which it comes back. `of`: from the backups of
    another environment."""
    found = [
        Wanted(
            service=release.service,
            environment=of or release.environment,
            name=name,
            target=target,
            stores=tuple(url for url in (backup.to, backup.copy_to) if url),
        )
        for release in releases
        if (backup := release.backup) is not None
        for name, target in backup.targets.items()
    ]
    return sorted(found, key=lambda one: (ORDER.index(one.kind), one.key))


def held_back(recovery: Recovery, without: frozenset[str]) -> list[Came]:
    """What is not there as it was, so that no service starts; but for what a person named."""
    return [one for one in recovery.came if not one.good and one.key not in without]
