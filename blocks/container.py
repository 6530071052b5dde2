"""One replica as a container: what it is made of, and what the engine says of it.

It gets nothing of our environment, writes nowhere but to memory, and has no privileges.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from blocks.docker_engine import asking, engine
from policy.errors import NotApplied
from policy.part import Command
from policy.release import Release
from policy.service_file import Health

RELEASE, REPLICA, STACK = "dafnck.release", "dafnck.replica", "dafnck.stack"
DEFAULT_PORT = 8080  # inside, of a command that takes {port}
MEMORY_BYTES = 2**30
PROCESSES = 512
WRITABLE = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
LOG = {"max-size": "10m", "max-file": "3"}
SECOND = 10**9  # the engine counts in nanoseconds


@dataclass(frozen=True)
class Seen:
    """A container, as the engine describes it."""

    name: str
    labels: dict[str, str]
    image: str  # id of what it was made from
    status: str  # created running paused restarting removing exited dead
    port: int | None  # on loopback
    restarts: int
    started_at: float  # seconds since the epoch, as the next
    finished_at: float  # when it ended last, of one that runs too
    exit_code: int
    trouble: str  # of the engine itself, or out of memory
    health_trouble: str  # of a health check that the engine makes

    @property
    def ended(self) -> bool:
        return self.status in ("created", "restarting", "exited", "dead")


@dataclass(frozen=True)
class Logged:
    name: str
    at: str  # RFC 3339, nine digits: comes in order as text
    text: str


def container_port(release: Release) -> int:
    return release.run.port or DEFAULT_PORT


def settings(
    client: Any,
    release: Release,
    number: int,
    image: str,
    port: int,
    files: Path,
    mark: str,
    secrets: dict[str, str],
) -> dict[str, Any]:
    """What the engine is asked to create. `files`: the folder of its configuration files.
    `secrets`: variable -> value; whoever may ask the engine can read them, and is root."""
    run, inside = release.run, container_port(release)
    made_of = client.inspect_image(image)["Config"]
    workdir = Path(made_of.get("WorkingDir") or "/")
    limits = run.limits
    memory = limits.memory or MEMORY_BYTES
    environment = {
        "PORT": str(inside),
        "DAFNCK_RELEASE": release.id,
        "DAFNCK_VERSION": release.version,
        **{name: value.replace("{port}", str(inside)) for name, value in run.env.items()},
        **secrets,
    }
    mounts = [
        {
            "Type": "bind",
            "Source": str(files / target),
            "Target": str(workdir / target),
            "ReadOnly": True,
        }
        for target in release.files
    ]
    ulimits = [{"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files}]
    made = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {
            RELEASE: release.id,
            REPLICA: str(number),
            STACK: mark,
            "dafnck.service": release.service,
            "dafnck.environment": release.environment,
            "dafnck.version": release.version,
        },
        "ExposedPorts": {f"{inside}/tcp": {}},
        "Healthcheck": _healthcheck(run.health, inside, bool(made_of.get("Healthcheck"))),
        "HostConfig": {
            "PortBindings": {f"{inside}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
            "Init": True,  # hands signals on, and buries orphans
            "RestartPolicy": {"Name": "unless-stopped"},
            "ReadonlyRootfs": True,
            "Tmpfs": dict.fromkeys(["/tmp", *run.writable], WRITABLE),  # noqa: S108 - inside
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": ["ALL"],
            "PidsLimit": limits.processes or PROCESSES,
            "Memory": memory,
            "MemorySwap": memory,  # none beyond it
            "Ulimits": ulimits if limits.open_files else [],
            "LogConfig": {"Type": "json-file", "Config": LOG},
            "Mounts": mounts,
        },
    }
    if run.command is not None:
        # Instead of an entrypoint too: the command is a whole one, as on the local platform.
        words = _words(run.command, inside)
        made |= {"Entrypoint": words[:1], "Cmd": words[1:]}
    return made


def _healthcheck(health: Health, port: int, has_own: bool) -> dict[str, Any]:
    """Commands are run by the engine, which ends them in time too. The image's own check is not
    run when another one was asked for."""
    if health.healthcheck == "image" and not has_own:
        raise NotApplied(
            "run.health.healthcheck: the image has no HEALTHCHECK; nothing was started, what "
            "serves still serves"
        )
    if health.path is not None:
        return {"Test": ["NONE"]}
    test = ["CMD", *_words(health.command, port)] if health.command is not None else []
    return {
        "Test": test,  # empty: what the image says
        "Interval": int(max(1.0, health.interval) * SECOND),
        "Timeout": int(max(0.001, health.timeout) * SECOND),
        "Retries": 1,
    }


def seen(name: str) -> Seen | None:
    """None when there is no container of that name."""
    from blocks.docker_errors import NotFound

    with asking(f"look at {name}"):
        try:
            said = engine().inspect_container(name)
        except NotFound:
            return None
    state, made = said["State"], said["HostConfig"]
    bound = [b for bindings in (made["PortBindings"] or {}).values() for b in bindings or []]
    killed = "out of memory (run.limits.memory)" if state.get("OOMKilled") else ""
    return Seen(
        name,
        said["Config"]["Labels"] or {},
        said["Image"],
        state["Status"],
        int(bound[0]["HostPort"] or 0) if bound else None,
        said["RestartCount"],
        _seconds(_in_order(state["StartedAt"])),
        _seconds(_in_order(state["FinishedAt"])),
        state["ExitCode"],
        killed or state["Error"],
        _health_trouble(state.get("Health")),
    )


def _health_trouble(health: dict[str, Any] | None) -> str:
    if health is None or health["Status"] == "healthy":
        return ""
    last = (health.get("Log") or [])[-1:]
    if health["Status"] == "starting" or not last:
        return "health command: not asked yet"
    said = next((s.strip() for s in reversed(last[0]["Output"].splitlines()) if s.strip()), "")
    return f"health command exits {last[0]['ExitCode']}: {said}".rstrip(": ")


def logged(name: str, lines: int, after: str = "") -> Iterator[Logged]:
    """The last lines of its log, both streams in the order of their times; `after`: of those that
    are later than this time, all."""
    from blocks.docker_errors import NotFound

    wanted: dict[str, Any] = {"tail": lines}
    if after:
        wanted = {"since": int(_seconds(after))}
    with asking(f"read the log of {name}"):
        try:
            text = engine().logs(name, timestamps=True, **wanted)
        except NotFound:
            return
    for line in text.decode(errors="replace").splitlines():
        at, _, words = line.partition(" ")
        if (one := Logged(name, _in_order(at), words)).at > after:
            yield one


def last_words(name: str) -> str:
    """What the program that ended last wrote last, also when its successor writes already.

    The engine stamps a line when it reads it: a moment after the program's end, or a moment before
    it calls the successor started. Between the two there is its pause before a restart."""
    lines = list(logged(name, 200))
    found = seen(name)  # after the log: what is not running now has written nothing since
    if found and found.status == "running":
        turn = (found.finished_at + found.started_at) / 2
        lines = [line for line in lines if _seconds(line.at) < turn]
    return next((line.text.strip() for line in reversed(lines) if line.text.strip()), "")


def _in_order(at: str) -> str:
    """The engine leaves zeros at the end out in one place and writes them in the other."""
    seconds, _, fraction = at.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}Z"


def _seconds(at: str) -> float:
    whole, _, fraction = at.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction}")


def _words(command: Command, port: int) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    return [word.replace("{port}", str(port)) for word in words]
