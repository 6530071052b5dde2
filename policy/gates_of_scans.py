"""Gates over what scanners found. One that could not scan closes what hangs on it."""

import re
from collections.abc import Callable, Sequence

from pydantic import Field, model_validator

from policy.evidence import Evidence
from policy.findings import TRIVY, Finding, Kind, Outcome, Scan, Severity, SeverityName
from policy.gate_results import Gate, GateResult, Level, Status, failed_by, first
from policy.pipeline import COMPLIANCE
from policy.priority import SnapshotName, by_priority, in_short
from policy.quantities import Percentage

LICENSE_WORDS = re.compile(r"[\s()]+(?:AND|OR|WITH)?[\s()]*")
FINDINGS: tuple[Kind, ...] = ("vulnerability", "misconfiguration", "code", "unread")


class FindingsGate(Gate):
    """Findings of scanners. One that could not scan closes it."""

    at_least: SeverityName = Field(Severity.HIGH, description="findings this severe fail it")
    only_fixable: bool = Field(
        False, description="vulnerabilities that no version mends do not count"
    )
    known_exploited: bool = Field(
        False,
        description="vulnerabilities that are exploited (CISA's KEV) fail it, of any severity, "
        "mended or not; closed without a snapshot that is younger than scan.priority_age",
    )
    epss_at_least: Percentage | None = Field(
        None,
        description="vulnerabilities that are this likely to be exploited within 30 days (EPSS) "
        "fail it, of any severity; closed without a snapshot, as above",
    )


class SecretsGate(Gate):
    """Keys and passwords in the source and in images, as Trivy finds them."""

    at_least: SeverityName = Field(Severity.UNKNOWN, description="those this severe fail it")


class LicensesGate(Gate):
    """Licences of the installed packages."""

    forbidden: list[str] = Field(
        default_factory=list, description="SPDX names that no package may have: AGPL-3.0-only"
    )
    at_least: SeverityName = Field(
        Severity.CRITICAL, description="licences that the scanner rates this severe fail it too"
    )


class ComplianceGate(Gate):
    """Controls of the reports that `scan.compliance` names."""

    at_least: SeverityName = Field(Severity.LOW, description="failed controls this severe fail it")


class LintGate(Gate):
    """How many findings linters have, by SARIF."""

    tools: list[str] = Field(
        default_factory=list,
        description="these of scan.tools, which the gate findings does not count then; "
        "default: all of them, which it counts too",
    )
    at_most: int | None = Field(None, ge=0, description="findings of any severity")
    more_than_serves: int | None = Field(
        None, ge=0, description="findings more than the release that serves has, at most"
    )

    @model_validator(mode="after")
    def _asks_something(self) -> "LintGate":
        if self.at_most is None and self.more_than_serves is None:
            raise ValueError("needs at_most or more_than_serves")
        return self


def judge_findings(gate: FindingsGate, evidence: Evidence, lint: LintGate | None) -> GateResult:
    linters = {*lint.tools} if lint else set()
    limit = f"none of {gate.at_least} or worse"
    if gate.only_fixable:
        limit += " that can be mended"
    asked: list[SnapshotName] = []
    if gate.known_exploited:
        limit += ", none exploited"
        asked.append("KEV")
    if gate.epss_at_least is not None:
        limit += f", none of EPSS {gate.epss_at_least:g}% or more"
        asked.append("EPSS")

    def counts(finding: Finding) -> bool:
        if gate.known_exploited and finding.kev:
            return True
        if gate.only_fixable and finding.kind == "vulnerability" and not finding.fixed:
            return False
        if gate.epss_at_least is not None and (finding.epss or 0) * 100 >= gate.epss_at_least:
            return True
        return finding.severity >= gate.at_least

    scans = [s for s in evidence.scans or () if s.tool not in linters and s.tool not in COMPLIANCE]
    if unknown := _unscanned("findings", gate.level, limit, evidence, scans):
        return unknown
    if evidence.scans is not None:
        usable = {one.name: one.unusable for one in evidence.snapshots}
        blind = [usable.get(name, f"there is no snapshot of {name}") for name in asked]
        if why := [words for words in blind if words]:
            return failed_by("findings", gate.level, "not known", limit, why)

    def judged(finding: Finding) -> bool:
        return finding.kind in FINDINGS and finding.tool not in linters

    return _of("findings", gate.level, limit, evidence, judged, counts)


def judge_secrets(gate: SecretsGate, evidence: Evidence) -> GateResult:
    limit = "none" if gate.at_least is Severity.UNKNOWN else f"none of {gate.at_least} or worse"
    if evidence.scans is not None and not _by_trivy(evidence):
        why = "nothing looks for them without Trivy"
        return GateResult("secrets", Status.NOT_APPLICABLE, gate.level, "", limit, why)
    if unknown := _unscanned("secrets", gate.level, limit, evidence, _by_trivy(evidence)):
        return unknown
    return _of(
        "secrets",
        gate.level,
        limit,
        evidence,
        lambda finding: finding.kind == "secret",
        lambda finding: finding.severity >= gate.at_least,
    )


def judge_licenses(gate: LicensesGate, evidence: Evidence) -> GateResult:
    limit = ", ".join([f"none rated {gate.at_least}", *(f"no {name}" for name in gate.forbidden)])
    trivy = _by_trivy(evidence)
    if unknown := _unscanned("licenses", gate.level, limit, evidence, trivy):
        return unknown
    if not trivy:
        why = "nothing looks at them without Trivy"
        return GateResult("licenses", Status.FAIL, gate.level, "not scanned", limit, why)
    found = [f for f in evidence.waived.open if f.kind == "license"]
    # "AGPL-3.0-only AND MIT" is one name to the scanner.
    bad = [
        f
        for f in found
        if f.severity >= gate.at_least or {f.id, *LICENSE_WORDS.split(f.id)} & {*gate.forbidden}
    ]
    number = f"{len(bad)} of {len(found)}"
    if bad:
        words = [in_short(finding) for finding in by_priority(bad)]
        return failed_by("licenses", gate.level, number, limit, words)
    return GateResult("licenses", Status.PASS, gate.level, number, limit, "none of them")


def judge_compliance(gate: ComplianceGate, evidence: Evidence) -> GateResult:
    limit = f"no failed control of {gate.at_least} or worse"
    scans = [s for s in evidence.scans or () if s.tool in COMPLIANCE]
    if not scans:
        why = "no report is asked for"
        return GateResult("compliance", Status.NOT_APPLICABLE, gate.level, "", limit, why)
    if unknown := _unscanned("compliance", gate.level, limit, evidence, scans):
        return unknown
    failed = [f for f in evidence.waived.open if f.kind == "compliance"]
    severe = by_priority([finding for finding in failed if finding.severity >= gate.at_least])
    through = sum(finding.kind == "compliance" for finding, _ in evidence.waived.waived)
    number = f"{len({f.id for f in severe})} of {sum(s.controls for s in scans)} controls failed"
    number += f", {through} waived" if through else ""
    if severe:
        return failed_by("compliance", gate.level, number, limit, [in_short(f) for f in severe])
    return GateResult("compliance", Status.PASS, gate.level, number, limit, "nothing that severe")


def judge_lint(gate: LintGate, evidence: Evidence) -> list[GateResult]:
    """By number, and by number more than what serves has."""
    results = []
    scans = _linted(gate, evidence)
    found = _lint(gate, evidence)
    if gate.at_most is not None:
        limit = f"at most {gate.at_most}"
        results.append(
            _unlinted("lint", gate, limit, evidence, scans)
            or _counted("lint", gate.level, limit, found, len(found) <= gate.at_most, len(found))
        )
    if gate.more_than_serves is not None:
        limit = f"at most {gate.more_than_serves} more than what serves"
        serves = evidence.serves
        there = _linted(gate, serves) if serves else []
        same = {s.tool for s in scans} == {s.tool for s in there}
        if unknown := _unlinted("lint growth", gate, limit, evidence, scans):
            results.append(unknown)
        elif not serves or not same or _blind(there):
            why = "of what serves not the same is known"
            results.append(
                GateResult("lint growth", Status.NOT_APPLICABLE, gate.level, "", limit, why)
            )
        else:
            more = len(found) - len(_lint(gate, serves))
            kept = more <= gate.more_than_serves
            results.append(_counted("lint growth", gate.level, limit, found, kept, more))
    return results


def _linted(gate: LintGate, evidence: Evidence) -> list[Scan]:
    """The scans of the linters: all tools that speak SARIF, or those that are named."""
    return [s for s in evidence.scans or () if s.sarif and (not gate.tools or s.tool in gate.tools)]


def _lint(gate: LintGate, evidence: Evidence) -> list[Finding]:
    tools = {scan.tool for scan in _linted(gate, evidence)}
    return [f for f in evidence.waived.open if f.kind == "code" and f.tool in tools]


def _unlinted(
    name: str, gate: LintGate, limit: str, evidence: Evidence, scans: Sequence[Scan]
) -> GateResult | None:
    missing = {*gate.tools} - {scan.tool for scan in scans}
    if evidence.scans is None or missing or not scans:
        why = f"no scan by {', '.join(sorted(missing)) or 'any tool'}"
        return GateResult(name, Status.FAIL, gate.level, "not scanned", limit, why)
    return _unscanned(name, gate.level, limit, evidence, scans)


def _counted(
    name: str, level: Level, limit: str, found: Sequence[Finding], kept: bool, number: int
) -> GateResult:
    if kept:
        return GateResult(name, Status.PASS, level, f"{number}", limit, "few enough")
    words = [in_short(finding) for finding in by_priority(found)]
    return failed_by(name, level, f"{number}", limit, words)


def _of(
    name: str,
    level: Level,
    limit: str,
    evidence: Evidence,
    judged: Callable[[Finding], bool],
    counts: Callable[[Finding], bool],
) -> GateResult:
    found = [finding for finding in evidence.waived.open if judged(finding)]
    severe = by_priority([finding for finding in found if counts(finding)])
    through = sum(judged(finding) for finding, _ in evidence.waived.waived)
    number = f"{len(severe)} of {len(found)}" + (f", {through} waived" if through else "")
    if severe:
        return failed_by(name, level, number, limit, [in_short(finding) for finding in severe])
    return GateResult(name, Status.PASS, level, number, limit, "nothing that severe")


def _by_trivy(evidence: Evidence) -> list[Scan]:
    return [scan for scan in evidence.scans or () if scan.tool == TRIVY]


def _blind(scans: Sequence[Scan]) -> list[str]:
    return [f"{s.tool}: {s.reason}" for s in scans if s.outcome is Outcome.NOT_SCANNED]


def _unscanned(
    name: str, level: Level, limit: str, evidence: Evidence, scans: Sequence[Scan]
) -> GateResult | None:
    """`scans`: those that the gate hangs on."""
    if evidence.scans is None:
        return GateResult(name, Status.NOT_APPLICABLE, level, "", limit, "no scan is asked for")
    if not (blind := _blind(scans)):
        return None
    reason = f"could not scan: {first(blind)}"
    return GateResult(name, Status.FAIL, level, "not scanned", limit, reason, tuple(blind))
