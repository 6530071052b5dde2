"""What a team may ask for in the `backup` part of its file: what is backed up, where to, how long
it stays, and what a restored copy is held to."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from policy.part import Part
from policy.quantities import Seconds
from policy.secrets import read_name

OWN = "dafnck"  # service under which the state of dafnck itself is kept
OWN_TARGET = "state"
AGE_RECIPIENT = r"^age1[02-9ac-hj-np-z]{58}$"  # Bech32, https://age-encryption.org/v1

_VARIABLE = re.compile(r"env://[A-Za-z_][A-Za-z0-9_]*")
_PASSWORD = re.compile(r"postgres(ql)?://[^/@]*:[^/@]*@|[?&]password=", re.IGNORECASE)


def database(reference: Any) -> str:
    """'secret://shop/url', 'env://SHOP_DATABASE_URL', 'file:///run/secrets/shop-url', or a URL
    without a password.
    Raises ValueError, which does not repeat what was written: it may hold one."""
    if isinstance(reference, str):
        if _VARIABLE.fullmatch(reference) or reference.startswith("file:///"):
            return reference
        if reference.startswith("secret://"):
            read_name(reference)
            return reference
        if _PASSWORD.search(reference):
            raise ValueError(
                "holds a password, and this file is read by many; write secret://name/key (dafnck "
                "secret set), env://NAME (a variable of the worker that holds the URL) or "
                "file:///path of a file that holds it"
            )
        if reference.startswith(("postgresql://", "postgres://")):
            return reference
    raise ValueError(
        "is no database; write secret://name/key, env://NAME, file:///path or "
        "postgresql://user@host/name"
    )


def store(url: Any) -> str:
    """'s3://bucket/prefix?endpoint=…' or 'file:///folder'. Raises ValueError."""
    if isinstance(url, str) and re.fullmatch(r"(s3://[^/\s@]\S*|file:///\S+)", url):
        return url
    raise ValueError(f"{url!r} is no store; write s3://bucket/prefix?endpoint=… or file:///folder")


def bucket(url: Any) -> str:
    """'s3://bucket/prefix?endpoint=…'. Raises ValueError."""
    if isinstance(url, str) and re.fullmatch(r"s3://[^/\s@]\S*", url):
        return url
    raise ValueError(f"{url!r} is no bucket; write s3://bucket/prefix?endpoint=…")


StoreUrl = Annotated[
    str,
    BeforeValidator(store),
    WithJsonSchema({"type": "string", "pattern": "^(s3|file)://"}),
]


class Keep(Part):
    """Which backups stay: the newest of each of the last so many days, weeks, months, years that
    have one; and never fewer than `newest` good ones."""

    newest: int = Field(3, ge=1, le=1000, description="of the good ones always, however old")
    daily: int = Field(7, ge=0, le=3660, description="days")
    weekly: int = Field(4, ge=0, le=520, description="weeks (ISO: from Monday)")
    monthly: int = Field(12, ge=0, le=240, description="months")
    yearly: int = Field(0, ge=0, le=100, description="years")


class Expectation(Part):
    """One expectation of Great Expectations, as its own suites write it."""

    type: str = Field(
        pattern=r"^expect_[a-z0-9_]+$", description="expect_column_values_to_be_unique"
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="its arguments: {column: number}"
    )


class Fresh(Part):
    """The newest row must not be older than that when the backup is taken."""

    column: str = Field(min_length=1, description="a column with a time")
    within: Seconds = Field(gt=0, description="before the backup")


class Target(Part):
    """One thing that is backed up."""

    postgres: Annotated[str, BeforeValidator(database)] | None = Field(
        None,
        description="a PostgreSQL database: env://NAME, a variable of the worker that holds its "
        "URL; file:///path of a file that does; or a URL without a password",
    )
    method: Literal["logical", "physical"] = Field(
        "logical",
        description="of a database: what pg_dump writes of it; or the whole server it is on, by "
        "pg_basebackup, with the log that the server archives: back to any moment",
    )
    files: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="instead: directories and files, from this file's place"
    )
    bucket: (
        Annotated[
            str, BeforeValidator(bucket), WithJsonSchema({"type": "string", "pattern": "^s3://"})
        ]
        | None
    ) = Field(
        None, description="instead: the objects of a bucket, or of a prefix: s3://bucket/prefix"
    )
    keep: Keep = Field(default_factory=Keep, description="which backups stay")
    rpo: Seconds = Field(
        86400.0 * 1.25,
        gt=0,
        description="recovery point objective: a drill fails when the newest backup is older",
    )
    rto: Seconds = Field(
        3600.0,
        gt=0,
        description="recovery time objective: a drill fails when a restore takes longer",
    )
    drill: Literal["newest", "random"] = Field(
        "newest", description="which backup is restored in a drill"
    )
    smaller_by: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="a backup that is smaller than the median of the last ones by this share is "
        "suspicious",
    )
    expectations: dict[str, list[Expectation] | str] = Field(
        default_factory=dict,
        description="what Great Expectations holds a restored table to: table -> expectations, or "
        "the path of a suite in its own JSON",
    )
    fresh: dict[str, Fresh] = Field(
        default_factory=dict, description="table -> how old its newest row may be"
    )
    smoke: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="queries to a restored database; each must answer one true value",
    )

    @field_validator("files")
    @classmethod
    def _paths(cls, files: list[str] | None) -> list[str] | None:
        for path in files or []:
            if not path or "\0" in path or path.startswith("-"):
                raise ValueError(f"{path!r} is no path")
        return files

    @model_validator(mode="after")
    def _one_thing(self) -> "Target":
        if [self.postgres, self.files, self.bucket].count(None) != 2:
            raise ValueError("needs exactly one of postgres, files, bucket")
        if self.postgres is None:
            for key in ("expectations", "fresh", "smoke"):
                if getattr(self, key):
                    raise ValueError(f"{key}: is of databases; needs postgres")
            if self.is_physical:
                raise ValueError("method: physical is of a PostgreSQL server; needs postgres")
        return self

    @property
    def is_physical(self) -> bool:
        return self.method == "physical"


class Backup(Part):
    """What is backed up every night, and proved by restoring it."""

    to: StoreUrl | None = Field(
        None, description="where to; default: the object store of the stack"
    )
    copy_to: StoreUrl | None = Field(
        None, description="a second store, of another region or provider"
    )
    recipients: list[Annotated[str, Field(pattern=AGE_RECIPIENT)]] = Field(
        default_factory=list,
        description="age public keys that can decrypt it, besides the stack's own",
    )
    lock_days: int | None = Field(
        None,
        ge=1,
        le=3660,
        description="nobody can delete a backup so many days long (object lock of S3, COMPLIANCE)",
    )
    targets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")], Target] = Field(
        min_length=1, description="name -> what is backed up"
    )
