"""What a team wants done with an artifact before it serves: tests, scans, smoke tests."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from policy.findings import TRIVY
from policy.part import Command, HeaderValue, Part, in_arguments
from policy.quantities import Seconds

CheckName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$")]


PIP_AUDIT = "pip-audit"
# Compliance reports of Trivy, and the configuration that each is about. Those of a whole cluster
# (k8s-cis, eks-cis, rke2-cis) would pass here for want of anything to look at.
COMPLIANCE: dict[str, tuple[str, ...]] = {
    "docker-cis-1.6.0": ("dockerfile",),
    "k8s-nsa-1.0": ("kubernetes", "helm"),
    "k8s-pss-baseline-0.1": ("kubernetes", "helm"),
    "k8s-pss-restricted-0.1": ("kubernetes", "helm"),
}
OF_CLUSTERS = ("k8s-cis-", "eks-cis-", "rke2-cis-")


class Suite(Part):
    """Tests that run in a copy of what was built, or in a container of the image, so that what was
    tested is what ships."""

    name: CheckName = Field(description="name of the suite")
    command: Command = Field(
        description="the command; it writes JUnit XML to {junit} and may write Cobertura XML to "
        "{coverage} and pytest-benchmark JSON to {benchmarks}"
    )
    requirements: str | None = Field(
        None, description="requirements file of what the tests need beside the application (Python)"
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="environment variables, besides PATH and a home; of an image, besides its own",
    )
    within: Seconds = Field(600.0, gt=0, description="time limit of one run")
    parallel: bool = Field(False, description="runs beside the other suites that say so")
    rerun: bool = Field(
        False, description="run it also when the very same artifact has passed it before"
    )
    again: int = Field(
        0, ge=0, le=5, description="how often a suite with failures runs again, to tell flaky tests"
    )

    @field_validator("command")
    @classmethod
    def _reports(cls, command: Command) -> Command:
        if "{junit}" not in str(command):
            raise ValueError("must name {junit}, the file for its results: --junitxml={junit}")
        return command


class SmokeTest(Part):
    """Asked of the new release before it has traffic, and again when it has all of it."""

    get: str | None = Field(None, pattern=r"^/\S*$", description="path, asked by GET")
    status: int | None = Field(None, ge=100, le=599, description="of the answer; default: 200")
    header: HeaderValue | None = Field(
        None, description="that the answer must have, its value holding this text"
    )
    body: str | None = Field(None, min_length=1, description="text that the answer must hold")
    command: Command | None = Field(
        None,
        description="instead: a command that exits 0, beside the service file; URL is a replica's, "
        "ROUTER_URL, HOST and ROUTER_HEADER lead through the router",
    )
    within: Seconds = Field(5.0, gt=0, description="the whole answer must be there by then")

    @field_validator("command")
    @classmethod
    def _readable(cls, command: Command | None) -> Command | None:
        return None if command is None else in_arguments(command)

    @model_validator(mode="after")
    def _one_way(self) -> "SmokeTest":
        if (self.get is None) == (self.command is None):
            raise ValueError("needs exactly one of get, command")
        asked = [key for key in ("status", "header", "body") if getattr(self, key) is not None]
        if self.command is not None and asked:
            raise ValueError(f"{asked[0]}: only of an answer to get; the command judges itself")
        return self

    def __str__(self) -> str:
        return f"GET {self.get}" if self.get else f"command {self.command}"


class Tool(Part):
    """Any analyser that writes SARIF: ruff, bandit, semgrep, checkov, hadolint."""

    name: CheckName = Field(description="name of the tool")
    command: Command = Field(
        description="the command, in a copy of the source; it writes SARIF to {sarif}"
    )
    within: Seconds = Field(300.0, gt=0, description="time limit")

    @field_validator("command")
    @classmethod
    def _reports(cls, command: Command) -> Command:
        if "{sarif}" not in str(command):
            raise ValueError("must name {sarif}, the file for what it finds")
        return command


class PipAudit(Part):
    """pip-audit looks at the installed Python packages. It asks its source over the network, and
    gives no severity: what it alone finds counts as high."""

    osv: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="address that answers queries as OSV does, a company's mirror: "
        "https://osv.example.org/v1/query; default: PyPI",
    )
    private: list[str] = Field(
        default_factory=list, description="packages that the source need not know"
    )
    within: Seconds = Field(300.0, gt=0, description="time limit")


def _switch(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


PipAuditSwitch = Annotated[
    PipAudit | None,
    BeforeValidator(_switch),
    WithJsonSchema(
        {
            "anyOf": [{"type": "boolean"}, {"type": "null"}, PipAudit.model_json_schema()],
            "description": "true, or a mapping",
        }
    ),
]


class Scans(Part):
    """What looks for vulnerabilities, secrets, mistakes in configuration, licences."""

    trivy: bool = Field(True, description="scan the artifact with Trivy")
    database_age: Seconds = Field(
        2 * 86400.0, gt=0, description="Trivy's vulnerability database may be this old, no older"
    )
    priority_age: Seconds = Field(
        7 * 86400.0, gt=0, description="so may the snapshots of EPSS and KEV"
    )
    within: Seconds = Field(600.0, gt=0, description="time limit of Trivy")
    compliance: list[str] = Field(
        default_factory=list,
        description=f"reports that Trivy makes: {', '.join(COMPLIANCE)}",
    )
    pip_audit: PipAuditSwitch = Field(
        None, description="look at the installed Python packages with pip-audit: true, or a mapping"
    )
    tools: list[Tool] = Field(default_factory=list, description="other tools, by SARIF")
    waivers: str | None = Field(None, description="file of findings that are let through")

    @field_validator("compliance")
    @classmethod
    def _known_reports(cls, names: list[str]) -> list[str]:
        for name in names:
            if name.startswith(OF_CLUSTERS):
                raise ValueError(f"{name} is about a whole cluster; Trivy looks at none here")
            if name not in COMPLIANCE:
                raise ValueError(f"there is no report {name!r}; there is {', '.join(COMPLIANCE)}")
        if len({*names}) < len(names):
            raise ValueError("the same report twice")
        return names

    @model_validator(mode="after")
    def _one_at_least(self) -> "Scans":
        if not (self.trivy or self.tools or self.pip_audit):
            raise ValueError("trivy: false leaves nothing that scans; name tools")
        if self.compliance and not self.trivy:
            raise ValueError("compliance: Trivy makes the reports, and trivy is false")
        names = [tool.name for tool in self.tools]
        if len({*names} | {TRIVY, PIP_AUDIT}) < len(names) + 2:
            raise ValueError("tools: two have the same name")
        return self
