"""Trivy's JSON report, version 2, and what it found in our words."""

from collections.abc import Iterator

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
    vulnerabilities: list[_Vulnerability] = Field(default_factory=list, alias="Vulnerabilities")
    misconfigurations: list[_Misconfiguration] = Field(
        default_factory=list, alias="Misconfigurations"
    )
    secrets: list[_Secret] = Field(default_factory=list, alias="Secrets")
    licenses: list[_License] = Field(default_factory=list, alias="Licenses")


class Report(BaseModel):
    schema_version: int = Field(alias="SchemaVersion")
    results: list[_Result] | None = Field(None, alias="Results")


def findings(report: Report) -> Iterator[Finding]:
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
