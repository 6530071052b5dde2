"""Secrets by name: what a reference names, which versions there are, which of them still counts."""

import re
from dataclasses import dataclass, field

MAX_BYTES = 64 * 1024  # as AWS Secrets Manager takes it

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}/[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
_REFERENCES = {
    "secret": _NAME,
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "prefect": re.compile(r"[a-z0-9][a-z0-9-]*"),
    "aws": re.compile(r"[A-Za-z0-9/_+=.@:-]+(#[^#\s]+)?"),
}
WAYS = (
    "secret://name/key (the store of this stack; with platform: kubernetes a Secret of the "
    "namespace), env://NAME, prefect://block or aws://id#key"
)


@dataclass(frozen=True)
class Reference:
    """`scheme`: secret, env, prefect or aws."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}"


def read_reference(text: str) -> Reference:
    """'secret://shop/database-url' and its kin. Raises ValueError."""
    scheme, found, name = text.partition("://")
    if found and scheme in _REFERENCES and _REFERENCES[scheme].fullmatch(name):
        return Reference(scheme, name)
    raise ValueError(f"names no secret; write {WAYS}")  # what was written may be one


def read_name(text: str) -> str:
    """'shop/database-url', also as 'secret://shop/database-url'. Raises ValueError."""
    name = text.removeprefix("secret://")
    if _NAME.fullmatch(name):
        return name
    raise ValueError(
        "this is no name of a secret; write name/key in small letters, digits, . and -"
    )


@dataclass(frozen=True)
class Version:
    """One value that a secret had. Times in seconds since the epoch."""

    number: int
    made_at: float
    current_since: float | None = None  # None: it never was
    disabled_at: float | None = None  # since then it opens nothing, and its value is gone


@dataclass(frozen=True)
class Versions:
    """All that is known of a secret but its values, oldest first.

    Invariant: at most one version is pending, and it is newer than the current one. The number of
    one that was current is never given again, also after all of a secret was removed."""

    name: str
    all: tuple[Version, ...] = field(default=())
    current: int | None = None
    pending: int | None = None
    moved_at: float | None = None  # when all that serve were seen to have the current one

    def version(self, number: int) -> Version | None:
        return next((one for one in self.all if one.number == number), None)

    @property
    def superseded(self) -> tuple[Version, ...]:
        """Were current once, and may still open something."""
        return tuple(
            one
            for one in self.all
            if one.number != self.current
            and one.current_since is not None
            and one.disabled_at is None
        )

    def age(self, now: float) -> float | None:
        """Seconds since its value changed; None when it has none."""
        one = self.version(self.current) if self.current is not None else None
        return None if one is None or one.current_since is None else now - one.current_since

    def counts(self, number: int) -> bool:
        """May something still run with this version?"""
        one = self.version(number)
        return one is not None and one.disabled_at is None
