"""Do the replicas of a release run what was built? Looked at from outside, as the kernel says."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from blocks import tree
from blocks.container import seen
from blocks.container_release import ContainerReleases
from blocks.images import Images, read_image
from blocks.stack import Stack
from policy.errors import NotAllowed, Unreachable
from policy.provenance import Link
from policy.release import Release

MOST_TOLD = 3


def inspect(stack: Stack, release: Release) -> Iterator[Link]:
    """What its replicas are made from, then each of them."""
    return (
        _containers(stack, release) if release.platform == "docker" else _processes(stack, release)
    )


def _containers(stack: Stack, release: Release) -> Iterator[Link]:
    image = read_image(stack.artifacts / release.artifact)
    if image is None:
        yield Link("image", False, "its artifact names no image")
        return
    pinned = read_image(stack.releases / release.id)
    if pinned is not None and pinned != image:
        yield Link("image", False, f"it runs {pinned.reference}, its artifact is {image.reference}")
        return
    try:
        now = Images(stack.scratch).moved(image)
        words = f"{image.tag} is {now} now" if now else f"{image.reference}, as {image.tag}"
        yield Link("image", not now, words)
    except (Unreachable, NotAllowed) as error:
        yield Link("image", None, str(error).splitlines()[0])
    try:
        for number in range(ContainerReleases(stack).wanted(release.id)):
            found = seen(f"{release.id}.{number}")
            runs = found is not None and found.status == "running"
            ok = found.image == image.id if found and runs else None
            words = "is not there" if found is None else f"{found.status}, made from {found.image}"
            yield Link(f"replica-{number}", ok, words)
    except (Unreachable, NotAllowed) as error:
        yield Link("replicas", None, str(error).splitlines()[0])


def _processes(stack: Stack, release: Release) -> Iterator[Link]:
    folder = stack.releases / release.id
    if not (folder / "app").is_dir():
        yield Link("replicas", None, "it was never started here, or was removed since")
        return
    changed, added = _changes(stack, release)
    told = changed or added
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    words = ", ".join(told[:MOST_TOLD]) + more
    as_built = "the artifact's and its configuration's" + (f"; {words}" if words else "")
    yield Link("files", not changed, words if changed else as_built)
    specs = sorted(folder.glob("replica-*.json"))
    for spec in specs:
        yield _replica(spec, folder / "app")
    if not specs:
        yield Link("replicas", None, "none is wanted")


def _changes(stack: Stack, release: Release) -> tuple[list[str], list[str]]:
    """-> (what is not as it was laid out, what the application added since)"""
    artifact = tree.listing(stack.artifacts / release.artifact, ("app",))
    lines = (line.split("  ", 1) for line in artifact.splitlines())
    wanted = {name: what for what, name in lines}
    for name, content in release.files.items():
        wanted[tree.quoted(f"app/{name}")] = f"file {hashlib.sha256(content).hexdigest()}"
    expected = "".join(f"{what}  {name}\n" for name, what in wanted.items())
    now = tree.listing(stack.releases / release.id, ("app",))
    words = tree.differences(expected, now)
    added = [line for line in words if line.endswith("was added")]
    return [line for line in words if line not in added], added


def _replica(spec: Path, app: Path) -> Link:
    name, content = spec.stem, json.loads(spec.read_text())
    try:
        pid, started, _ = spec.with_suffix(".pid").read_text().split()
        cwd = Path(os.readlink(f"/proc/{pid}/cwd"))
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError):
        return Link(name, None, "does not run")
    if began != started:
        return Link(name, None, "does not run")
    if cwd.resolve() != app.resolve():
        return Link(name, False, f"pid {pid} runs in {cwd}, not in {app}")
    return Link(name, True, f"pid {pid} on port {content['port']} runs in it")
