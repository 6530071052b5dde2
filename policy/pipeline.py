"""What a team wants done with an artifact before it is released: tests and scans."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from policy.part import Command, Part
from policy.quantities import Seconds

CheckName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$")]


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
    again: int = Field(
        0, ge=0, le=5, description="how often a suite with failures runs again, to tell flaky tests"
    )

    @field_validator("command")
    @classmethod
    def _reports(cls, command: Command) -> Command:
        if "{junit}" not in str(command):
            raise ValueError("must name {junit}, the file for its results: --junitxml={junit}")
        return command


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
