"""Suites of an image run inside of it; nothing of it stays but the reports."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for

from blocks.builder import Builder
from blocks.image_suites import OWNER
from blocks.processes import CHILD_OF, marked
from blocks.suites import run_suite
from policy.evidence import SuiteResult
from policy.pipeline import Suite
from policy.service_file import Build

pytestmark = pytest.mark.live

GOOD = '<testsuite><testcase classname="shop" name="price"/></testsuite>'
BAD = (
    '<testsuite><testcase classname="shop" name="price"/><testcase classname="shop" name="tax">'
    '<failure message="wrong"/></testcase></testsuite>'
)
COVERAGE = '<coverage line-rate="0.75" lines-valid="4" lines-covered="3"><packages/></coverage>'
Run = Callable[..., SuiteResult]


@pytest.fixture
def artifact(docker: Any, source: Path, tmp_path: Path) -> Iterator[Path]:
    builder = Builder(tmp_path / "artifacts")
    digest, _ = builder.build(Build.model_validate({"image": {"target": "tested"}}), source)
    yield builder.folder(digest)
    assert not suites(docker), "no container of a suite stays"
    assert builder.remove_unused(set(), idle_seconds=0) == [digest]


def suites(docker: Any) -> list[Any]:
    """Those of this process: other runs of tests may be under way."""
    mark = marked({})[CHILD_OF]
    return list(docker.containers(all=True, filters={"label": f"{OWNER}={mark}"}))


def run(
    artifact: Path, tmp_path: Path, command: str, over: threading.Event | None = None, **keys: Any
) -> SuiteResult:
    suite = Suite.model_validate({"name": "unit", "command": command, **keys})
    return run_suite(
        suite, artifact, tmp_path / "evidence", tmp_path / "scratch", over or threading.Event()
    )


def said(tmp_path: Path) -> str:
    return (tmp_path / "evidence" / "unit" / "output-1.log").read_text()


def test_results_and_coverage_come_out_of_the_container(artifact: Path, tmp_path: Path) -> None:
    command = f"echo '{GOOD}' > {{junit}} && echo '{COVERAGE}' > {{coverage}} && pwd && ls"
    result = run(artifact, tmp_path, command)
    assert (result.ran, result.failed, result.broken) == (1, (), "")
    assert result.coverage == 75.0
    assert said(tmp_path) == "/srv\nfail\nserve\n", "in the image, where it works"
    assert {path.name for path in (tmp_path / "evidence" / "unit").iterdir()} == {
        *("junit.xml", "coverage.xml", "output-1.log")
    }
    assert not list((tmp_path / "scratch").iterdir())


def test_a_failed_test_has_failed(artifact: Path, tmp_path: Path) -> None:
    result = run(artifact, tmp_path, f"echo '{BAD}' > {{junit}}; exit 1", again=1)
    assert result.ran == 2
    assert result.failed == ("shop.tax (wrong)",)
    assert not result.broken


def test_no_result_is_never_a_pass(artifact: Path, tmp_path: Path) -> None:
    broken = run(artifact, tmp_path, "echo the reason; exit 3 # {junit}").broken
    assert "exit code 3; the reason" in broken
    assert (
        "exec nosuchprogram failed"
        in run(
            artifact,
            tmp_path,
            ["nosuchprogram", "{junit}"],  # type: ignore[arg-type]
        ).broken
    )
    linked = run(artifact, tmp_path, "ln -s /etc/hostname {junit}").broken
    assert linked, "a link could lead anywhere on this machine"


def test_it_gets_nothing_of_our_environment_and_no_privileges(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "geheim")
    command = f"echo '{GOOD}' > {{junit}}; env; grep CapEff /proc/self/status"
    assert run(artifact, tmp_path, command, env={"COLOUR": "blue"}).ran == 1
    words = said(tmp_path)
    assert "COLOUR=blue" in words
    assert "geheim" not in words
    assert os.environ["HOME"] == "/" or f"HOME={os.environ['HOME']}-" not in words
    assert "CapEff:\t0000000000000000" in words


def test_what_ships_is_not_changed_by_its_tests(artifact: Path, tmp_path: Path) -> None:
    command = f"cat serve | head -1; echo x > serve; echo '{GOOD}' > {{junit}}"
    for _ in range(2):
        assert run(artifact, tmp_path, command).ran == 1
        assert said(tmp_path) == "#!/bin/sh\n"


def test_one_that_hangs_is_killed_and_removed(docker: Any, artifact: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    result = run(artifact, tmp_path, "echo begun; sleep 600 # {junit}", within="1s")
    assert result.broken == "did not end within 1s"
    assert time.monotonic() - began < 20
    assert not suites(docker)


def test_one_that_nobody_waits_for_any_more_is_killed(
    docker: Any, artifact: Path, tmp_path: Path
) -> None:
    over = threading.Event()
    ended: list[SuiteResult] = []
    thread = threading.Thread(
        target=lambda: ended.append(run(artifact, tmp_path, "sleep 600 # {junit}", over))
    )
    thread.start()
    wait_for(lambda: suites(docker), "it runs")
    over.set()
    thread.join(20)
    assert "was stopped" in ended[0].broken
    assert not suites(docker)


def test_what_a_killed_process_left_is_removed(docker: Any, artifact: Path, tmp_path: Path) -> None:
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            "from blocks.processes import CHILD_OF, marked; print(marked({})[CHILD_OF])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    from blocks.images import read_image

    image = read_image(artifact)
    assert image
    left = docker.create_container(
        image.id, entrypoint=["/bin/sleep"], command=["600"], labels={OWNER: dead}
    )
    docker.start(left["Id"])
    run(artifact, tmp_path, f"echo '{GOOD}' > {{junit}}")
    assert left["Id"] not in {one["Id"] for one in docker.containers(all=True)}


def test_an_engine_that_is_away_is_no_result(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        result = run(artifact, tmp_path, f"echo '{GOOD}' > {{junit}}")
    assert "does not answer" in result.broken
