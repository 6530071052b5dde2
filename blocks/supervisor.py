"""supervisord over its Unix socket: add, stop, remove and look at programs."""

import http.client
import os
import signal
import socket
import sys
import time
import xmlrpc.client
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.files import write_atomically
from policy.errors import NotApplied, Unreachable

LAUNCHER = Path(__file__).with_name("exec_replica.py")
_SHUTDOWN, _BAD_NAME, _NOT_RUNNING, _ALREADY_ADDED = 6, 10, 70, 90


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        self._connection = host, _UnixConnection(self._path)
        return self._connection[1]


@dataclass(frozen=True)
class Program:
    name: str
    state: str  # STARTING RUNNING BACKOFF FATAL EXITED STOPPING STOPPED UNKNOWN
    pid: int
    since: float
    trouble: str

    @property
    def alive(self) -> bool:
        return self.state in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")


class Supervisor:
    def __init__(self, folder: Path, socket_path: Path) -> None:
        self._programs = folder / "conf.d"
        self._socket = socket_path

    def _call(self, method: str, *arguments: Any, tolerate: tuple[int, ...] = ()) -> Any:
        """-> the answer; None for a fault in `tolerate`. Raises NotApplied for any other fault."""
        # One connection a call: the server closes idle ones, and calls are rare.
        transport = _UnixTransport(self._socket)
        try:
            with xmlrpc.client.ServerProxy("http://local", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in tolerate:
                return None
            if fault.faultCode == _SHUTDOWN:
                raise Unreachable("supervisord is being stopped; nothing was changed") from fault
            raise NotApplied(
                f"supervisord refused {method}: {fault.faultString}; what runs keeps running"
            ) from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise Unreachable(
                f"supervisord does not answer ({error}); what runs keeps running, nothing can be "
                "started or stopped. Start it again: dafnck up"
            ) from error

    def answers(self) -> bool:
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except Unreachable:
            return False

    def programs(self) -> dict[str, Program]:
        return {
            info["name"]: Program(
                info["name"], info["statename"], info["pid"], info["start"], info["spawnerr"]
            )
            for info in self._call("getAllProcessInfo")
        }

    def add(self, name: str, spec: Path, log: Path, *, restarts: int, grace_seconds: float) -> None:
        """Have this program run and be restarted when it ends. Idempotent."""
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "command": f'"{sys.executable}" -I "{LAUNCHER}" "{spec}"',
            "autostart": "true",
            "autorestart": "true",
            "startsecs": "1",
            "startretries": str(restarts),
            # SIGTERM for the main process alone, which knows how to end its children in order;
            # SIGKILL for the whole group, so that nothing stays behind.
            "stopasgroup": "false",
            "killasgroup": "true",
            "stopwaitsecs": str(max(1, round(grace_seconds))),
            "redirect_stderr": "true",
            "stdout_logfile": f"{log}",
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "3",
        }
        lines = [f"[program:{name}]"]
        lines += [f"{key}={value.replace('%', '%%')}" for key, value in settings.items()]
        write_atomically(self._programs / f"{name}.conf", "\n".join(lines) + "\n")
        self._call("reloadConfig")
        self._call("addProcessGroup", name, tolerate=(_ALREADY_ADDED,))
        give_up = time.monotonic() + grace_seconds + 10
        while not (program := self.programs().get(name)) or program.state == "STOPPING":
            if time.monotonic() > give_up:
                raise NotApplied(f"{name} does not come out of {program and program.state}")
            time.sleep(0.05)
        if not program.alive:
            self._call("startProcess", name, False)

    def remove(self, name: str, grace_seconds: float) -> None:
        """SIGTERM, after the grace time SIGKILL, gone and forgotten. Idempotent."""
        give_up = time.monotonic() + grace_seconds
        killed, group = False, 0
        self._call("stopProcess", name, False, tolerate=(_BAD_NAME, _NOT_RUNNING))
        while (program := self.programs().get(name)) and program.state in ("STOPPING", "RUNNING"):
            if time.monotonic() > give_up and not killed:
                killed = True
                self._call("signalProcess", name, "KILL", tolerate=(_BAD_NAME, _NOT_RUNNING))
            if time.monotonic() > give_up + 10:
                raise NotApplied(f"{name} (pid {program.pid}) does not end, not even by SIGKILL")
            group = program.pid
            time.sleep(0.05)
        if group:
            # Children that outlived their parent are still in its process group.
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        (self._programs / f"{name}.conf").unlink(missing_ok=True)
        self._call("removeProcessGroup", name, tolerate=(_BAD_NAME,))

    def shutdown(self) -> None:
        self._call("shutdown")
