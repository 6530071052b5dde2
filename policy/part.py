"""What every mapping of the service file has in common."""

import shlex
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

Command = str | list[str]


class Part(BaseModel):
    """Every mapping of the file: closed to unknown keys, never changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def in_arguments(command: Command) -> Command:
    """The command, if it can be split into a program and its arguments."""
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None
    if not words or not words[0] or "\0" in "".join(words):
        raise ValueError("names no program")
    return command


def _one_key_of(kind: str, keys: str, value: Any) -> Any:
    if isinstance(value, str):
        name, sign, content = value.partition(":" if kind == "header" else "=")
        if not sign or not name.strip() or not content.strip():
            raise ValueError(f"write {keys}")
        return {"name": name.strip(), "value": content.strip()}
    return value


class NamedValue(Part):
    name: str = Field(pattern=r"^[A-Za-z0-9!#$&'*+.^_|~-]+$", description="the name")
    value: str = Field(pattern=r"^[^`\r\n]+$", description="the exact value")


_TWO_WAYS = {"anyOf": [{"type": "string"}, NamedValue.model_json_schema()]}
HeaderValue = Annotated[
    NamedValue,
    BeforeValidator(lambda value: _one_key_of("header", "'X-Beta: yes'", value)),
    WithJsonSchema(_TWO_WAYS | {"description": "a header: 'X-Beta: yes'"}),
]
CookieValue = Annotated[
    NamedValue,
    BeforeValidator(lambda value: _one_key_of("cookie", "'beta=yes'", value)),
    WithJsonSchema(_TWO_WAYS | {"description": "a cookie: 'beta=yes'"}),
]
