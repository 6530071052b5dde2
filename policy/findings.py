"""What scanners found, in words of ours, whichever tool found it; what a team chose to live with.

Three answers of a scan, never two: clean, findings, could not scan. The last is no pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from policy.part import Part

TRIVY = "trivy"
Kind = Literal[
    "vulnerability",
    "secret",
    "misconfiguration",
    "license",
    "code",  # of a tool that speaks SARIF
    "compliance",  # a control of a report that failed
    "unread",  # a list of packages or a configuration that could not be read
]


class Severity(IntEnum):
    UNKNOWN = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    def __str__(self) -> str:
        return self.name.lower()


def severity(value: Any) -> Severity:
    """'high' -> Severity.HIGH. Raises ValueError."""
    if isinstance(value, Severity):
        return value
    named = Severity.__members__.get(str(value).upper())
    if named is None:
        raise ValueError(f"{value!r} is no severity; write low, medium, high or critical")
    return named


SeverityName = Annotated[
    Severity,
    BeforeValidator(severity),
    WithJsonSchema({"enum": [str(s) for s in Severity], "description": "a severity"}),
]


@dataclass(frozen=True)
class Finding:
    tool: str
    kind: Kind
    id: str  # CVE-2019-10906, DS002, aws-access-key-id, B101
    severity: Severity
    title: str
    target: str  # file, image layer or package list it was found in
    package: str = ""
    installed: str = ""
    fixed: str = ""  # the version that mends it; empty: none is known
    line: int | None = None
    url: str = ""
    epss: float | None = None  # probability that it is exploited within 30 days
    kev: bool = False  # it is known to be exploited

    @property
    def about(self) -> str:
        """The package, or the file of a finding that is of none."""
        return self.package or self.target


class Outcome(StrEnum):
    CLEAN = "clean"
    FINDINGS = "findings"
    NOT_SCANNED = "could not scan"


@dataclass(frozen=True)
class Scan:
    """What one tool said of one artifact."""

    tool: str
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    reason: str = ""  # why it could not scan, and what to do
    database_at: float | None = None  # when its vulnerabilities were collected, epoch seconds
    sarif: bool = False  # a tool of the team's own choice
    controls: int = 0  # that a compliance report consists of

    def __str__(self) -> str:
        if self.outcome is Outcome.NOT_SCANNED:
            return f"{self.tool} {self.outcome}: {self.reason}"
        return f"{self.tool}: {len(self.findings)} findings"


def not_scanned(tool: str, reason: str) -> Scan:
    return Scan(tool, Outcome.NOT_SCANNED, reason=reason)


def scanned(tool: str, findings: Sequence[Finding], database_at: float | None = None) -> Scan:
    outcome = Outcome.FINDINGS if findings else Outcome.CLEAN
    return Scan(tool, outcome, tuple(findings), database_at=database_at)


# -- what a team lives with -------------------------------------------------------------------


class Waiver(Part):
    """One finding that is let through, by whom, why and until when."""

    id: str = Field(min_length=1, description="of the finding: CVE-2019-10906, DS002")
    package: str = Field(
        min_length=1, description="its package; of a finding that is of none, its file"
    )
    reason: str = Field(min_length=10, description="why it is no danger, in a sentence")
    owner: str = Field(min_length=1, description="who answers for it")
    expires: date = Field(description="the last day on which it holds: 2026-12-31")

    @field_validator("id", "package", "reason", "owner", mode="before")
    @classmethod
    def _not_blank(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    def covers(self, finding: Finding) -> bool:
        same = self.package.casefold() == finding.about.casefold()  # Jinja2 is jinja2
        return same and self.id == finding.id

    def __str__(self) -> str:
        return f"{self.id} of {self.package} ({self.owner}, until {self.expires})"


@dataclass(frozen=True)
class Waived:
    """Findings after the waivers: what counts, what was let through, which waivers are no good."""

    open: tuple[Finding, ...]
    waived: tuple[tuple[Finding, Waiver], ...] = ()
    expired: tuple[Waiver, ...] = ()
    unused: tuple[Waiver, ...] = ()


def waive(findings: Sequence[Finding], waivers: Sequence[Waiver], today: date) -> Waived:
    """A waiver lets through what it names, to the end of its last day. One that is over, or that
    names nothing that was found, is reported: neither may lie in a file unseen."""
    living = [waiver for waiver in waivers if waiver.expires >= today]
    left: list[Finding] = []
    through: list[tuple[Finding, Waiver]] = []
    for finding in findings:
        waiver = next((w for w in living if w.covers(finding)), None)
        if waiver is None:
            left.append(finding)
        else:
            through.append((finding, waiver))
    used = {id(waiver) for _, waiver in through}
    return Waived(
        tuple(left),
        tuple(through),
        tuple(waiver for waiver in waivers if waiver.expires < today),
        tuple(waiver for waiver in living if id(waiver) not in used),
    )
