"""May this artifact be released? Each gate passes, fails or is not applicable, and says why.

Pure: evidence in, results out. What is missing where a gate asks for it fails it; it never passes.
"""

from pydantic import Field

from policy.evidence import Evidence
from policy.gate_results import GateResult, Status, first
from policy.gates_of_age import SecretAgeGate, judge_secret_age
from policy.gates_of_scans import (
    ComplianceGate,
    FindingsGate,
    LicensesGate,
    LintGate,
    SecretsGate,
    judge_compliance,
    judge_findings,
    judge_licenses,
    judge_lint,
    judge_secrets,
)
from policy.gates_of_size import SizeGate, judge_size
from policy.gates_of_tests import (
    BenchmarksGate,
    CoverageGate,
    TestsGate,
    judge_benchmarks,
    judge_coverage,
    judge_tests,
)
from policy.part import Part
from policy.pipeline import COMPLIANCE


class Gates(Part):
    """What an artifact must show before it is released."""

    tests: TestsGate = Field(default_factory=TestsGate, description="the suites")
    findings: FindingsGate = Field(
        default_factory=FindingsGate,
        description="vulnerabilities, misconfigurations, findings of other tools",
    )
    secrets: SecretsGate = Field(
        default_factory=SecretsGate, description="keys and passwords in the source or the image"
    )
    compliance: ComplianceGate = Field(
        default_factory=ComplianceGate, description="controls of the reports in scan.compliance"
    )
    lint: LintGate | None = Field(None, description="how many findings linters have")
    licenses: LicensesGate | None = Field(None, description="licences of the packages")
    coverage: CoverageGate | None = Field(None, description="coverage of the tests")
    benchmarks: BenchmarksGate | None = Field(None, description="no slower than what serves")
    size: SizeGate | None = Field(None, description="size of the artifact")
    secret_age: SecretAgeGate | None = Field(
        None, description="age of the secrets that it is given"
    )


def judge(gates: Gates, evidence: Evidence) -> list[GateResult]:
    """Every gate, in the order in which people ask."""
    results = [
        judge_tests(gates.tests, evidence),
        judge_findings(gates.findings, evidence, gates.lint),
        judge_secrets(gates.secrets, evidence),
    ]
    if any(scan.tool in COMPLIANCE for scan in evidence.scans or ()):
        results.append(judge_compliance(gates.compliance, evidence))
    if gates.lint:
        results += judge_lint(gates.lint, evidence)
    if gates.licenses:
        results.append(judge_licenses(gates.licenses, evidence))
    if gates.coverage:
        results += judge_coverage(gates.coverage, evidence)
    if gates.benchmarks:
        results.append(judge_benchmarks(gates.benchmarks, evidence))
    if gates.size:
        results += judge_size(gates.size, evidence)
    if gates.secret_age:
        results.append(judge_secret_age(gates.secret_age, evidence))
    return results + _waivers(evidence)


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
    limit, reason = "none expired, none unused", first(words) or "all used"
    return [GateResult("waivers", status, "warn", number, limit, reason, tuple(words))]
