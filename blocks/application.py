"""Makes an application of its source: files, and an environment for those of Python."""

import json
import os
import shlex
import sys
from pathlib import Path

from blocks.source import Source, copy_files
from blocks.steps import BuildFailed, Steps
from policy.part import Command
from policy.service_file import PythonBuild


def by_command(command: Command, work: Path, target: Path, steps: Steps) -> None:
    """`work`: a copy of the source, to run it in."""
    out = str(target / "app")
    if isinstance(command, str):
        steps.run(["/bin/sh", "-c", command.replace("{out}", shlex.quote(out))], work)
    else:
        steps.run([word.replace("{out}", out) for word in command], work)
    if not any((target / "app").iterdir()):
        raise BuildFailed(
            "the build command left {out} empty; nothing was released, what served serves"
        )


def of_python(python: PythonBuild, source: Source, work: Path, target: Path, steps: Steps) -> None:
    """`work`: a copy of the source, to install from: what tools leave there is no part of it."""
    from uv import find_uv_bin

    copy_files(work, source.files, target / "app")
    uv, venv = os.fsdecode(find_uv_bin()), target / "venv"
    version = python.version or sys.executable
    steps.run([uv, "venv", "--relocatable", "--python", version, str(venv)], work)
    install = [uv, "pip", "install", "--compile-bytecode", "--link-mode", "copy"]
    install += ["--python", str(venv / "bin" / "python")]
    wanted = ["--requirement", python.requirements] if python.requirements else []
    if python.project is None:
        steps.run([*install, *wanted], work)
        return
    if (source.folder / ".git").is_dir() and not (work / ".git").exists():
        # Projects ask git for their version; the files are those of the copy.
        (work / ".git").write_text(f"gitdir: {source.folder / '.git'}\n")
    project = (work / python.project).resolve()
    if (project / "uv.lock").exists():
        locked = target / "locked.txt"
        export = [uv, "export", "--quiet", "--frozen", "--no-dev", "--no-editable"]
        export += ["--no-emit-project", "--project", str(project), "--output-file", str(locked)]
        steps.run(export, work)
        steps.run([*install, *wanted, "--requirement", str(locked)], work)
        locked.unlink()
        steps.run([*install, "--no-deps", str(project)], work)  # all is there, as the lock says
        return
    steps.run([*install, *wanted, str(project)], work)


def check_whole(target: Path) -> None:
    """An artifact holds all that it is made of: what lies elsewhere could be changed unseen."""
    for part in ("app", "venv"):
        if (target / part).is_symlink():
            raise BuildFailed("the build made {out} a link; nothing was released")
    for path in (target / "app").rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(target.resolve()):
            raise BuildFailed(
                f"the build left a link that leads out of the artifact, "
                f"{path.relative_to(target)} to {os.readlink(path)}; copy what it means. Nothing "
                "was released, what served serves"
            )
    for told in (target / "venv").glob("lib/python*/site-packages/*.dist-info/direct_url.json"):
        if json.loads(told.read_text()).get("dir_info", {}).get("editable"):
            raise BuildFailed(
                f"{told.parent.name.partition('-')[0]} is installed in editable mode, so that it "
                "is not part of the artifact; name it without -e. Nothing was released, what "
                "served serves"
            )
