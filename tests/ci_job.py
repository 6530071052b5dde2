"""A CI job with its checkout, and a run whose worker the test plays, on a real Prefect server."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for

from blocks.prefect_api import PrefectApi
from blocks.stack import Stack
from deployments.local_stack import WORK_POOL, prefect_auth

FIXTURES = Path(__file__).parent / "fixtures"
FILE = """\
version: 1
service: {service}
build: {{command: "make {{out}}"}}
run: {{command: "serve {{port}}", health: /}}
"""


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)
    return done.stdout.decode().strip()


@dataclass
class Job:
    """A CI job: a checkout, the address of a server and a login; nothing else of this machine."""

    folder: Path
    env: dict[str, str]
    left: list["subprocess.Popen[str]"] = field(default_factory=list)

    def begin(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "trigger", *words],
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.left.append(process)
        return process

    def __call__(
        self, *words: str, check: int | None = 0, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        process = self.begin(*words, **env)
        out, err = process.communicate(timeout=120)
        assert self.env["PREFECT_API_AUTH_STRING"] not in out + err
        if check is not None:
            assert process.returncode == check, f"{words}: {out}\n{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def none_failed(self) -> bool:
        """Waiting for what a job will do is no use when it ended."""
        for process in self.left:
            if process.poll():
                raise AssertionError("".join(process.communicate()))
        return True


@contextmanager
def job_in(folder: Path, stack: Stack, home: Path) -> Iterator[Job]:
    """Whatever the job left running is ended."""
    job = Job(
        folder,
        {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GITHUB_ACTOR": "ada",
            "PREFECT_API_URL": stack.prefect_api_url,
            "PREFECT_API_AUTH_STRING": prefect_auth(stack),
        },
    )
    try:
        yield job
    finally:
        for process in job.left:
            if process.poll() is None:
                process.kill()
            if process.stdout and not process.stdout.closed:
                process.communicate()
            elif process.stderr:
                process.stderr.close()


@pytest.fixture
def job(stack: Stack, tmp_path: Path) -> Iterator[Job]:
    folder = tmp_path / "checkout"
    (folder / "deploy").mkdir(parents=True)
    (folder / "deploy" / "dafnck.yaml").write_text(FILE.format(service=f"s{time.time_ns()}"))
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", f"file://{folder}")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    with job_in(folder, stack, home=tmp_path) as job:
        yield job


@pytest.fixture(scope="session")
def api(stack: Stack) -> Iterator[PrefectApi]:
    """With the flow `rehearsal` for the stack's worker, and for one that the test plays."""
    with PrefectApi(stack.prefect_api_url, prefect_auth(stack)) as api:
        flow = api._patiently("POST", "/flows/", {"name": "rehearsal"})["id"]
        folder = {"directory": str(FIXTURES)}
        served = {
            "name": "served",
            "work_pool_name": WORK_POOL,
            "entrypoint": "rehearsal.py:rehearsal",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": folder}],
        }
        api.have_work_pool("empty-pool")
        played = {"name": "played", "work_pool_name": "empty-pool"}
        for deployment in (served, played):
            api._patiently("POST", "/deployments/", {"flow_id": flow, **deployment})
        yield api


SERVED = ("deploy/dafnck.yaml", "--flow", "rehearsal", "--deployment", "served")
PLAYED = ("deploy/dafnck.yaml", "--flow", "rehearsal", "--deployment", "played")


@dataclass
class Player:
    """Plays the worker of one run, through the API as a real one does."""

    api: PrefectApi
    flow_run_id: str

    def state(self, kind: str, name: str = "", message: str = "") -> None:
        state = {"type": kind, "name": name or kind.capitalize(), "message": message}
        path = f"/flow_runs/{self.flow_run_id}/set_state"
        self.api._patiently("POST", path, {"state": state, "force": True})

    def of(self, part: str) -> str:
        return str(self.api._patiently("GET", f"/flow_runs/{self.flow_run_id}")[part])

    def log(self, *messages: str, at: datetime, step: float = 0.0) -> None:
        lines = [
            {
                "name": "prefect.flow_runs",
                "level": 20,
                "message": message,
                "timestamp": (at + timedelta(seconds=step * number)).isoformat(),
                "flow_run_id": self.flow_run_id,
            }
            for number, message in enumerate(messages)
        ]
        self.api._patiently("POST", "/logs/", lines)


@pytest.fixture
def play(api: PrefectApi) -> Callable[[Job], Player]:
    """-> the player of the newest run that this job's service has."""

    def find(job: Job) -> Player:
        service = (job.folder / "deploy" / "dafnck.yaml").read_text().split()[3]
        wanted = {"flow_runs": {"tags": {"any_": [f"{service}/local"]}}}
        wanted |= {"sort": "EXPECTED_START_TIME_DESC"}
        found = wait_for(
            lambda: job.none_failed() and api._patiently("POST", "/flow_runs/filter", wanted),
            "a run",
        )
        return Player(api, found[0]["id"])

    return find


Play = Callable[[Job], Player]


def runs_of(job: Job, api: PrefectApi) -> list[dict[str, Any]]:
    service = (job.folder / "deploy" / "dafnck.yaml").read_text().split()[3]
    wanted = {"flow_runs": {"tags": {"any_": [f"{service}/local"]}}}
    return list(api._patiently("POST", "/flow_runs/filter", wanted))
