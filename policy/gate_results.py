"""What a gate says: the answer, the number, the limit, the reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import Field

from policy.part import Part

Level = Literal["block", "warn"]


class Gate(Part):
    level: Level = Field("block", description="a failure stops the release, or is only told")


class Status(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class GateResult:
    gate: str
    status: Status
    level: Level
    number: str  # what was measured
    limit: str  # what is asked
    reason: str
    against: tuple[str, ...] = ()  # all that speaks against it, the worst first

    @property
    def blocks(self) -> bool:
        return self.status is Status.FAIL and self.level == "block"


def failed_by(
    gate: str, level: Level, number: str, limit: str, against: Sequence[str]
) -> GateResult:
    return GateResult(gate, Status.FAIL, level, number, limit, first(against), tuple(against))


def first(words: Sequence[str], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more


def measured(
    name: str, level: Level, number: float | None, limit: str, unit: str, kept: bool, missing: str
) -> GateResult:
    """One number against one limit; `missing`: why there is none, which fails it."""
    if number is None:
        return GateResult(name, Status.FAIL, level, "unknown", limit, missing)
    said = f"{number:.2f}".rstrip("0").rstrip(".") + unit
    status = Status.PASS if kept else Status.FAIL
    return GateResult(
        name, status, level, said, limit, f"{said} is {'' if kept else 'not '}{limit}"
    )
