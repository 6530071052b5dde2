"""Container images: built from a Dockerfile, pushed, and pinned by digest from there on.

A tag is given for people, and so that nobody's clean-up takes the image for rubbish; nothing is
ever run by it.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocks.docker_engine import asking, docker_command, engine, refusal
from blocks.files import scratch, write_atomically
from blocks.steps import BuildFailed, Steps
from policy.errors import BadInput, DafnckError, NotApplied, Refused
from policy.image import Image, ImageBuild

FILE = "image.json"
# How builders say that the image of a FROM is not there: of old, and BuildKit by its versions.
_NO_BASE = re.compile(
    r"manifest for (?P<a>\S+) not found|pull access denied for (?P<b>[^,\s]+)|"
    r"ERROR: (?P<c>\S+): not found|"
    r"(?P<d>\S+): failed to resolve source metadata for \S+ \S+: not found|manifest unknown"
)
_ASKED = re.compile(r"load metadata for (\S+)")


class Images:
    def __init__(self, scratch_place: Path) -> None:
        self._scratch = scratch_place  # for secrets from the environment, while it is built

    def build(
        self,
        wanted: ImageBuild,
        source: Path,
        folder: Path,
        name: str,
        tag: str,
        labels: Mapping[str, str],
        steps: Steps,
    ) -> Image:
        """Build it from `source`, push it where that is asked for. `folder`: where its secrets are
        named from. `name`: what it is called on this machine. Raises BuildFailed with the last
        lines, Refused where BuildKit is needed and missing, Unreachable, NotAllowed, NotApplied."""
        docker = docker_command()
        if wanted.secrets and not docker.buildkit:
            raise Refused(
                f"build.image.secrets: needs BuildKit, and {docker.program} cannot use it; nothing "
                "was built. Install Docker's buildx plugin"
            )
        with scratch(self._scratch, "image") as here, _secrets(wanted, folder, here) as secrets:
            iid = here / "iid"
            argv = (
                docker.argv("buildx", "build", "--load")
                if docker.buildkit == "buildx"
                else (docker.argv("build"))
            )
            argv += ["--progress", "plain"] if docker.buildkit else ["--force-rm"]
            argv += ["--iidfile", str(iid), "--tag", f"{name}:{tag}"]
            argv += ["--file", str(source / wanted.context / wanted.dockerfile)]
            argv += ["--target", wanted.target] if wanted.target else []
            for key, value in wanted.args.items():
                argv += ["--build-arg", f"{key}={value}"]
            for key, value in labels.items():
                argv += ["--label", f"{key}={value}"]
            for key, file in secrets.items():
                argv += ["--secret", f"id={key},src={file}"]
            argv.append(str(source / wanted.context))
            with _build_errors(), steps.hiding(_values(secrets.values())):
                steps.run(argv, source, docker.environment)
            image_id = iid.read_text().strip()
        with asking(f"look at {image_id}"):
            made = engine().inspect_image(image_id)
        size_bytes, workdir = int(made["Size"]), made["Config"].get("WorkingDir") or "/"
        tagged = f"{name}:{tag}"
        if not wanted.push:
            return Image(image_id, image_id, image_id, "", tagged, size_bytes, workdir)
        tagged = f"{wanted.push}:{tag}"
        digest = self._push(image_id, wanted.push, tag, steps)
        reference = f"{wanted.push}@{digest}"
        return Image(reference, image_id, digest, wanted.push, tagged, size_bytes, workdir)

    def _push(self, image_id: str, repository: str, tag: str, steps: Steps) -> str:
        """-> the digest under which the registry holds it, asked there."""
        what, tagged = f"push to {repository}", f"{repository}:{tag}"
        with asking(what):
            engine().tag(image_id, repository, tag)
        try:
            steps.run(docker_command().argv("push", tagged), Path("/"))
        except BuildFailed as error:
            raise refusal(what, str(error)) or error from error
        held = self.digest_now(tagged)
        with asking(f"look at {tagged}"):
            ours = engine().inspect_image(image_id)["RepoDigests"]
        if f"{repository}@{held}" not in ours:
            raise NotApplied(
                f"{tagged} in the registry is {held}, which is not what was pushed there; nothing "
                "was released. Does somebody else push to it?"
            )
        return held

    def digest_now(self, name: str) -> str:
        """What the registry holds now under repository:tag or repository@digest; of a name without
        a registry, or of an id, what the engine holds. Raises NotApplied when there is no such
        image, Unreachable, NotAllowed."""
        from blocks.docker_errors import NotFound

        with asking(f"ask for {name}"):
            try:
                if _is_local(name):
                    return str(engine().inspect_image(name)["Id"])
                return str(engine().inspect_distribution(name)["Descriptor"]["digest"])
            except NotFound as error:
                raise NotApplied(f"there is no image {name}; nothing was changed") from error

    def moved(self, image: Image) -> str:
        """What its tag names now, when that is another image; empty when it is still the one that
        was built, or the tag is gone. Raises Unreachable, NotAllowed."""
        try:
            now = self.digest_now(image.tag)
        except NotApplied:
            return ""
        return "" if now == image.digest else now

    def held(self, image: Image) -> str:
        """The name by which the engine has exactly this image; empty when it has not."""
        from blocks.docker_errors import NotFound

        with asking(f"look for {image.reference}"):
            for name in (image.reference, image.id):
                try:
                    if engine().inspect_image(name):
                        return name
                except NotFound:
                    continue
        return ""

    def have(self, image: Image) -> bool:
        """See to it that the engine has it: pulled by digest when it was pushed. -> False when it
        is nowhere any more. Raises Unreachable, NotAllowed."""
        if self.held(image):
            return True
        if not image.repository:
            return False
        what = f"pull {image.reference}"
        with asking(what):
            for line in engine().pull(image.reference, stream=True, decode=True):
                if said := line.get("error"):
                    if "not found" in said.lower() or "manifest unknown" in said.lower():
                        return False
                    raise refusal(what, said) or NotApplied(f"could not {what}: {said}")
        return bool(self.held(image))

    def save(self, image: Image, path: Path) -> None:
        """As an archive, as `docker save` writes it."""
        with asking(f"save {image.reference}"), path.open("wb") as file:
            for chunk in engine().get_image(self.held(image) or image.reference):
                file.write(chunk)

    def remove(self, image: Image, name: str) -> bool:
        """Take our names off it, and it off the engine when nobody else has one for it. -> False
        when a container uses it: it stays. What was pushed stays in the registry."""
        from blocks.docker_errors import APIError, NotFound

        with asking(f"remove {image.reference}"):
            for each in dict.fromkeys([image.tag, name, image.id]):
                try:
                    if each == image.id and engine().inspect_image(each)["RepoTags"]:
                        return True  # by another name it is somebody else's
                    engine().remove_image(each)
                except NotFound:
                    continue
                except APIError as error:
                    if error.status_code == 409:
                        return False
                    raise
        return True

    def remove_tags(self, names: Iterable[str]) -> None:
        """Of an image that nothing else is known of."""
        from blocks.docker_errors import NotFound

        for tagged in names:
            with asking(f"remove {tagged}"), suppress(NotFound):
                engine().remove_image(tagged)


def write_image(folder: Path, image: Image) -> None:
    write_atomically(folder / FILE, json.dumps(asdict(image), indent=1) + "\n")


def read_image(folder: Path) -> Image | None:
    """The image of an artifact or a release; None when it is made of files."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return None
    return Image(**content)


def _is_local(name: str) -> bool:
    """The part before the first slash names a registry when it could be a host."""
    first, slash, _ = name.partition("/")
    return not slash or not ("." in first or ":" in first or first == "localhost")


@contextmanager
def _secrets(wanted: ImageBuild, folder: Path, here: Path) -> Iterator[dict[str, Path]]:
    """-> the file of each secret; what comes from the environment is in one that is gone after."""
    files = {}
    for key, place in wanted.secrets.items():
        if place.startswith("$"):
            value = os.environ.get(place[1:])
            if value is None:
                raise BadInput(
                    f"build.image.secrets: {key}: {place} is not set in the environment of this "
                    "process; nothing was built"
                )
            files[key] = here / key
            files[key].touch(0o600)
            files[key].write_text(value)
        else:
            files[key] = (folder / Path(place).expanduser()).resolve()
            if not files[key].is_file():
                raise BadInput(
                    f"build.image.secrets: {key}: there is no file {files[key]}; nothing was built"
                )
    yield files


def _values(files: Any) -> list[str]:
    """What a log must not show: each secret, and each line of one, as that comes out by lines."""
    values = []
    for file in files:
        text = file.read_text(errors="replace").strip()
        values += [text, *(line.strip() for line in text.splitlines() if len(line.strip()) > 3)]
    return sorted({value for value in values if value}, key=len, reverse=True)


@contextmanager
def _build_errors() -> Iterator[None]:
    try:
        yield
    except BuildFailed as error:
        said = str(error)
        raise _no_base(said) or refusal("build the image", said) or error from error


def _no_base(said: str) -> DafnckError | None:
    """Only what went wrong with the image that it builds on."""
    missing = _NO_BASE.search(said)
    if missing is None:
        return None
    asked = _ASKED.search(said)
    name = next((named for named in missing.groups() if named), asked[1] if asked else "")
    return BuildFailed(
        f"the base image {name} is not found, or not for us to see; nothing was released, what "
        f"served still serves\n{said.partition(chr(10))[2]}"
    )
