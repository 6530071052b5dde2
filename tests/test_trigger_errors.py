"""`dafnck trigger` when something is wrong: login, server, connection, what is asked for."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ci_job import PLAYED, Job, Play, Player, api, git, job, play, runs_of
from conftest import free_port, wait_for
from wire import Wire

from blocks.prefect_api import PrefectApi
from blocks.stack import Stack

__all__ = ["api", "job", "play"]  # fixtures
pytestmark = pytest.mark.live
NAMES = ("release", "rollback")


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("dafnck: ")
    assert done.stdout == ""
    return line


@pytest.fixture
def wire(stack: Stack, job: Job) -> Iterator[Wire]:
    wire = Wire(stack.prefect_api_url.removesuffix("/api"))
    job.env["PREFECT_API_URL"] = wire.url
    yield wire
    wire.cut()


def test_a_wrong_login_is_one_line(job: Job, api: PrefectApi) -> None:
    wrong = "dafnck:s3cr3t-and-wrong"
    done = job(*PLAYED, check=3, PREFECT_API_AUTH_STRING=wrong)
    assert "refuses our credentials; set PREFECT_API_AUTH_STRING" in one_line(done)
    assert "s3cr3t" not in done.stderr
    done = job(*PLAYED, check=3, PREFECT_API_AUTH_STRING="", PREFECT_API_KEY="pnu_s3cr3t")
    assert "refuses our credentials" in one_line(done)
    assert "s3cr3t" not in done.stderr
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        broken = {"PREFECT_API_AUTH_STRING": "", name: "s3cr3t\nX-Other: header"}
        done = job(*PLAYED, check=2, **broken)
        assert f"{name} holds characters" in one_line(done)
        assert "s3cr3t" not in done.stderr


def test_a_login_with_a_line_end_as_secret_stores_add_it_is_good(job: Job, api: PrefectApi) -> None:
    job(*PLAYED, "--no-wait", PREFECT_API_AUTH_STRING=job.env["PREFECT_API_AUTH_STRING"] + "\n")


def test_a_server_that_is_down_is_told_at_once(job: Job) -> None:
    done = job(*PLAYED, "--json", check=3, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert "does not answer" in done.stderr
    assert "is PREFECT_API_URL right" in done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["exit_code"] == 3
    assert outcome["flow_run_id"] is None
    assert "does not answer" in outcome["message"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "PREFECT_API_URL is not set"),
        ("prefect.example.com/api", "no http or https URL"),
        ("http://[::1/api", "no http or https URL"),
        ("https://ada:s3cr3t@prefect.example.com/api", "holds credentials"),
    ],
)
def test_an_address_that_cannot_be_meant(job: Job, url: str, said: str) -> None:
    done = job(*PLAYED, check=2, PREFECT_API_URL=url)
    assert said in one_line(done)
    assert "s3cr3t" not in done.stderr


def test_an_address_that_is_not_the_api(job: Job, stack: Stack) -> None:
    done = job(*PLAYED, check=3, PREFECT_API_URL=stack.prefect_api_url.removesuffix("/api"))
    assert "It ends in /api" in one_line(done)


def test_an_unknown_deployment_is_told_with_those_there_are(job: Job, api: PrefectApi) -> None:
    done = job("deploy/dafnck.yaml", "--flow", "rehearsal", "--deployment", "plaid", check=2)
    assert "there is rehearsal/played, rehearsal/served" in one_line(done)
    done = job("deploy/dafnck.yaml", "--flow", "nonsense", check=2)
    assert "none of a flow nonsense" in one_line(done)


def test_a_mistake_in_the_file_starts_nothing(job: Job, api: PrefectApi) -> None:
    file = job.folder / "deploy" / "dafnck.yaml"
    file.write_text(file.read_text() + "rollot: {}\n")
    done = job(*PLAYED, "--json", check=2)
    assert "deploy/dafnck.yaml:5: rollot: unknown key; did you mean rollout?" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2
    assert runs_of(job, api) == []


def test_a_remote_with_a_token_is_refused_and_not_shown(job: Job, api: PrefectApi) -> None:
    git(job.folder, "remote", "set-url", "origin", "https://ci-token:s3cr3t@git.example.com/a.git")
    done = job(*PLAYED, check=2)
    assert "the remote origin holds a password or token" in one_line(done)
    assert "s3cr3t" not in done.stderr
    job(*PLAYED, "--no-wait", "--git", "https://git.example.com/a.git")
    assert runs_of(job, api)[0]["parameters"]["git"] == "https://git.example.com/a.git"


def test_a_file_that_is_not_as_committed_is_sent_and_told(job: Job, api: PrefectApi) -> None:
    file = job.folder / "deploy" / "dafnck.yaml"
    file.write_text(file.read_text() + "# now\n")
    done = job(*PLAYED, "--no-wait")
    assert "WARNING  deploy/dafnck.yaml is not as in commit" in done.stdout
    assert runs_of(job, api)[0]["parameters"]["content"].endswith("# now\n")


def test_a_run_that_nobody_takes_up_says_where_to_look(
    job: Job, api: PrefectApi, play: Play
) -> None:
    """And when the time is over, the run is cancelled, which nobody needs to do."""
    done = job(*PLAYED, "--timeout", "23s", "--cancel-on-interrupt", check=1)
    assert "no worker polls the work pool empty-pool" in done.stdout
    assert "not ended within 23 s: cancels the run" in done.stdout
    assert runs_of(job, api)[0]["state"]["type"] == "CANCELLED"


def test_a_time_limit_alone_leaves_the_run(job: Job, api: PrefectApi) -> None:
    done = job(*PLAYED, "--timeout", "1s", "--json", check=3)
    assert "not ended within 1 s; the run goes on" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 3
    assert runs_of(job, api)[0]["state"]["type"] == "SCHEDULED"


def test_a_server_away_in_the_middle_is_waited_for(
    job: Job, api: PrefectApi, play: Play, wire: Wire
) -> None:
    process = job.begin(*PLAYED)
    assert process.stdout
    player = play(job)
    player.state("RUNNING")

    def until(words: str) -> None:
        while words not in (line := process.stdout.readline()):  # type: ignore[union-attr]
            assert line, f"it ended before it said {words!r}"

    until("state: Running")
    wire.cut()
    until("does not answer")
    wire.mend()
    until("answers again")
    wire.busy = True
    until("answers 503")
    wire.busy = False
    until("answers again")
    player.state("COMPLETED", message="served meanwhile")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
    assert "served meanwhile" in out


def test_an_interrupt_before_the_start_starts_nothing(
    job: Job, api: PrefectApi, wire: Wire
) -> None:
    wire.busy = True
    process = job.begin(*PLAYED, "--json")
    wait_for(lambda: wire.asked, "it asks")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == json.loads(out)["exit_code"] == 143
    assert "nothing was started" in err
    assert runs_of(job, api) == []


def test_a_reader_that_goes_away_is_no_success(job: Job, api: PrefectApi, play: Play) -> None:
    process = job.begin(*PLAYED)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    play(job).state("RUNNING")
    assert process.wait(20) == 3
    assert "nobody reads the log any more" in process.stderr.read()


def test_a_lost_answer_starts_no_second_run(job: Job, api: PrefectApi, wire: Wire) -> None:
    wire.lose = "create_flow_run"
    done = json.loads(job(*PLAYED, "--no-wait", "--json").stdout)
    assert wire.lost == 1
    (run,) = runs_of(job, api)
    assert run["id"] == done["flow_run_id"]


def test_an_old_job_does_not_claim_that_its_commit_serves(
    job: Job, api: PrefectApi, play: Play, stack: Stack
) -> None:
    """A releases, B releases, and the job of A is run again."""
    flow = api._patiently("POST", "/flows/", {"name": "release"})["id"]
    played = {"flow_id": flow, "name": "played", "work_pool_name": "empty-pool"}
    api._patiently("POST", "/deployments/", played)
    words = ("deploy/dafnck.yaml", "--deployment", "played")

    def released(version: str) -> None:
        job(*words, "--version", version, "--no-wait")
        player = play(job)
        player.state("RUNNING")
        player.state("COMPLETED", message=f"{version} serves")

    released("a")
    assert job(*words, "--version", "a").returncode == 0
    released("b")
    done = job(*words, "--version", "a", check=1)
    assert "a → local was released before, and then came" in done.stderr
    assert "b → local; nothing was started" in done.stderr
    assert job(*words, "--version", "b").returncode == 0
    again = json.loads(job(*words, "--version", "a", "--again", "--no-wait", "--json").stdout)
    assert not again["joined"]
    assert len(runs_of(job, api)) == 3


def test_nor_after_a_rollback(job: Job, api: PrefectApi, play: Play) -> None:
    flows = {name: api._patiently("POST", "/flows/", {"name": name})["id"] for name in NAMES}
    for flow in flows.values():
        played = {"flow_id": flow, "name": "played", "work_pool_name": "empty-pool"}
        api._patiently("POST", "/deployments/", played)
    words = ("deploy/dafnck.yaml", "--deployment", "played")
    job(*words, "--no-wait")
    player = play(job)
    player.state("RUNNING")
    player.state("COMPLETED")
    service = player.of("name").split()[0]
    parameters = {"service": service, "environment": "local"}
    back = api.start("rollback", "played", parameters, f"{service} ← local")
    assert job(*words).returncode == 0, "it has not begun"
    Player(api, back).state("RUNNING")
    Player(api, back).state("COMPLETED")
    assert f"came {service} ← local" in job(*words, check=1).stderr


def test_only_what_a_ci_job_has_is_needed(job: Job, api: PrefectApi, tmp_path: Path) -> None:
    """No repository around the file: an unpacked archive."""
    bare = tmp_path / "archive"
    bare.mkdir()
    (bare / "dafnck.yaml").write_text((job.folder / "deploy" / "dafnck.yaml").read_text())
    commit = git(job.folder, "rev-parse", "HEAD")
    words = (*("--flow", "rehearsal", "--deployment", "played"), "--no-wait")
    elsewhere = Job(bare, job.env)
    assert "--git and --commit" in one_line(elsewhere(*words, check=2))
    url = "ssh://git@git.example.com/a.git"
    elsewhere(*words, "--git", url, "--commit", commit)
    parameters = runs_of(job, api)[0]["parameters"]
    assert (parameters["git"], parameters["commit"]) == (url, commit)
    assert parameters["service_file"] == "dafnck.yaml"
    assert not (tmp_path / ".dafnck").exists()
