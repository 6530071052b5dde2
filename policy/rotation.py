"""How a secret turns over, and what its rotation does next. Pure.

    create -> set -> test -> finish      the four steps of AWS Secrets Manager's rotation functions,
                                         https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html
    renew -> wait -> disable -> prove    what makes it end: consumers run with the new one, the old
                                         one is closed and seen to be refused

Nothing of a rotation is kept but the versions of the secret and what its consumers run with, so
whoever comes after a crash goes on from what is true.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from policy.part import Part
from policy.quantities import LongSeconds, Seconds
from policy.secrets import Version, Versions, read_reference

USER = r"^[a-z_][a-z0-9_]{0,62}$"
DAY = 86_400.0


class PostgresLogins(Part):
    """Two logins of PostgreSQL that take turns: while one is given a new password, all that runs
    still has the other one."""

    admin: str = Field(
        description="secret whose value is the URL of a role that may change both (CREATEROLE)"
    )
    role: Annotated[str, Field(pattern=USER)] = Field(
        description="role that owns what they work with; both are members, and act as it"
    )
    users: Annotated[
        list[Annotated[str, Field(pattern=USER)]], Field(min_length=2, max_length=2)
    ] = Field(description="the two logins; one that is not there is made")

    @field_validator("admin")
    @classmethod
    def _named(cls, reference: str) -> str:
        read_reference(reference)
        return reference

    @model_validator(mode="after")
    def _different(self) -> "PostgresLogins":
        if len({self.role, *self.users}) != 3:
            raise ValueError("role and the two users: three different names")
        return self


class Rotation(Part):
    """How one secret turns over."""

    postgres: PostgresLogins = Field(description="its value is the URL of a PostgreSQL database")
    every: LongSeconds = Field(30 * DAY, gt=0, description="how old a value may get")
    grace: Seconds = Field(
        3600.0, description="from the last consumer's renewal until the old value is closed"
    )

    @model_validator(mode="after")
    def _ends_before_the_next(self) -> "Rotation":
        if self.grace >= self.every:
            raise ValueError("grace: must be shorter than every")
        return self


@dataclass(frozen=True)
class Seen:
    """What is true of one secret now."""

    now: float
    versions: Versions
    behind: tuple[str, ...]  # releases that serve with another version of it than the current one
    asked_for: bool = False  # a person wants it now, whatever its age


@dataclass(frozen=True)
class Create:
    why: str

    def __str__(self) -> str:
        return f"make a new value: {self.why}"


@dataclass(frozen=True)
class SetTestFinish:
    """Idempotent together: begun again, all three are done again with the same value."""

    number: int

    def __str__(self) -> str:
        return f"have version {self.number} accepted, log in with it, make it the current one"


@dataclass(frozen=True)
class Renew:
    releases: tuple[str, ...]

    def __str__(self) -> str:
        return f"roll what still runs with an older value: {', '.join(self.releases)}"


@dataclass(frozen=True)
class WaitFor:
    seconds: float

    def __str__(self) -> str:
        return f"the old value stays good for {self.seconds:.0f} s more"


@dataclass(frozen=True)
class Disable:
    """Close it, and see that it is refused."""

    version: Version

    def __str__(self) -> str:
        return f"close version {self.version.number}, and see that it is refused"


@dataclass(frozen=True)
class Done:
    why: str

    def __str__(self) -> str:
        return self.why


Step = Create | SetTestFinish | Renew | WaitFor | Disable | Done


def next_step(rotation: Rotation, seen: Seen) -> Step:
    """What to do now. A rotation that was begun is ended before another one begins."""
    if seen.versions.pending is not None:
        return SetTestFinish(seen.versions.pending)
    if seen.behind and seen.versions.current is not None:
        return Renew(seen.behind)
    if seen.versions.superseded:
        # From when all had moved, however often they are released since.
        since = seen.now if seen.versions.moved_at is None else seen.versions.moved_at
        left = since + rotation.grace - seen.now
        return WaitFor(left) if left > 0 else Disable(seen.versions.superseded[0])
    age = seen.versions.age(seen.now)
    if age is None:
        return Done("there is no value yet")
    if seen.asked_for:
        return Create("somebody asked for it")
    if age >= rotation.every:
        return Create(f"it is {age / DAY:.1f} days old, {rotation.every / DAY:.1f} are allowed")
    return Done(f"it is {age / DAY:.1f} days old, of {rotation.every / DAY:.1f}")
