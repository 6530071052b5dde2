"""Which finding first: what is exploited, by CISA's KEV; what soon may be, by FIRST's EPSS.

Both are snapshots that somebody brought. Without one, or with an old one, nobody knows: a gate that
asks for it is closed then.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

from policy.findings import Finding, Severity
from policy.quantities import in_words

SnapshotName = Literal["EPSS", "KEV"]
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Snapshot:
    name: SnapshotName
    at: float | None = None  # its date, epoch seconds
    unusable: str = ""  # why no gate may trust it, and what to do


def snapshot(name: SnapshotName, at: float | None, now: float, age_seconds: float) -> Snapshot:
    """`at`: None when there is none."""
    bring = "bring one: dafnck scan-db import FILE"
    if at is None:
        return Snapshot(name, None, f"there is no snapshot of {name}; {bring}")
    if (age := now - at) < -DAY_SECONDS:
        return Snapshot(name, at, f"the snapshot of {name} is from the future; look at the clock")
    if age > age_seconds:
        return Snapshot(
            name,
            at,
            f"the snapshot of {name} is {in_words(age // 3600 * 3600)} old, at most "
            f"{in_words(age_seconds)} is allowed; {bring}",
        )
    return Snapshot(name, at)


def with_priority(
    findings: Sequence[Finding], epss: Mapping[str, float], kev: AbstractSet[str]
) -> list[Finding]:
    """`epss`: probability by CVE; `kev`: CVEs that are known to be exploited."""
    return [replace(f, epss=epss.get(f.id), kev=f.id in kev) for f in findings]


def rated(findings: Sequence[Finding], unrated_tool: str) -> list[Finding]:
    """What one tool gives no severity takes that of another that found the same in the same
    package; found by it alone, it keeps its own."""
    known: dict[tuple[str, str], Severity] = {}
    for f in findings:
        if f.tool != unrated_tool and f.severity is not Severity.UNKNOWN:
            place = f.id, f.package.casefold()
            known[place] = max(f.severity, known.get(place, Severity.UNKNOWN))
    return [
        replace(f, severity=known.get((f.id, f.package.casefold()), f.severity))
        if f.tool == unrated_tool
        else f
        for f in findings
    ]


def by_priority(findings: Sequence[Finding]) -> list[Finding]:
    """What is known to be exploited, then the severest, then the likeliest to be exploited, of
    these what can be mended."""
    return sorted(
        findings,
        key=lambda f: (not f.kev, -f.severity, -(f.epss or 0), not f.fixed, f.id, f.about),
    )


def in_short(finding: Finding) -> str:
    """CVE-2019-10906 jinja2 (high, exploited, EPSS 94%, mended in 2.10.1); F401 shop.py:3 (low)"""
    words = [str(finding.severity)]
    words += ["exploited"] if finding.kev else []
    words += [f"EPSS {finding.epss * 100:.3g}%"] if finding.epss is not None else []
    words += [f"mended in {finding.fixed}"] if finding.fixed else []
    line = f":{finding.line}" if finding.line and not finding.package else ""
    return f"{finding.id} {finding.about}{line} ({', '.join(words)})"
