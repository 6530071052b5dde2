"""The values that the ledger keeps of a change: several services that are released as one."""

from dataclasses import dataclass
from enum import StrEnum


class ChangeVerdict(StrEnum):
    PROMOTED = "promoted"  # every service serves its new release
    ROLLED_BACK = "rolled back"  # every service serves what it served before
    INCONSISTENT = "inconsistent"  # some serve the new one, some the old one: a person decides


@dataclass(frozen=True)
class ChangeRecord:
    """One attempt to release a stack, as the ledger holds it."""

    id: int
    stack: str
    environment: str
    version: str
    file: str
    at_once: int
    by: str
    flow_run_id: str | None  # of the run that led it first
    leader: str | None  # the process that began it: "pid 812 on web1"
    started_at: float
    trouble: str | None = None  # why it is not carried through; what was first
    verdict: str | None = None  # None until it is over
    reason: str = ""
    finished_at: float | None = None

    @property
    def service(self) -> str:
        """Under which its lease is held."""
        return place_of(self.stack)


@dataclass(frozen=True)
class MemberRecord:
    """One service of a change: what was asked for it. How far that got, its rollouts tell."""

    change_id: int
    service: str
    position: int  # in the file
    after: tuple[str, ...]
    parameters: dict[str, object]  # of its release
    asked_at: float | None = None  # when its release was asked for: written before it is
    run_id: str | None = None  # flow run of the release, when that is known
    cancelled: bool = False  # the run was told to end
    back_attempts: int = 0  # how often it was asked to be taken back
    back_run_id: str | None = None  # flow run of the last attempt
    kept: str | None = None  # why it is not taken back


PLACE = "stack:"


def place_of(stack: str) -> str:
    """What stands for a stack where the ledger wants a service; no service has such a name."""
    return f"{PLACE}{stack}"


def is_place(service: str) -> bool:
    return service.startswith(PLACE)
