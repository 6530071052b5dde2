"""Workloads as processes of this machine under supervisord, each replica on a loopback port.

A release has a folder of its own: a copy of the artifact's files, its configuration and one spec
a replica. The folder outlives the processes, so an old release starts again as it was.
"""

import json
import os
import resource
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blocks.exec_replica import AGAIN
from blocks.files import locked, write_atomically
from blocks.loopback import PORTS_LOCK, connections_to, free_port, http_trouble, is_free, url_of
from blocks.processes import marked
from blocks.release_secrets import ReleaseSecrets
from blocks.stack import Stack
from blocks.supervisor import Program, Supervisor
from policy.errors import NotApplied, Refused
from policy.part import Command
from policy.release import Endpoints, Release
from policy.service_file import Health, Limits

CRASHES = 3  # starts without success after which a replica is given up


class LocalProcesses:
    """Workloads on this machine."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._secrets = ReleaseSecrets(stack)
        self._supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)

    # -- Workloads ---------------------------------------------------------------------------

    def start(self, release: Release, replicas: int) -> None:
        self._lay_out(release)
        if not self._numbers(release.id) and self._secrets.due(release):
            self._secrets.provide(release)
        for number in range(replicas):
            spec = self._spec(release, number)
            self._supervisor.add(
                f"{release.id}.{number}",
                spec,
                self._stack.logs / release.id / f"{number}.log",
                restarts=50,
                grace_seconds=release.run.grace,
            )
        for number in self._numbers(release.id):
            if number >= replicas:
                self._remove(release.id, number, release.run.grace)

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        numbers = self._numbers(release_id)
        programs = self._supervisor.programs() if numbers else {}
        release = self._release(release_id)
        health = release.run.health if release else None
        replicas = [self._replica(release_id, number) for number in numbers]
        with ThreadPoolExecutor(max_workers=8) as pool:
            answers = list(
                pool.map(
                    lambda replica: self._check(
                        programs.get(f"{release_id}.{replica['number']}"), replica, health, quick
                    ),
                    replicas,
                )
            )
        # First of one that ended: what another one, just started, does not answer yet, says less.
        ended = [self._given_up(release_id, number, programs) for number in numbers]
        troubles = [
            trouble
            for _, trouble in sorted(zip(ended, answers, strict=True), key=lambda pair: not pair[0])
            if trouble
        ]
        ports = [replica["port"] for replica in replicas]
        said = "" if quick else self._last_words(release_id, numbers)
        if said or troubles:
            hidden = self._secrets.redactor(release_id)
            said, troubles = hidden.clean(said), [hidden.clean(one) for one in troubles]
        return Endpoints(
            release_id=release_id,
            wanted=len(numbers),
            ready=tuple(
                url_of(r["port"])
                for r, trouble in zip(replicas, answers, strict=True)
                if not trouble
            ),
            urls=tuple(url_of(port) for port in ports),
            connections=connections_to(ports),
            trouble=troubles[0] if troubles else "",
            health_path=health.path if health else None,
            fatal=any(ended),
            restarts=sum(max(0, self._starts(release_id, n) - 1) for n in numbers),
            last_words=said,
            health_timeout=health.timeout if health else 2.0,
            host=release.host if release else "",
            port=release.route.port if release else None,
        )

    def stop(self, release_id: str, grace_seconds: float) -> None:
        # Who died while it stopped one may have left a program without its file.
        numbers = {*self._numbers(release_id), *self._running_numbers(release_id)}
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(lambda n: self._remove(release_id, n, grace_seconds), numbers))

    def running(self) -> list[str]:
        names = {name.rpartition(".")[0] for name in self._supervisor.programs() if "." in name}
        return sorted(names)

    def remove(self, release_id: str) -> None:
        if self._numbers(release_id):
            raise Refused(f"{release_id} still runs; it was not removed")
        shutil.rmtree(self._folder(release_id), ignore_errors=True)
        shutil.rmtree(self._stack.logs / release_id, ignore_errors=True)
        self._secrets.forget(release_id)

    # -- the folder of a release ---------------------------------------------------------------

    def _folder(self, release_id: str) -> Path:
        return self._stack.releases / release_id

    def _lay_out(self, release: Release) -> None:
        """Copy the files of the artifact and write the configuration, all or nothing."""
        folder = self._folder(release.id)
        # Of one that does not run nobody knows what was done to its files since.
        if (folder / "release.json").exists() and self._numbers(release.id):
            return
        artifact = self._stack.artifacts / release.artifact
        if not (artifact / "artifact.json").exists():
            raise NotApplied(f"artifact {release.artifact} is not in {self._stack.artifacts}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(artifact / "app", folder / "app", symlinks=True)
        for target, content in release.files.items():
            path = folder / "app" / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_atomically(folder / "release.json", release.model_dump_json(indent=1), 0o600)

    def _spec(self, release: Release, number: int) -> Path:
        """The spec of a replica: kept while its port is its own, else with a new port."""
        folder = self._folder(release.id)
        path = folder / f"replica-{number}.json"
        with locked(self._stack.releases / PORTS_LOCK):
            port = json.loads(path.read_text())["port"] if path.exists() else 0
            program = self._supervisor.programs().get(f"{release.id}.{number}")
            runs = program is not None and program.state in ("RUNNING", "STARTING")
            if not port or (not runs and not is_free(port)):
                port = free_port(self._stack.releases)
            elif runs:
                return path
            assert release.run.command is not None  # the service file sees to it
            argv = _words(release.run.command, port)
            environment = self._environment(release, port)
            spec = {
                "release": release.id,
                "number": number,
                "port": port,
                "argv": [_program(argv[0], environment["PATH"], folder / "app"), *argv[1:]],
                "env": environment,
                "cwd": str(folder / "app"),
                "grace_seconds": release.run.grace,
                "limits": _rlimits(release.run.limits),
            }
            if release.run.secrets:  # opened by the process that becomes the program
                spec["secrets"] = self._secrets.to_open(release.id)
            path.with_suffix(".pid").unlink(missing_ok=True)
            write_atomically(path, json.dumps(spec, indent=1), 0o600)
        return path

    def _environment(self, release: Release, port: int) -> dict[str, str]:
        """What the program sees: nothing of ours but these, then what its file says."""
        venv = self._stack.artifacts / release.artifact / "venv" / "bin"
        system = os.environ.get("PATH", os.defpath)
        given = {name: os.environ[name] for name in ("LANG", "TZ", "HOME") if name in os.environ}
        return {
            **given,
            "PATH": f"{venv}:{system}" if venv.is_dir() else system,
            "PORT": str(port),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "DAFNCK_RELEASE": release.id,
            "DAFNCK_VERSION": release.version,
            **{name: value.replace("{port}", str(port)) for name, value in release.run.env.items()},
        }

    # -- looking -------------------------------------------------------------------------------

    def _numbers(self, release_id: str) -> list[int]:
        names = (self._stack.supervisor / "conf.d").glob(f"{release_id}.*.conf")
        return sorted(int(name.stem.rpartition(".")[2]) for name in names)

    def _running_numbers(self, release_id: str) -> list[int]:
        names = [name.rpartition(".") for name in self._supervisor.programs()]
        return [int(number) for release, _, number in names if release == release_id]

    def _replica(self, release_id: str, number: int) -> dict[str, Any]:
        path = self._folder(release_id) / f"replica-{number}.json"
        return dict(json.loads(path.read_text()))

    def _release(self, release_id: str) -> Release | None:
        try:
            content = (self._folder(release_id) / "release.json").read_text()
        except FileNotFoundError:
            return None
        return Release.model_validate_json(content)

    def _check(
        self, program: Program | None, replica: dict[str, Any], health: Health | None, quick: bool
    ) -> str:
        """Why this replica is not ready; empty when it is."""
        if program is None or health is None:
            return "supervisord does not run it"
        if program.state not in ("RUNNING", "STARTING"):
            last = self._last_line(replica["release"], replica["number"])
            return f"{program.state.lower()}: {last or program.trouble}"
        if quick:
            return ""
        environment = replica["env"]
        if health.command is not None and "secrets" in replica:
            environment = environment | self._secrets.values(replica["release"])
        return health_trouble(health, replica["port"], environment, replica["cwd"])

    def _given_up(self, release_id: str, number: int, programs: dict[str, Program]) -> bool:
        program = programs.get(f"{release_id}.{number}")
        if program is None or program.state not in ("BACKOFF", "FATAL", "EXITED"):
            return False
        return program.state == "FATAL" or self._starts(release_id, number) >= CRASHES

    def _starts(self, release_id: str, number: int) -> int:
        """How often the launcher started this replica since its port was chosen."""
        try:
            pid_file = self._folder(release_id) / f"replica-{number}.pid"
            return int(pid_file.read_text().split()[2])
        except (FileNotFoundError, IndexError):
            return 0

    def _last_line(self, release_id: str, number: int) -> str:
        lines = tail(self._stack.logs / release_id / f"{number}.log", 5)
        return _last_of(lines)

    def _last_words(self, release_id: str, numbers: list[int]) -> str:
        """What one that ended wrote last, before it was started again."""
        for number in numbers:
            if self._starts(release_id, number) > 1:
                lines = tail(self._stack.logs / release_id / f"{number}.log", 200)
                again = [n for n, line in enumerate(lines) if line.startswith(AGAIN)]
                if again and (words := _last_of(lines[: again[-1]])):
                    return words
        return ""

    def _remove(self, release_id: str, number: int, grace_seconds: float) -> None:
        self._supervisor.remove(f"{release_id}.{number}", grace_seconds)


def health_trouble(health: Health, port: int, env: dict[str, str], cwd: str) -> str:
    """Ask once; empty when healthy, else why not."""
    if health.command is not None:
        argv = _words(health.command, port)
        try:
            done = subprocess.run(
                argv,
                env=marked(env),
                cwd=cwd,
                timeout=health.timeout,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"health command: {error}"
        return "" if done.returncode == 0 else f"health command exits {done.returncode}"
    return http_trouble(port, health.path or "/", health.timeout)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file that may be large; none when there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            begin = max(0, file.tell() - 400 * lines)
            file.seek(begin)
            found = file.read().decode(errors="replace").splitlines()
            # A part of a line may be a part of a secret, which nobody would know.
            return found[1 if begin else 0 :][-lines:]
    except FileNotFoundError:
        return []


def _last_of(lines: list[str]) -> str:
    said = (line.strip() for line in reversed(lines))
    return next((line for line in said if line and not line.startswith(AGAIN)), "")


def _words(command: Command, port: int) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    return [word.replace("{port}", str(port)) for word in words]


def _program(name: str, path: str, cwd: Path) -> str:
    """The program by the replica's own PATH, not by ours."""
    if "/" in name:
        return str(cwd / name)
    return shutil.which(name, path=path) or name


def _rlimits(limits: Limits) -> dict[str, int]:
    wanted = {
        "RLIMIT_DATA": limits.memory,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes,
    }
    return {n: v for n, v in wanted.items() if v is not None and hasattr(resource, n)}
