"""What to do about a gate: which key sets it, which file holds the details, what comes next."""

from dataclasses import dataclass

from policy.findings import Finding, Waived
from policy.gate_results import GateResult, Status
from policy.priority import in_short

SARIF = "findings.sarif"
# gate: (its key in the service file, the file with its details, how it opens again)
ABOUT = {
    "tests": ("gates.tests", "tests/", "mend what failed; a suite without a result says why"),
    "findings": ("gates.findings", SARIF, "take the version that mends it, or waive it"),
    "secrets": (
        "gates.secrets",
        SARIF,
        "take the key out of the source and make a new one: who has the source has the old one",
    ),
    "compliance": ("gates.compliance", "<report>.json", "meet the control, or waive it"),
    "lint": ("gates.lint.at_most", SARIF, "mend some of them"),
    "lint growth": ("gates.lint.more_than_serves", SARIF, "mend what is new"),
    "licenses": ("gates.licenses", SARIF, "use another package, or waive it"),
    "coverage": ("gates.coverage.at_least", "tests/", "test more of the lines"),
    "coverage drop": ("gates.coverage.drop_at_most", "tests/", "test what is new"),
    "benchmarks": ("gates.benchmarks", "tests/", "make it as fast as it was"),
    "size": ("gates.size.at_most", "", "leave out what need not ship"),
    "growth": ("gates.size.growth_at_most", "", "leave out what need not ship"),
    "secret age": (
        "gates.secret_age",
        "",
        "turn it over: dafnck secret rotate NAME --now, or make a new one and: dafnck secret set",
    ),
    "waivers": ("scan.waivers", "", "take out what is over and what lets nothing through"),
}
WAIVABLE = ("findings", "secrets", "compliance", "licenses")


@dataclass(frozen=True)
class Advice:
    key: str  # in the service file
    file: str  # beside gates.json; empty: there is none
    next: str  # empty: nothing is to be done


def advice(result: GateResult, waived: Waived) -> Advice:
    key, file, words = ABOUT[result.gate]
    if result.status is not Status.FAIL:
        return Advice(key, file, "")
    if result.number in ("not scanned", "not known"):
        # The reason says what is missing; no waiver helps.
        return Advice(key, file, "give the scanner what it lacks, and release again")
    if result.gate in WAIVABLE and (finding := _first(result, waived)):
        words += f", in the file that scan.waivers names: {as_waiver(finding)}"
    return Advice(key, file, words)


def as_waiver(finding: Finding) -> str:
    words = "reason: …, owner: …, expires: YYYY-MM-DD"
    return f"- {{id: {finding.id}, package: {finding.about}, {words}}}"


def _first(result: GateResult, waived: Waived) -> Finding | None:
    """The worst that speaks against it."""
    by_words = {in_short(finding): finding for finding in waived.open}
    return next((by_words[words] for words in result.against if words in by_words), None)
