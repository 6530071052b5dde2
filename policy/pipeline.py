"""What a team wants done with an artifact before it serves: tests, scans, smoke tests."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from policy.part import Command, HeaderValue, Part, in_arguments
from policy.quantities import Seconds

CheckName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$")]


class Suite(Part):
    """Tests that run in a copy of what was built, so that what was tested is what ships."""

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
        description="environment variables, besides PATH and a home",
    )
    within: Seconds = Field(600.0, gt=0, description="time limit of one run")
    parallel: bool = Field(False, description="runs beside the other suites that say so")
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


class Scans(Part):
    """What looks for vulnerabilities, secrets, mistakes in configuration, licences."""

    trivy: bool = Field(True, description="scan the artifact with Trivy")
    database_age: Seconds = Field(
        2 * 86400.0, gt=0, description="Trivy's vulnerability database may be this old, no older"
    )
    within: Seconds = Field(600.0, gt=0, description="time limit of Trivy")
    tools: list[Tool] = Field(default_factory=list, description="other tools, by SARIF")
    waivers: str | None = Field(None, description="file of findings that are let through")

    @model_validator(mode="after")
    def _one_at_least(self) -> "Scans":
        if not (self.trivy or self.tools):
            raise ValueError("trivy: false leaves nothing that scans; name tools")
        if len({tool.name for tool in self.tools} | {"trivy"}) <= len(self.tools):
            raise ValueError("tools: two have the same name")
        return self
