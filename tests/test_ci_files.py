"""The ready files of deployments/ci: they parse, their commands exist, and curl.sh releases."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from ci_job import Job, api, git, job, play
from ruamel.yaml import YAML

from blocks.prefect_api import PrefectApi
from deployments.cli import app
from deployments.trigger_command import trigger
from policy.quantities import seconds

__all__ = ["api", "job", "play"]  # fixtures
CI = Path(__file__).parents[1] / "deployments" / "ci"
FILES = ["github-actions.yml", "gitlab-ci.yml", "Jenkinsfile"]


def commands(file: str) -> list[list[str]]:
    """Every `dafnck …` in the file, without comments and line ends."""
    text = re.sub(r"^\s*(#|//).*$", "", (CI / file).read_text(), flags=re.MULTILINE)
    if file.endswith(".yml"):
        scripts = [s for s in strings(YAML(typ="safe").load(text)) if "dafnck " in s]
    else:
        scripts = re.findall(r"sh '''(.*?)'''", text, re.DOTALL)
    lines = "\n".join(scripts).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|[ /])dafnck (\w.*)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for item in inner for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("file", FILES)
def test_commands_exist_with_these_options(file: str) -> None:
    group: Any = typer.main.get_command(app)
    assert len(commands(file)) == 2, "one for changes, one for the release"
    for name, *words in commands(file):
        words = [word for word in words if word not in ("$AGAIN", "$@")]
        command = group.commands[name]
        context = command.make_context(name, words)
        assert context.params["cancel_on_interrupt"]
        assert context.params["timeout"]
        assert seconds(context.params["timeout"]) > 60
        assert context.params["env"] == "prod"
    flows = [word for words in commands(file) for word in words if word == "pipeline"]
    assert flows == ["pipeline"]


def test_the_option_for_a_second_run_exists() -> None:
    group: Any = typer.main.get_command(app)
    assert group.commands["trigger"].make_context("trigger", ["--again"]).params["again"]
    assert trigger.__doc__


def test_github_gives_no_more_than_it_must_and_cancels_no_release() -> None:
    document = YAML(typ="safe").load(CI / "github-actions.yml")
    assert document["permissions"] == {"contents": "read"}
    release = document["jobs"]["release"]
    assert release["concurrency"] == {"group": "release-prod", "cancel-in-progress": False}
    assert release["environment"] == "prod"
    for used in document["jobs"].values():
        secret = [step for step in used["steps"] if "PREFECT_API_AUTH_STRING" in str(step)]
        assert len(secret) == 1, "only the step that needs it has it"
        # An expression inside of a script would be run as code.
        assert not [step for step in used["steps"] if "${{" in step.get("run", "")]


def test_gitlab_interrupts_no_release() -> None:
    release = YAML(typ="safe").load(CI / "gitlab-ci.yml")["release"]
    assert release["interruptible"] is False
    assert release["resource_group"] == release["environment"]["name"] == "prod"


def test_curl_script_is_clean() -> None:
    """Where shellcheck is missing, the shell itself looks at it."""
    words = ["shellcheck", "-s", "sh"] if shutil.which("shellcheck") else ["sh", "-n"]
    done = subprocess.run([*words, CI / "curl.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def curl(job: Job, **env: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        ["sh", str(CI / "curl.sh"), "deploy/dafnck.yaml"],
        cwd=job.folder,
        env=job.env
        | {
            "GIT_URL": f"file://{job.folder}",
            "ENVIRONMENT": "local",
            "FLOW": "rehearsal",
            "DEPLOYMENT": "served",
        }
        | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.env["PREFECT_API_AUTH_STRING"] not in done.stdout + done.stderr
    return done


@pytest.mark.live
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_curl_alone_releases(job: Job, api: PrefectApi) -> None:
    file = job.folder / "deploy" / "dafnck.yaml"
    file.write_text(file.read_text() + '# "quoted" \\n and a % sign\n')
    git(job.folder, "commit", "-qam", "second")
    commit = git(job.folder, "rev-parse", "HEAD")
    done = curl(job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"state: Completed  {commit[:12]} serves" in done.stdout
    told = re.findall(r"line (\d+)", done.stdout)
    assert told == ["0000", "0001", "0002"]
    run_id = done.stdout.split("/flow-run/")[1].split()[0]
    parameters = api._patiently("GET", f"/flow_runs/{run_id}")["parameters"]
    assert parameters["content"] == file.read_text()
    assert parameters["service_file"] == "deploy/dafnck.yaml"
    assert parameters["commit"] == commit
    assert run_id in curl(job).stdout, "it joins"
    refused = curl(job, PREFECT_API_AUTH_STRING="dafnck:wrong")
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    assert curl(job, PREFECT_API_URL="http://127.0.0.1:1/api").returncode == 3
