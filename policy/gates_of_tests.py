"""Gates over the test suites: their results, coverage and benchmarks."""

import numpy as np
from pydantic import Field, model_validator

from policy.evidence import Evidence
from policy.gate_results import Gate, GateResult, Status, failed_by, first, measured
from policy.quantities import Percentage

FEWEST_ROUNDS = 5  # of a benchmark, in either release: below, no order of them is unlikely enough
CHANCE = 0.01  # of calling any benchmark of a release slower that is not


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


def judge_tests(gate: TestsGate, evidence: Evidence) -> GateResult:
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
        return failed_by("tests", gate.level, number, limit, why)
    if gate.flaky_at_most is not None and len(flaky) > gate.flaky_at_most:
        reason = f"passed only when run again: {first(flaky)}"
        return GateResult("tests", Status.FAIL, gate.level, number, limit, reason)
    again = f"passed only when run again: {first(flaky)}" if flaky else "all passed"
    if before := [f"{s.name} in {s.before}" for s in evidence.suites if s.before]:
        again += f"; the same artifact passed before: {first(before)}"
    return GateResult("tests", Status.PASS, gate.level, number, limit, again)


def judge_coverage(gate: CoverageGate, evidence: Evidence) -> list[GateResult]:
    results, has = [], evidence.coverage
    if gate.at_least is not None:
        limit = f"at least {gate.at_least:g}%"
        results.append(
            measured(
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
                measured(
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


def judge_benchmarks(gate: BenchmarksGate, evidence: Evidence) -> GateResult:
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
        why = f"fewer than {FEWEST_ROUNDS} rounds of what was measured before: {first(thin)}"
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
        return failed_by(name, gate.level, number, limit, slower)
    return GateResult(name, Status.PASS, gate.level, number, limit, "none beyond chance")
