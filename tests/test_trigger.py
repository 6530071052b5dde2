"""`dafnck trigger` against a real Prefect server with a login: one test for each promise."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from ci_job import PLAYED, SERVED, Job, Play, api, git, job, play, runs_of
from conftest import wait_for

from blocks.prefect_api import PrefectApi

__all__ = ["api", "job", "play"]  # fixtures
pytestmark = pytest.mark.live


def test_a_run_is_followed_line_by_line_and_joined_by_a_second_job(
    job: Job, api: PrefectApi
) -> None:
    first = job.begin(*SERVED, "--version", "lines")
    wait_for(lambda: job.none_failed() and runs_of(job, api), "the run")
    second = job(*SERVED, "--version", "lines", "--json")
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, out + err
    for text in (out, second.stderr):
        lines = [line.split("line ")[1] for line in text.splitlines() if ": line 0" in line]
        assert lines == [f"{number:04d}" for number in range(500)]
        assert "act: line 0000" in text, "it says which task"
        assert "state: Running" in text
        assert text.index("line 0499") < text.index("state: Completed: lines serves")
    assert "joins" in second.stderr
    assert "joins" not in out
    outcome = json.loads(second.stdout)
    commit = git(job.folder, "rev-parse", "HEAD")
    assert outcome["exit_code"] == 0
    assert outcome["joined"]
    assert outcome["commit"] == commit
    assert (outcome["state"], outcome["message"]) == ("Completed", "lines serves")
    (run,) = runs_of(job, api)
    assert outcome["url"].endswith(f"/runs/flow-run/{run['id']}")
    assert outcome["url"] in out
    assert run["parameters"]["service_file"] == "deploy/dafnck.yaml"
    assert run["parameters"]["by"] == "ada"
    assert run["parameters"]["commit"] == commit
    assert run["parameters"]["content"] == (job.folder / "deploy" / "dafnck.yaml").read_text()
    third = job(*SERVED, "--version", "lines")
    assert "it has ended" in third.stdout
    assert "line 0499" in third.stdout
    assert len(runs_of(job, api)) == 1


def test_the_state_that_a_flow_ends_in_is_the_exit_code(job: Job, api: PrefectApi) -> None:
    """All at once, for the sake of time."""
    codes = {"Refused": 1, "RolledBack": 1, "BadInput": 2, "Failed": 3}
    running = {name: job.begin(*SERVED, "--version", name) for name in codes}
    for name, process in running.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == codes[name], out + err
        assert f"{name}: " in err
        assert f"ERROR  state: {name}" in out
        assert "Traceback" not in out, "that an answer is no is no accident"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_when_told_to(
    job: Job, api: PrefectApi, number: signal.Signals
) -> None:
    process = job.begin(*SERVED, "--version", "wait", "--cancel-on-interrupt", "--json")
    begun = job.folder / "begun"
    wait_for(lambda: job.none_failed() and begun.exists(), "the flow waits", 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    outcome = json.loads(out)
    assert process.returncode == outcome["exit_code"] == 1, out + err
    assert outcome["state"] == "Cancelled"
    assert runs_of(job, api)[0]["state"]["type"] == "CANCELLED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_run_alone(
    job: Job, api: PrefectApi, play: Play, number: signal.Signals
) -> None:
    process = job.begin(*PLAYED)
    player = play(job)
    player.state("RUNNING")
    out = wait_for(lambda: process.stdout and process.stdout.readline(), "it is told")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, out + err
    assert "the run goes on" in err
    assert player.flow_run_id in err, "how to cancel it"
    assert runs_of(job, api)[0]["state"]["type"] == "RUNNING"


def test_a_second_interrupt_leaves_at_once(job: Job, api: PrefectApi, play: Play) -> None:
    process = job.begin(*PLAYED, "--cancel-on-interrupt")
    play(job).state("RUNNING")
    process.stdout.readline()  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    wait_for(lambda: runs_of(job, api)[0]["state"]["type"] == "CANCELLING", "it cancels")
    time.sleep(0.6)  # longer than one press of a key
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "left at once" in err


def test_lines_of_one_time_and_late_ones_are_told_once(
    job: Job, api: PrefectApi, play: Play
) -> None:
    process = job.begin(*PLAYED)
    player = play(job)
    now = datetime.now(UTC)  # noqa: TID251 - lines have the time of whoever writes them
    player.state("RUNNING")
    wanted = [f"<{number}>" for number in range(950)]
    player.log(*wanted[:450], at=now)  # three pages of the same moment
    player.log(*wanted[450:900], at=now + timedelta(seconds=1), step=0.001)
    player.log(*wanted[900:920], at=now - timedelta(seconds=5))
    player.state("COMPLETED")
    player.log(*wanted[920:], at=now - timedelta(minutes=5))  # after the end, by a slow clock
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    told = [line.split()[-1] for line in out.splitlines() if line.endswith(">")]
    assert sorted(told) == sorted(wanted)
    in_order = [line for line in told if line in wanted[450:900]]
    assert in_order == wanted[450:900]


def test_a_paused_run_is_shown_with_its_link(job: Job, api: PrefectApi, play: Play) -> None:
    process = job.begin(*PLAYED)
    player = play(job)
    player.state("RUNNING")
    player.state("PAUSED")
    assert process.stdout
    told = ""
    while "waits for a person" not in told:
        told = process.stdout.readline()
        assert told, "it ended"
    assert f"/runs/flow-run/{player.flow_run_id}" in told
    player.state("COMPLETED")
    assert process.wait(30) == 0


def test_an_ended_run_is_begun_again_only_when_told_to(
    job: Job, api: PrefectApi, play: Play
) -> None:
    job(*PLAYED, "--no-wait")
    play(job).state("FAILED", "RolledBack", "errors 20%")
    failed = job(*PLAYED, check=1)
    assert "RolledBack: errors 20%" in failed.stderr
    assert "--again" in failed.stderr
    assert len(runs_of(job, api)) == 1
    new = json.loads(job(*PLAYED, "--again", "--no-wait", "--json").stdout)
    assert not new["joined"]
    assert len(runs_of(job, api)) == 2
    # That one runs: it is joined, again or not.
    for words in (["--again"], []):
        joined = json.loads(job(*PLAYED, "--no-wait", "--json", *words).stdout)
        assert joined["flow_run_id"] == new["flow_run_id"]
    assert len(runs_of(job, api)) == 2
