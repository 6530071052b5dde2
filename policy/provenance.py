"""What is said of an artifact under signature: what it was made from, how, by whom, and what it is.

An in-toto statement (v1) with a SLSA provenance predicate (https://slsa.dev/spec/v1.0/provenance).
Its subjects name the content: the list of all files of the artifact, and the image if it is one.
Its byproducts name what was found out about it (the SBOM).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:dafnck:build:1"
FILES = "files.txt"  # of the artifact: a line each, kind, SHA-256 and path
SBOM = "sbom.json"  # CycloneDX; a scanner would take "sbom.cdx.json" for a part of what it scans


@dataclass(frozen=True)
class Revision:
    """Where a source came from. `uri` is empty outside of git, or without a remote."""

    uri: str = ""
    commit: str = ""
    authored_at: float | None = None  # seconds since the epoch
    author: str = ""
    dirty: bool = False  # the folder holds something else than the commit


@dataclass(frozen=True)
class Made:
    """How an artifact came about, as its builder saw it."""

    artifact: str  # its name: digest of what went in
    build: Mapping[str, Any]  # section of the service file
    revision: Revision
    started_at: float
    finished_at: float
    builder: str  # the machine
    invocation: str = ""  # id of the flow run
    versions: Mapping[str, str] = field(default_factory=dict)  # of dafnck, of the interpreter


@dataclass(frozen=True)
class Link:
    """Of the chain from a commit to the replicas that run."""

    name: str
    ok: bool | None  # None: it cannot be told
    words: str


class _Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class Resource(_Camel):
    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}


class Definition(_Camel):
    build_type: Literal["urn:dafnck:build:1"]
    external_parameters: dict[str, Any]
    resolved_dependencies: list[Resource] = []


class Builder(_Camel):
    id: str
    version: dict[str, str] = {}


class Metadata(_Camel):
    invocation_id: str = ""
    started_on: datetime
    finished_on: datetime


class Details(_Camel):
    builder: Builder
    metadata: Metadata
    byproducts: list[Resource] = []


class Predicate(_Camel):
    build_definition: Definition
    run_details: Details


class Statement(_Camel):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Resource]
    predicate_type: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

    @property
    def artifact(self) -> str:
        return str(self.predicate.build_definition.external_parameters.get("artifact", ""))

    @property
    def source(self) -> Resource:
        """Of git; empty for a source that is in none."""
        found = self.predicate.build_definition.resolved_dependencies
        return next((one for one in found if "gitCommit" in one.digest), Resource())

    def sha256_of(self, name: str) -> str | None:
        """Of a subject or byproduct."""
        every = [*self.subject, *self.predicate.run_details.byproducts]
        return next((one.digest.get("sha256") for one in every if one.name == name), None)


def statement(
    made: Made, subjects: Sequence[tuple[str, str]], byproducts: Mapping[str, str]
) -> dict[str, Any]:
    """`subjects` and `byproducts`: name and SHA-256 (hex) of each."""
    revision = made.revision
    dependencies = []
    if revision.commit:
        annotations = {
            "author": revision.author,
            "authoredAt": None if revision.authored_at is None else _time(revision.authored_at),
            "dirty": revision.dirty,
        }
        dependencies.append(
            Resource(
                name="source",
                uri=f"git+{revision.uri}" if revision.uri else "",
                digest={"gitCommit": revision.commit},
                annotations=annotations,
            )
        )
    builder = Builder(id=f"urn:dafnck:worker:{made.builder}", version=dict(made.versions))
    whole = Statement(
        kind=STATEMENT,
        subject=[Resource(name=name, digest={"sha256": sha}) for name, sha in subjects],
        predicate_type=PREDICATE,
        predicate=Predicate(
            build_definition=Definition(
                build_type=BUILD_TYPE,
                external_parameters={"artifact": made.artifact, "build": dict(made.build)},
                resolved_dependencies=dependencies,
            ),
            run_details=Details(
                builder=builder,
                metadata=Metadata(
                    invocation_id=made.invocation,
                    started_on=_time(made.started_at),
                    finished_on=_time(made.finished_at),
                ),
                byproducts=[
                    Resource(name=name, digest={"sha256": sha}) for name, sha in byproducts.items()
                ],
            ),
        ),
    )
    return whole.model_dump(mode="json", by_alias=True)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
