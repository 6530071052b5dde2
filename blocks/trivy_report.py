"""Trivy's JSON report, version 2, and what it found in our words."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field

from policy.findings import TRIVY, Finding, Severity, severity

VERSION = 2


class _Vulnerability(BaseModel):
    id: str = Field(alias="VulnerabilityID")
    package: str = Field(alias="PkgName")
    installed: str = Field("", alias="InstalledVersion")
    fixed: str = Field("", alias="FixedVersion")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    url: str = Field("", alias="PrimaryURL")
    path: str = Field("", alias="PkgPath")


class _Cause(BaseModel):
    line: int | None = Field(None, alias="StartLine")


class _Misconfiguration(BaseModel):
    id: str = Field(alias="ID")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    status: str = Field("FAIL", alias="Status")
    url: str = Field("", alias="PrimaryURL")
    cause: _Cause = Field(default_factory=lambda: _Cause.model_validate({}), alias="CauseMetadata")


class _Secret(BaseModel):
    id: str = Field(alias="RuleID")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    line: int | None = Field(None, alias="StartLine")


class _License(BaseModel):
    name: str = Field(alias="Name")
    severity: str = Field("UNKNOWN", alias="Severity")
    category: str = Field("", alias="Category")
    package: str = Field("", alias="PkgName")
    path: str = Field("", alias="FilePath")


class _Result(BaseModel):
    target: str = Field(alias="Target")
    kind: str = Field("", alias="Type")
    vulnerabilities: list[_Vulnerability] = Field(default_factory=list, alias="Vulnerabilities")
    misconfigurations: list[_Misconfiguration] = Field(
        default_factory=list, alias="Misconfigurations"
    )
    secrets: list[_Secret] = Field(default_factory=list, alias="Secrets")
    licenses: list[_License] = Field(default_factory=list, alias="Licenses")


class _System(BaseModel):
    family: str = Field("", alias="Family")
    name: str = Field("", alias="Name")
    over: bool = Field(False, alias="EOSL")  # its distribution cares for it no longer


class _Metadata(BaseModel):
    system: _System | None = Field(None, alias="OS")


class Report(BaseModel):
    schema_version: int = Field(alias="SchemaVersion")
    metadata: _Metadata | None = Field(None, alias="Metadata")
    results: list[_Result] | None = Field(None, alias="Results")


class _Control(BaseModel):
    id: str = Field(alias="ID")
    name: str = Field("", alias="Name")
    severity: str = Field("UNKNOWN", alias="Severity")
    results: list[_Result] | None = Field(None, alias="Results")


class Compliance(BaseModel):
    id: str = Field(alias="ID")
    controls: list[_Control] = Field(alias="Results", min_length=1)


def configured(report: Report, kinds: tuple[str, ...]) -> bool:
    """Did it look at configuration of any of these kinds?"""
    return any(result.kind in kinds for result in report.results or ())


def failed_controls(report: Compliance) -> Iterator[Finding]:
    """One finding for each control and file. A control without results passed, or is for people to
    look at: Trivy does not tell these apart."""
    for control in report.controls:
        for result in control.results or ():
            if failures := list(_findings(result)):
                yield Finding(
                    TRIVY,
                    "compliance",
                    f"{report.id}/{control.id}",
                    _severity(control.severity),
                    f"{control.name}: {', '.join(dict.fromkeys(f.id for f in failures))}",
                    result.target,
                )


def findings(report: Report) -> Iterator[Finding]:
    system = report.metadata.system if report.metadata else None
    if system and system.over:
        name = f"{system.family} {system.name}"
        words = f"{name} is no longer cared for: of what is found in it since, nobody tells"
        yield Finding(
            TRIVY, "misconfiguration", "end-of-life", Severity.HIGH, words, "image", package=name
        )
    for result in report.results or ():
        yield from _findings(result)


def _findings(result: _Result) -> Iterator[Finding]:
    for v in result.vulnerabilities:
        yield Finding(
            TRIVY,
            "vulnerability",
            v.id,
            _severity(v.severity),
            v.title or v.id,
            v.path or result.target,
            package=v.package,
            installed=v.installed,
            fixed=v.fixed,
            url=v.url,
        )
    for m in result.misconfigurations:
        if m.status == "FAIL":
            yield Finding(
                TRIVY,
                "misconfiguration",
                m.id,
                _severity(m.severity),
                m.title,
                result.target,
                line=m.cause.line,
                url=m.url,
            )
    for s in result.secrets:
        yield Finding(
            TRIVY, "secret", s.id, _severity(s.severity), s.title, result.target, line=s.line
        )
    for one in result.licenses:
        yield Finding(
            TRIVY,
            "license",
            one.name,
            _severity(one.severity),
            f"{one.name} ({one.category})" if one.category else one.name,
            one.path or result.target,
            package=one.package,
        )


def _severity(name: str) -> Severity:
    """One that Trivy learns later counts as the worst: it must not slip through."""
    try:
        return severity(name)
    except ValueError:
        return Severity.CRITICAL


# -- what it says on its standard error -----------------------------------------------------------

_UNREAD = re.compile(
    r"\t(?:DEBUG|WARN|ERROR)\t(?:\[[^\]\t]*\] )?"
    r"(?:Walk error|Analysis error|Failed to parse[^\t]*|Error parsing file)\t(.*)"
)
_FILE = re.compile(r'file_path="((?:[^"\\]|\\.)*)"')
_IN_WORDS = re.compile(r'(?:^err="|: )(?:failed|unable) to parse ((?:[^:\\]|\\.)+)')
_CAUSE = re.compile(r"^(?:  - |\t\* )(.*?):?$")


def passed_over(errors: Path) -> list[Finding]:
    """Lock files and configuration that it could not read, and says so in passing (0.59.1)."""
    found: dict[Finding, None] = {}
    for line in _lines(errors):
        if match := _UNREAD.search(line):
            words = match[1]
            file = _FILE.search(words) or _IN_WORDS.search(words)
            found[
                Finding(
                    TRIVY,
                    "unread",
                    "cannot-be-read",
                    Severity.CRITICAL,
                    f"what it names was not looked at: {words[-300:]}",
                    _unquoted(file[1]) if file else "a file that Trivy does not name",
                )
            ] = None
    return list(found)


def _unquoted(words: str) -> str:
    """It writes names as Go does; most of that is JSON too."""
    try:
        return str(json.loads(f'"{words}"'))
    except ValueError:
        return words


def fatal(errors: Path) -> str:
    """Why it gave up; with --debug that is spread over lines, between places in its source."""
    words: list[str] = []
    begun = False
    for line in _lines(errors):
        if "\tFATAL\t" in line:
            begun, words = True, [line.split("\t", 3)[-1]]
        elif begun and (cause := _CAUSE.match(line)):
            words.append(cause[1])
    return ": ".join(words)[:500]


def _lines(errors: Path) -> Iterator[str]:
    with errors.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")
