"""From a commit to what serves, by Prefect's API alone, through the real worker."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ci_job import Job, git, job_in

from blocks.ledger import Ledger
from blocks.stack import Stack
from policy.release import Phase

pytestmark = pytest.mark.live


def answer(stack: Stack, name: str) -> str:
    host = {"Host": f"{name}.local.localhost"}
    request = urllib.request.Request(f"http://127.0.0.1:{stack.ports.web}/", headers=host)
    with urllib.request.urlopen(request, timeout=10) as answered:
        return str(answered.read().decode())


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def job(stack: Stack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Its checkout is where `service` writes."""
    git(tmp_path, "init", "-q")
    with job_in(tmp_path, stack, home=tmp_path_factory.mktemp("nobody")) as job:
        yield job


def test_a_commit_is_released_once_and_a_broken_one_is_not(
    stack: Stack, ledger: Ledger, service: Callable[..., Path], job: Job, tmp_path: Path
) -> None:
    service("pushed")
    first = commit(tmp_path, "first")
    words = ("dafnck.yaml", "--env", "local", "--git", f"file://{tmp_path}", "--wait")

    done = job(*words)
    assert "state: Completed: pushed-local-1 serves" in done.stdout
    assert answer(stack, "pushed") == "pushed-local-1"
    (rollout,) = ledger.history("pushed")
    assert rollout.phase is Phase.PROMOTED
    assert rollout.version == first[:12]

    joined = json.loads(job(*words, "--json").stdout)
    assert joined["joined"]
    assert joined["exit_code"] == 0
    assert joined["commit"] == first
    assert len(ledger.history("pushed")) == 1, "no second run"

    service("pushed", run={"env": {"HEALTH": "503"}, "start": "5s"})
    second = commit(tmp_path, "broken")
    broken = json.loads(job(*words, "--json", check=1).stdout)
    assert broken["state"] in ("Refused", "RolledBack")
    assert broken["commit"] == second
    assert answer(stack, "pushed") == "pushed-local-1"

    # The job has another file than its commit: that one is released, from the commit's sources.
    service("pushed", run={"env": {"FROM": "the job"}})
    sent = json.loads(job(*words, "--json").stdout)
    assert sent["commit"] == second
    assert not sent["joined"]
    assert answer(stack, "pushed") == ledger.stable("pushed", "local") != "pushed-local-1"
