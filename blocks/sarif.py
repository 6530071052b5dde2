"""SARIF 2.1.0 (OASIS, 2020), in which analysers tell what they found: read, and written."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from policy.findings import Finding, Scan, Severity, not_scanned, scanned

MAX_BYTES = 64 * 2**20
LEVELS = {
    "error": Severity.HIGH,
    "warning": Severity.MEDIUM,
    "note": Severity.LOW,
    "none": Severity.UNKNOWN,
}
# What GitHub's code scanning reads: a score as CVSS has them, of a rule.
SCORES = ((9.0, Severity.CRITICAL), (7.0, Severity.HIGH), (4.0, Severity.MEDIUM))


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class _Text(_Part):
    text: str = ""


class _Configuration(_Part):
    level: str = "warning"


class _Rule(_Part):
    id: str
    short_description: _Text | None = None
    help_uri: str = ""
    default_configuration: _Configuration = Field(default_factory=_Configuration)
    properties: dict[str, Any] = {}


class _Region(_Part):
    start_line: int | None = None


class _File(_Part):
    uri: str = ""


class _Place(_Part):
    artifact_location: _File = Field(default_factory=_File)
    region: _Region = Field(default_factory=_Region)


class _Location(_Part):
    physical_location: _Place = Field(default_factory=_Place)


class _RuleRef(_Part):
    id: str | None = None
    index: int | None = None


class _Result(_Part):
    rule_id: str | None = None
    rule_index: int | None = None
    rule: _RuleRef = Field(default_factory=_RuleRef)
    level: str | None = None
    kind: str = "fail"
    message: _Text = Field(default_factory=_Text)
    locations: list[_Location] = []
    suppressions: list[dict[str, Any]] | None = None


class _Driver(_Part):
    name: str
    rules: list[_Rule] = []


class _Tool(_Part):
    driver: _Driver


class _Invocation(_Part):
    execution_successful: bool = True
    exit_code_description: str = ""


class _Run(_Part):
    tool: _Tool
    results: list[_Result] | None = None
    invocations: list[_Invocation] = []


class _Log(_Part):
    version: str
    runs: list[_Run]


def read(path: Path, tool: str) -> Scan:
    """What the tool wrote there. No file, or one that is no SARIF: it could not scan."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return not_scanned(tool, f"its answer is larger than {MAX_BYTES >> 20} MiB")
        log = _Log.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return not_scanned(tool, "it wrote no SARIF file where {sarif} says")
    except ValidationError as error:
        what = error.errors()[0]
        where = ".".join(map(str, what["loc"])) or "JSON"
        return not_scanned(tool, f"its answer is not SARIF ({where}: {what['msg']})")
    if log.version != "2.1.0":
        return not_scanned(tool, f"its answer is SARIF {log.version}; 2.1.0 can be read")
    if not log.runs:
        return not_scanned(tool, "its answer holds no run")
    for run in log.runs:
        for invocation in run.invocations:
            if not invocation.execution_successful:
                why = invocation.exit_code_description or "it does not say why"
                return not_scanned(tool, f"it says that it failed: {why}")
        if run.results is None:
            return not_scanned(tool, "it says that it did not look (a run without results)")
    return scanned(tool, [finding for run in log.runs for finding in _findings(run, tool)])


def _findings(run: _Run, tool: str) -> Iterator[Finding]:
    by_id = {rule.id: rule for rule in run.tool.driver.rules}
    for result in run.results or ():
        if result.kind != "fail" or result.suppressions:
            continue  # passed, or let through in the source itself, by the tool's own rules
        name = result.rule_id or result.rule.id
        index = result.rule_index if result.rule_index is not None else result.rule.index
        rule = by_id.get(name or "")
        if rule is None and index is not None and 0 <= index < len(run.tool.driver.rules):
            rule = run.tool.driver.rules[index]
        place = result.locations[0].physical_location if result.locations else _Place()
        yield Finding(
            tool,
            "code",
            name or (rule.id if rule else "no rule"),
            _severity(result, rule),
            result.message.text
            or (rule.short_description.text if rule and rule.short_description else ""),
            place.artifact_location.uri,
            line=place.region.start_line,
            url=rule.help_uri if rule else "",
        )


def _severity(result: _Result, rule: _Rule | None) -> Severity:
    if rule and (score := rule.properties.get("security-severity")) is not None:
        try:
            number = float(score)
        except (TypeError, ValueError):
            return Severity.CRITICAL  # it means something bad
        return next((s for least, s in SCORES if number >= least), Severity.LOW)
    level = result.level or (rule.default_configuration.level if rule else "warning")
    return LEVELS.get(level, Severity.CRITICAL)


# -- written, for the CI system ---------------------------------------------------------------

OF_SEVERITY = {
    Severity.CRITICAL: ("error", "9.5"),
    Severity.HIGH: ("error", "8.0"),
    Severity.MEDIUM: ("warning", "5.5"),
    Severity.LOW: ("note", "2.0"),
    Severity.UNKNOWN: ("none", "0.0"),
}


def written(findings: Sequence[Finding], waived: Sequence[tuple[Finding, str]] = ()) -> str:
    """All findings as SARIF; what is waived is there, suppressed, with its justification."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for finding, why in [*((f, None) for f in findings), *waived]:
        level, score = OF_SEVERITY[finding.severity]
        rules.setdefault(
            finding.id,
            {
                "id": finding.id,
                "shortDescription": {"text": finding.title or finding.id},
                **({"helpUri": finding.url} if finding.url else {}),
                "properties": {"security-severity": score, "tags": [finding.kind, finding.tool]},
            },
        )
        about = f" {finding.package} {finding.installed}".rstrip() if finding.package else ""
        mended = f"; mended in {finding.fixed}" if finding.fixed else ""
        result: dict[str, Any] = {
            "ruleId": finding.id,
            "level": level,
            "message": {"text": f"{finding.title or finding.id}{about}{mended}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": finding.target},
                        "region": {"startLine": finding.line or 1},
                    }
                }
            ],
        }
        if why is not None:
            result["suppressions"] = [{"kind": "external", "justification": why}]
        results.append(result)
    driver = {"name": "dafnck", "rules": list(rules.values())}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(log, indent=1) + "\n"
