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
_BAD_NAME, _NOT_RUNNING, _ALREADY_ADDED = 10, 70, 90


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

    def _call(self, method: str, *arguments: Any) -> Any:
        # One connection a call: the server closes idle ones, and calls are rare.
        transport = _UnixTransport(self._socket)
        try:
            with xmlrpc.client.ServerProxy("http://local", transport=transport) as proxy:
                call: Any = proxy
                for part in method.split("."):
                    call = getattr(call, part)
                return call(*arguments)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"supervisord does not answer ({error}); what runs keeps running, nothing can be "
                "started or stopped. Start it again: dafnck up"
            ) from error

    def answers(self) -> bool:
        try:
            return bool(self._call("supervisor.getState")["statename"] == "RUNNING")
        except Unreachable:
            return False

    def programs(self) -> dict[str, Program]:
        return {
            info["name"]: Program(
                info["name"], info["statename"], info["pid"], info["start"], info["spawnerr"]
            )
            for info in self._call("supervisor.getAllProcessInfo")
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
        self._reload()
        try:
            self._call("supervisor.addProcessGroup", name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_ADDED:
                raise NotApplied(f"supervisord refused {name}: {fault.faultString}") from fault
            if not self.programs()[name].alive:
                self._call("supervisor.startProcess", name, False)

    def _reload(self) -> None:
        try:
            self._call("supervisor.reloadConfig")
        except xmlrpc.client.Fault as fault:
            raise NotApplied(
                f"supervisord cannot read its configuration: {fault.faultString}; "
                "what runs keeps running"
            ) from fault

    def remove(self, name: str, grace_seconds: float) -> None:
        """SIGTERM, after the grace time SIGKILL, gone and forgotten. Idempotent."""
        give_up = time.monotonic() + grace_seconds
        killed, group = False, 0
        try:
            self._call("supervisor.stopProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (_BAD_NAME, _NOT_RUNNING):
                raise NotApplied(f"supervisord: {fault.faultString}") from fault
        while (program := self.programs().get(name)) and program.state in ("STOPPING", "RUNNING"):
            if time.monotonic() > give_up and not killed:
                killed = True
                self._quietly("supervisor.signalProcess", name, "KILL")
            if time.monotonic() > give_up + 10:
                raise NotApplied(f"{name} (pid {program.pid}) does not end, not even by SIGKILL")
            group = program.pid
            time.sleep(0.05)
        if group:
            # Children that outlived their parent are still in its process group.
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        (self._programs / f"{name}.conf").unlink(missing_ok=True)
        self._quietly("supervisor.removeProcessGroup", name)

    def _quietly(self, method: str, *arguments: Any) -> None:
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (_BAD_NAME, _NOT_RUNNING):
                raise NotApplied(f"supervisord: {fault.faultString}") from fault

    def shutdown(self) -> None:
        self._call("supervisor.shutdown")
