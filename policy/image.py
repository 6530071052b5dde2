"""Container images: what a team may ask of one, and what is known of one that was built."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from policy.part import Part

ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
# A name and what comes after a colon in it: a port of the registry, never a tag.
_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"([A-Za-z0-9.-]+(:[0-9]+)?/)?{_NAME}(/{_NAME})*"
REPOSITORY = rf"^{_REPOSITORY}$"
REFERENCE = rf"^{_REPOSITORY}@sha256:[0-9a-f]{{64}}$"


class ImageBuild(Part):
    """A container image, from a Dockerfile. It is run by its digest, never by a tag."""

    context: str = Field(
        ".", description="directory that the Dockerfile copies from, in the source"
    )
    dockerfile: str = Field("Dockerfile", description="the Dockerfile, in the context")
    target: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="stage of a multi-stage file"
    )
    args: dict[ArgumentName, str] = Field(
        default_factory=dict,
        description="build arguments; everybody who has the image can read them: no secrets",
    )
    secrets: dict[SecretId, str] = Field(
        default_factory=dict,
        description="id: a file beside this file, or $NAME of the environment; mounted while "
        "`RUN --mount=type=secret,id=…` runs, never part of the image (needs BuildKit)",
    )
    push: str | None = Field(
        None,
        pattern=REPOSITORY,
        description="repository that it is pushed to, without a tag: registry.example.org/shop",
    )

    reference: str | None = Field(
        None,
        pattern=REFERENCE,
        description="instead of all these: an image that somebody else built and pushed, by its "
        "digest; `--image` of release and trigger names another",
    )

    @model_validator(mode="after")
    def _built_or_named(self) -> "ImageBuild":
        if self.reference is not None and (more := self.model_fields_set - {"reference"}):
            raise ValueError(f"{sorted(more)[0]}: nothing is built: the image is a reference")
        return self

    @field_validator("context", "dockerfile")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} must stay inside the source")
        return path

    @field_validator("args", mode="before")
    @classmethod
    def _plain_values(cls, args: object) -> object:
        if not isinstance(args, dict):
            return args
        for name, value in args.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError(f"{name}: write the value as text, in quotes")
            if "\0" in str(value):
                raise ValueError(f"{name}: holds a NUL character")
        return {name: str(value) for name, value in args.items()}

    @field_validator("secrets")
    @classmethod
    def _named(cls, secrets: dict[str, str]) -> dict[str, str]:
        for name, place in secrets.items():
            if not place or place == "$" or "\0" in place:
                raise ValueError(f"{name}: name a file, or a variable as $NAME")
        return secrets


@dataclass(frozen=True)
class Image:
    """An image that was built, pinned: whatever its tags say later, this is what is meant."""

    reference: str  # repository@sha256:…, or its id when it was pushed nowhere
    id: str  # sha256:…, of its configuration, by which the engine knows it
    digest: str  # sha256:…, by which the registry knows it; its id when it was pushed nowhere
    repository: str  # empty when it was pushed nowhere
    tag: str  # what it was tagged as, for people; nothing is run by it
    size_bytes: int
    workdir: str = "/"
    built: bool = True  # here; False: named by its digest, and nothing of it is ours to remove


def named(reference: str) -> Image:
    """An image that somebody else built."""
    repository, _, digest = reference.partition("@")
    return Image(reference, digest, digest, repository, reference, 0, built=False)
