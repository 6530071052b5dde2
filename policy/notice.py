"""Who hears of what: the events of a rollout, the targets that a service names, the words of one.

A target is named, never written out: its URL holds a secret, and is stored beside the ledger or in
the environment of the process that sends.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from policy.part import Part


class Event(StrEnum):
    START = "start"
    PAUSE = "pause"  # it waits for a person, or is frozen
    FAIL = "fail"  # the verdict, or whatever else is held against the new release
    PROMOTE = "promote"
    ROLLBACK = "rollback"  # what served before serves again
    CRASH = "crash"  # its process died
    BACKUP = "backup"  # a backup or a restore drill failed
    SECRET = "secret"  # noqa: S105  the rotation of one failed


TARGET = r"(\$[A-Za-z_][A-Za-z0-9_]*|[a-z0-9][a-z0-9-]{0,62})"


def target(name: Any) -> str:
    """Raises ValueError, which does not repeat what was written: it may be the secret itself."""
    if isinstance(name, str) and re.fullmatch(TARGET, name):
        return name
    raise ValueError(
        "is no name of a target; write team-slack, whose URL `dafnck notify add team-slack` "
        "stores, or $SLACK_URL for an environment variable"
    )


def _targets(names: Any) -> Any:
    """Also here the value stays untold."""
    if not isinstance(names, list):
        raise ValueError("must be a list of names of targets: [team-slack]")
    return names


Target = Annotated[
    str, BeforeValidator(target), WithJsonSchema({"type": "string", "pattern": f"^{TARGET}$"})
]


class Notify(Part):
    """Who hears of a release, and of what."""

    to: Annotated[list[Target], Field(min_length=1), BeforeValidator(_targets)] = Field(
        description="names of targets (`dafnck notify add NAME`), or $NAME for the environment "
        "variable of the worker that holds the URL"
    )
    on: Annotated[list[Event], Field(min_length=1)] | None = Field(
        None,
        description="start, pause (it waits for a person), fail, promote, rollback, crash, "
        "backup (one or its drill failed), secret (its rotation failed); default: all",
    )


@dataclass(frozen=True)
class Notice:
    """What a target is told."""

    event: Event
    title: str  # one line
    facts: tuple[tuple[str, str], ...]  # name, value

    @property
    def body(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.facts)

    @property
    def line(self) -> str:
        """All of it on one line, for a log."""
        facts = "; ".join(f"{name}: {' '.join(value.split())}" for name, value in self.facts)
        return f"{self.event}: {self.title}; {facts}"
