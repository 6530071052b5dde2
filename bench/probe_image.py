"""The probe as a container image FROM scratch, of this machine's own Python: nothing is pulled."""

import compileall
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.stage import PROBE, write_service

PORT = 8000
PACKAGES = ("uvicorn", "click", "h11", "websockets")
# What of the standard library no server imports, and is large.
LEFT_OUT = (
    *("site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "config-*"),
    *("_tkinter*", "_curses*", "readline*", "nis*", "__pycache__"),
)
USER = 10001
COMMAND = [
    *("/opt/python/bin/python3", "-m", "uvicorn", "--host", "0.0.0.0"),  # noqa: S104 - inside
    *("--port", str(PORT)),
    *("--no-access-log", "--ws", "websockets-sansio", "probe:app"),
]
# The libraries' own paths are those of this machine; one lies beside its Python.
DOCKERFILE = f"""FROM scratch
COPY root /
ENV LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
ARG WORDS=none
ENV WORDS=$WORDS
WORKDIR /srv
USER {USER}
CMD {json.dumps(COMMAND)}
"""


def image_source(folder: Path) -> Path:
    """Write what the image is built from. -> the folder"""
    root, standard = folder / "root", f"lib/python3.{sys.version_info.minor}"
    python = root / "opt" / "python"
    (python / "bin").mkdir(parents=True)
    program = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    shutil.copy2(program, python / "bin" / "python3")
    whole = Path(sys.base_prefix, standard)
    shutil.copytree(whole, python / standard, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in PACKAGES:
        package = python / standard / "site-packages" / name
        shutil.copytree(_package(name), package, ignore=shutil.ignore_patterns("__pycache__"))
    # Its root cannot be written, so nothing could be compiled there.
    compileall.compile_dir(python / standard, quiet=1, stripdir=root)
    loaded = [program, *(python / standard / "lib-dynload").glob("*.so")]
    for library in sorted(_libraries(loaded)):
        place = root / str(library).lstrip("/")
        if Path(sys.base_prefix) in library.parents:
            place = python / "lib" / library.name  # where no other user can enter a home
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, place)
    (root / "srv").mkdir()
    shutil.copy2(PROBE, root / "srv" / "probe.py")
    (root / "tmp").mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def _package(name: str) -> Path:
    from importlib.util import find_spec

    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is not installed; run: make .venv/.test")
    return Path(found.origin).parent


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the dynamic linker would load for these, by the names that they know it by."""
    out = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return {Path(found) for found in re.findall(r"(?:=> |^\t)(/\S+) \(0x", out, re.MULTILINE)}


def image_file(file: Path, name: str, parts: dict[str, Any], **build: Any) -> Path:
    """Write a service file of the image in the folder `image` beside it. -> its path."""
    document: dict[str, Any] = {
        "version": 1,
        "service": name,
        "platform": "docker",
        "build": {"source": "image", "image": build},
        "run": {"port": PORT, "health": "/healthz", "replicas": 2},
    }
    return write_service(file, document, parts)
