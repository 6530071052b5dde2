"""May this artifact be released? Each gate passes, fails or is not applicable, and says why.

Pure: evidence in, results out. What is missing where a gate asks for it fails it; it never passes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from policy.findings import TRIVY, Finding, Outcome, Scan, Severity, SeverityName, Waived
from policy.part import Part
from policy.quantities import Bytes, Percentage

Level = Literal["block", "warn"]
LICENSE_WORDS = re.compile(r"[\s()]+(?:AND|OR|WITH)?[\s()]*")
FEWEST_ROUNDS = 5  # of a benchmark, in either release: below, no order of them is unlikely enough
CHANCE = 0.01  # of calling any benchmark of a release slower that is not


class Gate(Part):
    level: Level = Field("block", description="a failure stops the release, or is only told")


class FindingsGate(Gate):
    """Findings of scanners. One that could not scan closes it."""

    at_least: SeverityName = Field(Severity.HIGH, description="findings this severe fail it")
    only_fixable: bool = Field(
        False, description="vulnerabilities that no version mends do not count"
    )


class SecretsGate(Gate):
    """Keys and passwords in the source, as Trivy finds them."""

    at_least: SeverityName = Field(Severity.UNKNOWN, description="those this severe fail it")


class TestsGate(Gate):
    """The test suites. One without a result, or without a test, closes it."""

    flaky_at_most: int | None = Field(
        None, ge=0, description="tests that passed only when they were run again; default: any"
    )


class CoverageGate(Gate):
    """Of the tests, by the Cobertura XML that a suite writes; the highest of them counts."""

    at_least: Percentage | None = Field(None, description="of the lines")
    drop_at_most: Percentage | None = Field(
        None, description="percentage points below the release that serves"
    )

    @model_validator(mode="after")
    def _asks_something(self) -> "CoverageGate":
        if self.at_least is None and self.drop_at_most is None:
            raise ValueError("needs at_least or drop_at_most")
        return self


class BenchmarksGate(Gate):
    """Compares the rounds of each benchmark with those of the release that serves."""

    slower_at_most: Percentage = Field(
        10.0, description="than the release that serves, beyond chance (pytest-benchmark JSON)"
    )


class SizeGate(Gate):
    """Of all files of the artifact."""

    at_most: Bytes | None = Field(None, description="of the artifact")
    growth_at_most: Percentage | None = Field(None, description="over the release that serves")

    @model_validator(mode="after")
    def _asks_something(self) -> "SizeGate":
        if self.at_most is None and self.growth_at_most is None:
            raise ValueError("needs at_most or growth_at_most")
        return self


class LicensesGate(Gate):
    """Licences of the installed packages."""

    forbidden: list[str] = Field(
        default_factory=list, description="SPDX names that no package may have: AGPL-3.0-only"
    )
    at_least: SeverityName = Field(
        Severity.CRITICAL, description="licences that the scanner rates this severe fail it too"
    )


class Gates(Part):
    """What an artifact must show before it is released."""

    tests: TestsGate = Field(default_factory=TestsGate, description="the suites")
    findings: FindingsGate = Field(
        default_factory=FindingsGate,
        description="vulnerabilities, misconfigurations, findings of other tools",
    )
    secrets: SecretsGate = Field(
        default_factory=SecretsGate, description="keys and passwords in the source"
    )
    licenses: LicensesGate | None = Field(None, description="licences of the packages")
    coverage: CoverageGate | None = Field(None, description="coverage of the tests")
    benchmarks: BenchmarksGate | None = Field(None, description="no slower than what serves")
    size: SizeGate | None = Field(None, description="size of the artifact")


# -- what is known of an artifact -----------------------------------------------------------------


@dataclass(frozen=True)
class SuiteResult:
    """What one suite of tests ended in."""

    name: str
    ran: int
    failed: tuple[str, ...] = ()  # names of the tests
    skipped: int = 0
    flaky: tuple[str, ...] = ()  # failed first and passed when run again
    broken: str = ""  # why it has no result at all: timed out, no report, crashed
    coverage: float | None = None  # percent of the lines
    benchmarks: Mapping[str, Sequence[float]] = field(default_factory=dict)  # seconds of each round

    def __str__(self) -> str:
        if self.broken:
            return f"{self.name}: {self.broken.splitlines()[0]}"
        flaky = f", {len(self.flaky)} flaky" if self.flaky else ""
        return f"{self.name}: {self.ran} ran, {len(self.failed)} failed{flaky}"


@dataclass(frozen=True)
class Evidence:
    """Of the new artifact, and of the one that serves."""

    suites: tuple[SuiteResult, ...] | None = None  # None: the file names none
    scans: tuple[Scan, ...] | None = None
    waived: Waived = field(default_factory=lambda: Waived(()))
    size_bytes: int | None = None
    serves: "Evidence | None" = None

    @property
    def coverage(self) -> float | None:
        known = [s.coverage for s in self.suites or () if s.coverage is not None]
        return max(known) if known else None

    @property
    def benchmarks(self) -> dict[str, Sequence[float]]:
        return {name: rounds for s in self.suites or () for name, rounds in s.benchmarks.items()}


# -- the gates ---------------------------------------------------------------------------------


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

    @property
    def blocks(self) -> bool:
        return self.status is Status.FAIL and self.level == "block"


def judge(gates: Gates, evidence: Evidence) -> list[GateResult]:
    """Every gate, in the order in which people ask."""
    results = [
        _tests(gates.tests, evidence),
        _findings(gates.findings, evidence),
        _secrets(gates.secrets, evidence),
    ]
    if gates.licenses:
        results.append(_licenses(gates.licenses, evidence))
    if gates.coverage:
        results += _coverage(gates.coverage, evidence)
    if gates.benchmarks:
        results.append(_benchmarks(gates.benchmarks, evidence))
    if gates.size:
        results += _size(gates.size, evidence)
    results += _waivers(evidence)
    return results


def _tests(gate: TestsGate, evidence: Evidence) -> GateResult:
    limit = "all pass"
    if gate.flaky_at_most is not None:
        limit += f", at most {gate.flaky_at_most} flaky"
    if evidence.suites is None:
        return GateResult("tests", Status.NOT_APPLICABLE, gate.level, "", limit, "no suites named")
    ran = sum(suite.ran for suite in evidence.suites)
    failed = [f"{s.name}: {test}" for s in evidence.suites for test in s.failed]
    broken = [f"{suite.name}: {suite.broken}" for suite in evidence.suites if suite.broken]
    flaky = [f"{s.name}: {test}" for s in evidence.suites for test in s.flaky]
    number = f"{ran} ran, {len(failed)} failed, {len(flaky)} flaky"
    empty = [f"{s.name}: no test ran" for s in evidence.suites if not s.ran and not s.broken]
    if why := [*broken, *failed, *empty]:
        return GateResult("tests", Status.FAIL, gate.level, number, limit, _first(why))
    if gate.flaky_at_most is not None and len(flaky) > gate.flaky_at_most:
        reason = f"passed only when run again: {_first(flaky)}"
        return GateResult("tests", Status.FAIL, gate.level, number, limit, reason)
    again = f"passed only when run again: {_first(flaky)}" if flaky else "all passed"
    return GateResult("tests", Status.PASS, gate.level, number, limit, again)


def _findings(gate: FindingsGate, evidence: Evidence) -> GateResult:
    limit = f"none of {gate.at_least} or worse"
    if gate.only_fixable:
        limit += " that can be mended"

    def counts(finding: Finding) -> bool:
        mended = finding.fixed or finding.kind != "vulnerability" or not gate.only_fixable
        return finding.severity >= gate.at_least and bool(mended)

    kinds = ("vulnerability", "misconfiguration", "code")
    return _of_kinds("findings", gate.level, limit, evidence, kinds, counts)


def _secrets(gate: SecretsGate, evidence: Evidence) -> GateResult:
    limit = "none" if gate.at_least is Severity.UNKNOWN else f"none of {gate.at_least} or worse"
    if evidence.scans is not None and not _by_trivy(evidence):
        why = "nothing looks for them without Trivy"
        return GateResult("secrets", Status.NOT_APPLICABLE, gate.level, "", limit, why)

    def counts(finding: Finding) -> bool:
        return finding.severity >= gate.at_least

    return _of_kinds("secrets", gate.level, limit, evidence, ("secret",), counts)


def _of_kinds(
    name: str,
    level: Level,
    limit: str,
    evidence: Evidence,
    kinds: tuple[str, ...],
    counts: Callable[[Finding], bool],
) -> GateResult:
    if unknown := _unscanned(name, level, limit, evidence):
        return unknown
    of_kind = [f for f in evidence.waived.open if f.kind in kinds]
    severe = [finding for finding in of_kind if counts(finding)]
    through = sum(finding.kind in kinds for finding, _ in evidence.waived.waived)
    number = f"{len(severe)} of {len(of_kind)}" + (f", {through} waived" if through else "")
    if not severe:
        return GateResult(name, Status.PASS, level, number, limit, "nothing that severe")
    words = [
        f"{f.id} {f.about} ({f.severity}" + (f", mended in {f.fixed})" if f.fixed else ")")
        for f in severe
    ]
    return GateResult(name, Status.FAIL, level, number, limit, _first(words))


def _by_trivy(evidence: Evidence) -> bool:
    return any(scan.tool == TRIVY for scan in evidence.scans or ())


def _unscanned(name: str, level: Level, limit: str, evidence: Evidence) -> GateResult | None:
    if evidence.scans is None:
        return GateResult(name, Status.NOT_APPLICABLE, level, "", limit, "no scan is asked for")
    blind = [f"{s.tool}: {s.reason}" for s in evidence.scans if s.outcome is Outcome.NOT_SCANNED]
    if not blind:
        return None
    reason = f"could not scan: {_first(blind)}"
    return GateResult(name, Status.FAIL, level, "not scanned", limit, reason)


def _licenses(gate: LicensesGate, evidence: Evidence) -> GateResult:
    limit = ", ".join([f"none rated {gate.at_least}", *(f"no {name}" for name in gate.forbidden)])
    if unknown := _unscanned("licenses", gate.level, limit, evidence):
        return unknown
    if not _by_trivy(evidence):
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
        words = _first([f"{f.about}: {f.id}" for f in bad])
        return GateResult("licenses", Status.FAIL, gate.level, number, limit, words)
    return GateResult("licenses", Status.PASS, gate.level, number, limit, "none of them")


def _coverage(gate: CoverageGate, evidence: Evidence) -> list[GateResult]:
    results, has = [], evidence.coverage
    if gate.at_least is not None:
        limit = f"at least {gate.at_least:g}%"
        results.append(
            _number(
                "coverage",
                gate.level,
                has,
                limit,
                "%",
                has is not None and has >= gate.at_least,
                "no suite wrote coverage",
            )
        )
    if gate.drop_at_most is not None:
        limit = f"at most {gate.drop_at_most:g} points below what serves"
        had = evidence.serves.coverage if evidence.serves else None
        if had is None:
            results.append(
                GateResult(
                    "coverage drop",
                    Status.NOT_APPLICABLE,
                    gate.level,
                    "",
                    limit,
                    "of what serves no coverage is known",
                )
            )
        else:
            drop = None if has is None else round(had - has, 2)
            results.append(
                _number(
                    "coverage drop",
                    gate.level,
                    drop,
                    limit,
                    " points",
                    drop is not None and drop <= gate.drop_at_most,
                    "no suite wrote coverage",
                )
            )
    return results


def _number(
    name: str, level: Level, number: float | None, limit: str, unit: str, kept: bool, missing: str
) -> GateResult:
    if number is None:
        return GateResult(name, Status.FAIL, level, "unknown", limit, missing)
    said = f"{number:.2f}".rstrip("0").rstrip(".") + unit
    status = Status.PASS if kept else Status.FAIL
    return GateResult(
        name, status, level, said, limit, f"{said} is {'' if kept else 'not '}{limit}"
    )


def _benchmarks(gate: BenchmarksGate, evidence: Evidence) -> GateResult:
    """One-sided Mann-Whitney (1947) of each benchmark's rounds, the new ones made faster by what is
    allowed; Holm's (1979) step-down holds the chance of any false alarm at `CHANCE`."""
    from scipy.stats import mannwhitneyu  # takes a second, which commands must not wait for

    name, limit = "benchmarks", f"at most {gate.slower_at_most:g}% slower than what serves"
    here, there = evidence.benchmarks, evidence.serves.benchmarks if evidence.serves else {}
    if not here:
        return GateResult(name, Status.FAIL, gate.level, "none", limit, "no suite wrote benchmarks")
    if not there:
        return GateResult(
            name,
            Status.NOT_APPLICABLE,
            gate.level,
            f"{len(here)} new",
            limit,
            "of what serves no benchmarks are known",
        )
    allowed = 1 + gate.slower_at_most / 100
    chances: dict[str, float] = {}
    thin = []
    for each in sorted(name for name, rounds in there.items() if len(rounds) >= FEWEST_ROUNDS):
        new, old = np.asarray(here.get(each, ())), np.asarray(there[each])
        if len(new) < FEWEST_ROUNDS:
            thin.append(each)
            continue
        chances[each] = float(mannwhitneyu(new / allowed, old, alternative="greater").pvalue)
    if thin:
        why = f"fewer than {FEWEST_ROUNDS} rounds of what was measured before: {_first(thin)}"
        return GateResult(name, Status.FAIL, gate.level, f"{len(here)}", limit, why)
    if not chances:
        why = f"what serves has fewer than {FEWEST_ROUNDS} rounds of each"
        return GateResult(name, Status.NOT_APPLICABLE, gate.level, f"{len(here)}", limit, why)
    slower = []
    for rank, (each, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        if chance > CHANCE / (len(chances) - rank):
            break
        ratio = float(np.median(here[each]) / np.median(there[each]))
        slower.append(f"{each} takes {ratio:.2f} times as long (by chance in {chance:.2g})")
    number = f"{len(slower)} of {len(chances)} slower"
    if slower:
        return GateResult(name, Status.FAIL, gate.level, number, limit, _first(slower))
    return GateResult(name, Status.PASS, gate.level, number, limit, "none beyond chance")


def _size(gate: SizeGate, evidence: Evidence) -> list[GateResult]:
    results, has = [], evidence.size_bytes
    mib = None if has is None else has / 2**20
    if gate.at_most is not None:
        limit = f"at most {gate.at_most / 2**20:g} MiB"
        kept = has is not None and has <= gate.at_most
        results.append(
            _number("size", gate.level, mib, limit, " MiB", kept, "the artifact's size is unknown")
        )
    if gate.growth_at_most is not None:
        limit = f"at most {gate.growth_at_most:g}% more than what serves"
        had = evidence.serves.size_bytes if evidence.serves else None
        if not had:
            why = "of what serves no size is known"
            results.append(GateResult("growth", Status.NOT_APPLICABLE, gate.level, "", limit, why))
        else:
            growth = None if has is None else (has / had - 1) * 100
            kept = growth is not None and growth <= gate.growth_at_most
            results.append(
                _number("growth", gate.level, growth, limit, "%", kept, "its size is unknown")
            )
    return results


def _waivers(evidence: Evidence) -> list[GateResult]:
    """Told, never in the way: an expired waiver lets nothing through by itself."""
    waived = evidence.waived
    if not (waived.waived or waived.expired or waived.unused):
        return []
    number = (
        f"{len(waived.waived)} used, {len(waived.expired)} expired, {len(waived.unused)} unused"
    )
    words = [f"expired: {waiver}" for waiver in waived.expired]
    words += [f"unused: {waiver}" for waiver in waived.unused]
    status = Status.FAIL if words else Status.PASS
    return [
        GateResult(
            "waivers",
            status,
            "warn",
            number,
            "none expired, none unused",
            _first(words) or "all used",
        )
    ]


def _first(words: Sequence[str], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more
