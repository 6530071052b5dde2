"""The Docker engine: one client a process, the `docker` command, and refusals in words of ours."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from policy.errors import DafnckError, NotAllowed, NotApplied, Unreachable

HOST = "unix:///var/run/docker.sock"  # where DOCKER_HOST names no other
BUILDKIT_API = (1, 39)  # engines from there on build with BuildKit

_AWAY = re.compile(
    r"connection refused|no such host|i/o timeout|timeout exceeded|network is unreachable|"
    r"connection reset|no route to host|temporary failure|50[234] |: EOF"
)
_FORBIDDEN = re.compile(r"unauthorized|access denied|authentication required|no basic auth|denied:")
_DEAD = re.compile(r"cannot connect to the docker daemon|error during connect|is the docker daemon")


def engine_url() -> str:
    return os.environ.get("DOCKER_HOST") or HOST


@cache
def _client(url: str) -> Any:
    """One for ever: it keeps connections that somebody would have to close."""
    from docker import APIClient  # type: ignore[import-untyped]
    from docker.utils import kwargs_from_env  # type: ignore[import-untyped]

    settings = kwargs_from_env() | {"base_url": url}
    return APIClient(version="auto", timeout=60, **settings)


def engine() -> Any:
    """The engine's API. Raises Unreachable, or NotAllowed when its socket is not for this user."""
    url = engine_url()
    if url.startswith("unix://"):
        _reach(url.removeprefix("unix://"))
    with asking("answer"):
        return _client(url)


def _reach(path: str) -> None:
    """Asked first, for a clear answer: the client leaves a socket open when it finds nobody."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(10)
        try:
            probe.connect(path)
        except OSError as error:
            raise _silent(str(error)) from None


def answers() -> str:
    """Why there is no engine; empty when there is one."""
    try:
        with asking("answer"):
            engine().ping()
    except DafnckError as error:
        return str(error)
    return ""


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Whatever the client raises in the body becomes an error of ours. `what`: "start shop-1.0"."""
    from requests.exceptions import RequestException

    from blocks.docker_errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        said = str(error.explanation or error).strip()
        raise refusal(what, said) or NotApplied(
            f"the Docker engine refused to {what}: {said}; what serves still serves"
        ) from error
    except (DockerException, RequestException) as error:
        raise _silent(str(error)) from error


def _silent(said: str) -> DafnckError:
    if "PermissionError" in said or "permission denied" in said.lower():
        return NotAllowed(
            f"the Docker engine at {engine_url()} is not for this user; nothing was changed. Add "
            "it to the group docker, or set DOCKER_HOST"
        )
    return Unreachable(
        f"the Docker engine at {engine_url()} does not answer ({said}); what runs keeps running, "
        "no container can be started or stopped. Start it: systemctl start docker"
    )


def refusal(what: str, said: str) -> DafnckError | None:
    """What the engine, its command or a registry said, by what can be done about it; None when it
    is about none of these."""
    low, last = said.lower(), said.strip().splitlines()[-1:] or [""]
    if _DEAD.search(low):
        return _silent(last[0].strip(" |"))
    if "no space left on device" in low:
        return NotApplied(
            f"the disk of the Docker engine is full: it could not {what}; what serves still "
            "serves. Make room: docker system df, docker builder prune"
        )
    if _FORBIDDEN.search(low):
        return NotAllowed(
            f"the registry refuses us: could not {what}; what serves still serves. Is the name "
            f"right, and is there a docker login for it?\n{said}"
        )
    if _AWAY.search(low):
        return Unreachable(
            f"the registry does not answer: could not {what}; what serves still serves. Try again "
            f"when it is back\n{said}"
        )
    return None


# -- the command ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DockerCommand:
    """`docker`, for what the API alone cannot do: BuildKit and its secrets."""

    program: str
    buildkit: str  # "buildx", "built in", or empty

    def argv(self, *words: str) -> list[str]:
        return [self.program, "--host", engine_url(), *words]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DOCKER_BUILDKIT": "1" if self.buildkit else "0",
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        }


@cache
def docker_command() -> DockerCommand:
    """The first of the PATH that can use BuildKit, else the first. Raises NotApplied when there is
    none."""
    found = None
    for folder in os.get_exec_path():
        if program := shutil.which("docker", path=folder):
            command = DockerCommand(program, _buildkit(program))
            if command.buildkit:
                return command
            found = found or command
    if found is None:
        raise NotApplied("there is no docker command; nothing was built. Install Docker's client")
    return found


def _buildkit(program: str) -> str:
    if _says(program, "buildx", "version") is not None:
        return "buildx"
    # From 23 on the command needs the plugin; before, BuildKit was a part of it.
    version = re.search(r"version (\d+)\.", _says(program, "--version") or "")
    with asking("tell its version"):
        api = tuple(int(part) for part in engine().version()["ApiVersion"].split("."))
    old = version is not None and int(version[1]) < 23
    return "built in" if old and api >= BUILDKIT_API else ""


def _says(program: str, *words: str) -> str | None:
    """-> what it prints; None when it fails."""
    try:
        done = subprocess.run(
            [program, *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
