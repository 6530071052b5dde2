"""A local stack of its own for a benchmark, on free ports, gone afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from blocks.ledger import Ledger
from blocks.platforms import local_platform
from blocks.ports import TrafficRouter
from blocks.stack import Ports, Stack, listens
from deployments import local_stack
from policy.release import RolloutRecord

PROBE = Path(__file__).parents[1] / "examples" / "probe" / "probe.py"


def probe_file(file: Path, name: str, parts: dict[str, Any]) -> Path:
    """Write a service file of the probe with these parts laid over. -> its path."""
    document: dict[str, Any] = {
        "version": 1,
        "service": name,
        "build": {"command": "cp probe.py {out}"},
        "run": {
            "command": f"{sys.executable} -m uvicorn --port {{port}} --no-access-log "
            "--ws websockets-sansio probe:app",
            "health": "/healthz",
            "replicas": 2,
        },
    }
    return write_service(file, document, parts)


def write_service(file: Path, document: dict[str, Any], parts: dict[str, Any]) -> Path:
    """With these parts laid over. -> its path."""
    for part, content in parts.items():
        known = document.get(part, {})
        document[part] = {**known, **content} if isinstance(content, dict) else content
    with file.open("w") as text:
        YAML().dump(document, text)
    return file


Write = Callable[[Path, str, dict[str, Any]], Path]  # file, name, parts laid over


class Stage:
    def __init__(self, stack: Stack, folder: Path, write: Write = probe_file) -> None:
        self.stack, self.folder, self._write = stack, folder, write
        self.ledger = Ledger(stack.ledger_url)
        self.url = f"http://127.0.0.1:{stack.ports.web}"  # where requests come in

    def service(self, name: str, parts: dict[str, dict[str, Any]]) -> Path:
        return self._write(self.folder / f"{name}.yaml", name, parts)

    def release(self, file: Path, version: str = "bench") -> RolloutRecord:
        """In this process. -> how it ended."""
        from flows.release import release

        release(str(file), version=version, return_state=True)
        return self.ledger.history(limit=1)[0]

    def router(self, service: str) -> TrafficRouter:
        return local_platform(self.stack, service, "local").router

    def when(self, condition: Callable[[], Any], pause: float = 0.05, limit: float = 60) -> Any:
        give_up = time.monotonic() + limit
        while not (answer := condition()):
            if time.monotonic() > give_up:
                raise TimeoutError(f"not within {limit} s")
            time.sleep(pause)
        return answer


@contextmanager
def brought_down_if_we_die(home: Path) -> Iterator[None]:
    """A stack outlives whoever brought it up. That of a killed benchmark or test must not."""
    watcher = subprocess.Popen(
        ["sh", "-c", 'cat; exec "$@"', "-", sys.executable, "-m", "deployments.cli", "down"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "DAFNCK_HOME": str(home)},
        stdin=subprocess.PIPE,  # ends with this process, however that ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watcher.terminate()
        watcher.communicate()


@contextmanager
def stage(folder: Path, write: Write = probe_file) -> Iterator[Stage]:
    (folder / "source").mkdir()
    (folder / "source" / "probe.py").write_bytes(PROBE.read_bytes())
    home = folder / "home"
    home.mkdir()
    chosen: list[int] = []
    for usual in (18080, 18081, 14200, 18333):
        while listens(usual) or usual in chosen:
            usual += 10
        chosen.append(usual)
    names = ("web", "router_api", "prefect", "object_store")
    ports = Ports.model_validate(dict(zip(names, chosen, strict=True)))
    os.environ["DAFNCK_HOME"] = str(home)
    with brought_down_if_we_die(home):
        stack = local_stack.up(home, ports, lambda part: print(f"  {part}", file=sys.stderr))
        os.environ |= local_stack.prefect_environment(stack)
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()  # it may have been imported before there was a server
        try:
            yield Stage(stack, folder / "source", write)
        finally:
            local_stack.down(stack, lambda part: None)
