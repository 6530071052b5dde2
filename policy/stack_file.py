"""Several services as one change, as a team describes it in a stack file, version 1."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from policy.part import Part
from policy.service_file import Name

AT_ONCE = 4


class Member(Part):
    """One service of the change."""

    file: str = Field(min_length=1, description="its service file, from the stack file's place")
    after: list[Name] = Field(
        default_factory=list,
        description="services of this file that it needs: it begins when they have been promoted",
    )

    @field_validator("after")
    @classmethod
    def _each_once(cls, after: list[str]) -> list[str]:
        for name in after:
            if after.count(name) > 1:
                raise ValueError(f"names {name} twice")
        return after


def _member(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


AnyMember = Annotated[
    Member,
    BeforeValidator(_member),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "minLength": 1}, Member.model_json_schema()],
            "description": "the path of its service file, or a mapping",
        }
    ),
]


class StackFile(Part):
    """Services that are released as one change: all of them, or none."""

    version: Literal[1] = Field(description="version of this format")
    stack: Name = Field(description="name of the change: lower case, digits, dashes")
    services: Annotated[dict[Name, AnyMember], Field(min_length=1)] = Field(
        description="the services by their names, each with its file and what it comes after"
    )
    at_once: int = Field(AT_ONCE, ge=1, le=100, description="releases at the same time, at most")

    @field_validator("version", mode="before")
    @classmethod
    def _known_version(cls, version: Any, info: ValidationInfo) -> Any:
        if isinstance(version, int) and not isinstance(version, bool) and version > 1:
            raise ValueError(f"{version} is newer than this dafnck, which reads version 1")
        return version


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors."""
    schema = StackFile.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stack file of dafnck, version 1",
        **{key: value for key, value in schema.items() if key != "title"},
    }
