"""What every mapping of the service file has in common."""

import shlex

from pydantic import BaseModel, ConfigDict

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
