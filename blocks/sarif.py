"""SARIF 2.1.0 (OASIS, 2020), in which analysers tell what they found: read, and written."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from blocks.files import read_plain_file
from policy.findings import Finding, Scan, Severity, not_scanned, scanned

MAX_BYTES = 64 * 2**20
LEVELS = {
    "error": Severity.HIGH,
    "warning": Severity.MEDIUM,
    "note": Severity.LOW,
    "none": Severity.UNKNOWN,
}
# What GitHub's code scanning reads: a score as CVSS has them, of a rule.
NO_FINDING = ("pass", "notApplicable", "informational")
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


class _ComponentRef(_Part):
    index: int | None = None


class _RuleRef(_Part):
    id: str | None = None
    index: int | None = None
    tool_component: _ComponentRef = Field(default_factory=_ComponentRef)


class _Suppression(_Part):
    status: str = "accepted"


class _Result(_Part):
    rule_id: str | None = None
    rule_index: int | None = None
    rule: _RuleRef = Field(default_factory=_RuleRef)
    level: str | None = None
    kind: str = "fail"
    message: _Text = Field(default_factory=_Text)
    locations: list[_Location] = []
    suppressions: list[_Suppression] | None = None


class _Driver(_Part):
    name: str
    rules: list[_Rule] = []


class _Tool(_Part):
    driver: _Driver
    extensions: list[_Driver] = []


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


def read(path: Path, tool: str, source: Path | None = None) -> Scan:
    """What the tool wrote there. No file, or one that is no SARIF: it could not scan. Files are
    named as from `source`, where it ran."""
    try:
        log = _Log.model_validate_json(read_plain_file(path, MAX_BYTES))
    except FileNotFoundError:
        return not_scanned(tool, "it wrote no SARIF file where {sarif} says")
    except OSError as error:
        return not_scanned(tool, f"its answer cannot be read: {error}")
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
    return scanned(tool, [finding for run in log.runs for finding in _findings(run, tool, source)])


def _findings(run: _Run, tool: str, source: Path | None) -> Iterator[Finding]:
    for result in run.results or ():
        if result.kind in NO_FINDING or _let_through(result):
            continue
        rule = _rule(run, result)
        name = result.rule_id or result.rule.id or (rule.id if rule else "no rule")
        place = result.locations[0].physical_location if result.locations else _Place()
        short = rule.short_description.text if rule and rule.short_description else ""
        yield Finding(
            tool,
            "code",
            name,
            _severity(result, rule),
            result.message.text or short,
            _from(source, place.artifact_location.uri),
            line=place.region.start_line,
            url=rule.help_uri if rule else "",
        )


def _from(source: Path | None, uri: str) -> str:
    path = unquote(uri.removeprefix("file://"))
    return path.removeprefix(f"{source}/") if source else path


def _let_through(result: _Result) -> bool:
    """In the source itself, by the tool's own rules. One that is rejected or under review is not
    (SARIF 2.1.0, 3.35.3)."""
    states = [suppression.status for suppression in result.suppressions or ()]
    return bool(states) and all(state == "accepted" for state in states)


def _rule(run: _Run, result: _Result) -> _Rule | None:
    """Of the tool or of its extensions; "CA1000/1" is a result of rule CA1000."""
    driver, extensions = run.tool.driver, run.tool.extensions
    rules = [rule for part in (driver, *extensions) for rule in part.rules]
    by_id = {rule.id: rule for rule in reversed(rules)}
    name = result.rule_id or result.rule.id or ""
    while name:
        if name in by_id:
            return by_id[name]
        name = name.rpartition("/")[0]
    index = result.rule_index if result.rule_index is not None else result.rule.index
    part = result.rule.tool_component.index
    of = driver if part is None else extensions[part] if part < len(extensions) else None
    return of.rules[index] if of and index is not None and 0 <= index < len(of.rules) else None


def _severity(result: _Result, rule: _Rule | None) -> Severity:
    if rule and (score := rule.properties.get("security-severity")) is not None:
        try:
            number = float(score)
        except (TypeError, ValueError):
            return Severity.CRITICAL  # it means something bad
        if not number >= 0:
            return Severity.CRITICAL
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
            "properties": {"kev": finding.kev, "epss": finding.epss},
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
