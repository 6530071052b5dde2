"""Each gate with its number, its limit, its reason, and what to do."""

from dataclasses import replace

from deployments.gate_explained import explained
from policy.evidence import Evidence, SuiteResult
from policy.findings import Finding, Severity, Waived, not_scanned, scanned
from policy.gates import Gates, judge
from policy.priority import Snapshot
from tasks.evidence import Kept

FOUND = (
    Finding("trivy", "vulnerability", "CVE-1", Severity.HIGH, "", "x", package="a", epss=0.1),
    Finding("trivy", "vulnerability", "CVE-2", Severity.HIGH, "", "x", package="b", kev=True),
    Finding("trivy", "vulnerability", "CVE-3", Severity.LOW, "", "x", package="c"),
    Finding("trivy", "license", "AGPL-3.0-only", Severity.CRITICAL, "", "x", package="d"),
    Finding("ruff", "code", "F401", Severity.HIGH, "", "shop.py", line=3),
)
ASKS = {"licenses": {}, "lint": {"tools": ["ruff"], "at_most": 0}}


def told(evidence: Evidence) -> str:
    results = judge(Gates.model_validate(ASKS), evidence)
    return "\n".join(explained(Kept(evidence, results, "/evidence/1"), "prod"))


def test_every_finding_is_told_once_where_it_counts_the_worst_first() -> None:
    scans = (
        scanned("trivy", FOUND[:4], 1_795_392_000.0),
        replace(scanned("ruff", FOUND[4:]), sarif=True),
    )
    snapshots = (Snapshot("EPSS", 1_795_392_000.0), Snapshot("KEV", None, "there is none"))
    words = told(Evidence(scans=scans, waived=Waived(FOUND), snapshots=snapshots))
    assert [line.strip() for line in words.splitlines() if "against" in line] == [
        "against 1 CVE-2 b (high, exploited)",
        "against 2 CVE-1 a (high, EPSS 10%)",
        "against 1 F401 shop.py:3 (high)",
        "against 1 AGPL-3.0-only d (critical)",
        "found, and against no gate:",
    ]
    assert words.endswith("found, and against no gate:\n  CVE-3 c (low)")
    assert "- {id: CVE-2, package: b," in words
    assert "- {id: AGPL-3.0-only, package: d," in words
    assert "details   /evidence/1/findings.sarif" in words
    assert "set by    gates.licenses; for prod alone environments.prod.gates.licenses" in words
    assert "trivy: 4 findings, database of 2026-11-23" in words
    assert "EPSS of 2026-11-23" in words
    assert "KEV: there is none" in words


def test_what_could_not_be_scanned_and_every_failed_test() -> None:
    failed = tuple(f"test_{n}" for n in range(9))
    suites = (SuiteResult("unit", 9, failed=failed),)
    words = told(Evidence(suites, (not_scanned("trivy", "there is no database"),)))
    assert "against 9 unit: test_8" in words
    assert "findings: fail, closed" in words
    assert "why       could not scan: trivy: there is no database" in words
    assert "give the scanner what it lacks" in words
