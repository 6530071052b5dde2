"""What an artifact is built from: files of a folder, and the digest that names what comes of it."""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from blocks.checkouts import git
from policy.errors import BadInput, Refused
from policy.service_file import Build

LEFT_OUT = {".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache"}


class Source:
    """The files of a build as they are now; a copy is taken to build from."""

    def __init__(self, build: Build, place: Path) -> None:
        """`place`: of the service file, or a checkout. Raises BadInput."""
        self.folder = (place / build.source).resolve()
        if not self.folder.is_dir():
            raise BadInput(f"build: source: there is no directory {self.folder}; nothing was built")
        self._build = build
        self.files = list(_source_files(self.folder))
        _check_inside(build, self.folder, self.files)
        self.digest = _digest(build, self.folder, self.files)

    def copy(self, target: Path) -> None:
        """All files. Raises Refused when they were changed since: what somebody changes meanwhile
        goes into nothing."""
        copy_files(self.folder, self.files, target)
        if _digest(self._build, target, self.files) != self.digest:
            raise Refused(
                f"the source {self.folder} was changed while it was copied; nothing was started, "
                "what served serves. Release again"
            )


def _check_inside(build: Build, source: Path, files: list[Path]) -> None:
    """What an artifact is made from must be among what names it."""
    if build.image is not None and build.image.reference is None:
        dockerfile = Path(os.path.normpath(Path(build.image.context, build.image.dockerfile)))
        if dockerfile not in files:
            raise BadInput(
                f"build.image.dockerfile: {dockerfile} is not part of the source {source}: there "
                "is no such file, or git ignores it; nothing was built"
            )
    if build.python is None:
        return
    wanted = build.python.requirements
    if wanted and Path(os.path.normpath(wanted)) not in files:
        raise BadInput(
            f"build.python.requirements: {wanted} is not part of the source {source}: there is no "
            "such file, it is outside, or git ignores it; nothing was built"
        )
    project = build.python.project
    if project and not (source / project).resolve().is_relative_to(source):
        raise BadInput(f"build.python.project: {project} is outside of {source}; nothing was built")


def _source_files(source: Path) -> Iterator[Path]:
    """What git tracks or would track, in submodules too; without git everything but caches.
    Relative, sorted."""
    listed = git(source, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
        for module in [name for name in names if (source / name / ".git").exists()]:
            names |= {module / name for name in _source_files(source / module)}
    else:
        names = set()
        for folder, folders, here in os.walk(source):
            folders[:] = set(folders) - LEFT_OUT
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            names |= {(Path(folder) / name).relative_to(source) for name in [*here, *links]}
    # Files and links alone: to open a pipe or a socket is to wait for ever.
    yield from sorted(n for n in names if (source / n).is_symlink() or (source / n).is_file())


def _digest(build: Build, source: Path, files: list[Path]) -> str:
    """SHA-256 over the way of building, the platform and every file's path, mode and content."""
    total = hashlib.sha256()
    way = build.model_dump(mode="json", exclude={"within", "source", "git"})
    interpreter = sys.version_info[:2] if build.python else None
    total.update(json.dumps([way, platform.machine(), interpreter], sort_keys=True).encode())
    for name in files:
        path = source / name
        if path.is_symlink():
            kind, content = b"link", os.fsencode(os.readlink(path))
        else:
            kind = b"exec" if os.access(path, os.X_OK) else b"file"
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        total.update(b"\0".join([os.fsencode(name), kind, content, b""]))
    return total.hexdigest()[:32]


def copy_files(source: Path, files: Sequence[Path], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name, follow_symlinks=False)
