"""Releases of images on the real stack: the same promises as for processes, kept by containers."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck, Released, wait_for
from docker_fixtures import own_name, remove_image
from test_blocks_checkouts import commit, git
from test_live_release import no_request_failed, under_load, who_answers

from blocks.images import read_image
from blocks.ledger import Ledger
from blocks.stack import Stack
from deployments import local_stack
from policy.release import Phase

pytestmark = pytest.mark.live
ImageService = Callable[..., Path]

CANARY = {"strategy": "canary", "steps": ["20%", "100%"], "bake": "2s"}


def alone(stack: Stack, dafnck: Dafnck, docker: Any, name: str, release_id: str) -> None:
    """This release answers everything, has its replicas, and nothing else runs."""
    assert {who_answers(stack, name) for _ in range(10)} == {release_id}
    seen = next(s for s in json.loads(dafnck("status", "--json").stdout) if s["service"] == name)
    assert seen["shares"] == {release_id: 100}
    assert seen["replicas"] == {release_id: {"ready": 2, "wanted": 2, "trouble": ""}}
    assert running(docker, name) == {f"{release_id}.0", f"{release_id}.1"}


def running(docker: Any, name: str) -> set[str]:
    """Names of the containers that run, or try to."""
    found = docker.containers(all=True, filters={"label": f"dafnck.service={name}"})
    return {
        one["Names"][0].lstrip("/") for one in found if one["State"] in ("running", "restarting")
    }


def image_of(docker: Any, release_id: str) -> str:
    return str(docker.inspect_container(f"{release_id}.0")["Config"]["Image"])


@pytest.mark.timeout(300)  # four releases under load, one after the other
def test_blue_green_canary_and_back_to_the_earlier_image(
    stack: Stack,
    docker: Any,
    registry: str,
    released: Released,
    dafnck: Dafnck,
    image_service: ImageService,
) -> None:
    name = own_name("shop")

    def version(words: str, **parts: Any) -> Path:
        build = {"push": f"{registry}/{name}", "args": {"WORDS": words}}
        return image_service(name, build=build, **parts)

    first = dafnck("release", version("one"), "--version", "1")
    assert f"{name}-local-1 (1) serves: healthy" in first.stdout
    alone(stack, dafnck, docker, name, f"{name}-local-1")
    with under_load(stack, name) as load:
        assert released(version("two"), "2").phase is Phase.PROMOTED
        assert released(version("three", rollout=CANARY), "3").phase is Phase.PROMOTED
        alone(stack, dafnck, docker, name, f"{name}-local-3")
        back = dafnck("rollback", name, "--to", f"{name}-local-1")
        assert f"{name}-local-1 (1) serves" in back.stdout
    no_request_failed(load)
    alone(stack, dafnck, docker, name, f"{name}-local-1")
    images = {image_of(docker, f"{name}-local-{number}") for number in (1, 2, 3)}
    assert len(images) == 3, "each release has an image of its own"
    assert all(image.startswith(f"{registry}/{name}@sha256:") for image in images)
    assert "with one" in dafnck("logs", name).stdout
    assert "with three" in dafnck("logs", name, "--release", f"{name}-local-3").stdout


@pytest.mark.timeout(300)
def test_what_cannot_run_gets_no_traffic(
    stack: Stack,
    docker: Any,
    released: Released,
    dafnck: Dafnck,
    source: Path,
    image_service: ImageService,
) -> None:
    name = own_name("broken")
    released(image_service(name), "1")
    with under_load(stack, name) as load:
        crashes = released(image_service(name, run={"env": {"DIE": "1"}}), "2")
        assert crashes.phase is Phase.FAILED
        assert crashes.reason == (f"{name}-local-2 ends again and again: restarting: no database")
        assert "no database" in dafnck("logs", name, "--release", f"{name}-local-2").stdout
        sick = image_service(name, run={"env": {"HEALTH": "503"}, "start": "2s"})
        assert "0 of 2 replicas ready after 2s (run: start): /healthz answers 404" in (
            released(sick, "3").reason
        )
        missing = image_service(name, run={"command": "nosuchprogram"})
        assert "exec nosuchprogram failed" in released(missing, "4").reason
        (source / "Dockerfile").write_text("FROM scratch AS app\nCOPY nosuchfile /\n")
        failed = dafnck("release", image_service(name), "--version", "5", check=1)
        assert "nosuchfile" in failed.stderr
        assert f"{name}-local-1 serves" in failed.stderr
    no_request_failed(load)
    alone(stack, dafnck, docker, name, f"{name}-local-1")


def test_a_crashing_canary_is_taken_back(
    stack: Stack, docker: Any, released: Released, dafnck: Dafnck, image_service: ImageService
) -> None:
    name = own_name("crash")
    released(image_service(name), "1")
    # Healthy for a moment, and good for the first look.
    dies = ["/bin/sh", "-c", "(sleep 3; echo I give up; kill -9 $$) & exec /srv/serve"]
    slow = CANARY | {"bake": "60s"}
    ended = released(image_service(name, run={"command": dies}, rollout=slow), "2")
    assert ended.phase is Phase.ROLLED_BACK
    assert "I give up" in ended.reason, dafnck("logs", name, "--release", f"{name}-local-2").stdout
    alone(stack, dafnck, docker, name, f"{name}-local-1")


@pytest.mark.skipif(os.geteuid() != 0, reason="kills a container's process: root alone may")
def test_a_killed_replica_comes_back_and_the_others_serve(
    stack: Stack, docker: Any, released: Released, dafnck: Dafnck, image_service: ImageService
) -> None:
    name = own_name("kill")
    released(image_service(name), "1")
    state = docker.inspect_container(f"{name}-local-1.0")["State"]
    os.kill(state["Pid"], signal.SIGKILL)
    assert who_answers(stack, name) in (f"{name}-local-1", "status 502")

    def back() -> bool:
        now = docker.inspect_container(f"{name}-local-1.0")["State"]
        return now["Running"] and now["Pid"] != state["Pid"]

    wait_for(back, "the engine starts it again")
    wait_for(
        lambda: {who_answers(stack, name) for _ in range(20)} == {f"{name}-local-1"}, "all is well"
    )
    alone(stack, dafnck, docker, name, f"{name}-local-1")


def test_an_image_that_fails_its_own_tests_is_not_started(
    stack: Stack, docker: Any, released: Released, dafnck: Dafnck, image_service: ImageService
) -> None:
    name = own_name("tested")
    case = "<testcase classname='shop' name='serves'"
    report = f'echo "<testsuite>{case}%s</testsuite>" > {{junit}}; test -x /srv/serve'
    good = [{"name": "unit", "command": report % "/>"}]
    assert released(image_service(name, tests=good), "1").phase is Phase.PROMOTED
    bad = [{"name": "unit", "command": report % "><failure message='no'/></testcase>"}]
    refused = released(image_service(name, tests=bad), "2")
    assert refused.phase is Phase.FAILED
    assert "shop.serves" in refused.reason
    assert running(docker, name) == {f"{name}-local-1.0", f"{name}-local-1.1"}
    alone(stack, dafnck, docker, name, f"{name}-local-1")


def test_an_engine_that_is_away_costs_nothing_that_serves(
    stack: Stack,
    docker: Any,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    image_service: ImageService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = own_name("away")
    released(image_service(name), "1")
    with under_load(stack, name) as load, monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        failed = released(image_service(name), "2")
        assert failed.phase is Phase.FAILED
        assert "does not answer" in failed.reason
        assert "systemctl start docker" in failed.reason
        seen = dafnck("status").stdout
        assert "unknown: the Docker engine" in seen
        findings = {f["part"]: f for f in json.loads(dafnck("doctor", "--json", check=None).stdout)}
        assert findings["Docker engine"]["fix"] == "systemctl start docker"
    no_request_failed(load)
    alone(stack, dafnck, docker, name, f"{name}-local-1")


def test_old_releases_are_pruned_with_their_images(
    stack: Stack, docker: Any, released: Released, dafnck: Dafnck, image_service: ImageService
) -> None:
    name = own_name("prune")
    for number in range(1, 5):
        released(image_service(name, rollout={"keep": 1}), number)
    found = docker.containers(all=True, filters={"label": f"dafnck.service={name}"})
    left = {one["Labels"]["dafnck.release"] for one in found}
    assert left == {f"{name}-local-3", f"{name}-local-4"}
    assert {p.name for p in stack.releases.glob(f"{name}-*")} == left
    alone(stack, dafnck, docker, name, f"{name}-local-4")


def test_a_service_moves_from_processes_to_containers_and_back(
    stack: Stack,
    docker: Any,
    released: Released,
    dafnck: Dafnck,
    service: Callable[..., Path],
    image_service: ImageService,
) -> None:
    name = own_name("moves")
    released(service(name), "1")
    with under_load(stack, name) as load:
        assert released(image_service(name), "2").phase is Phase.PROMOTED
        alone(stack, dafnck, docker, name, f"{name}-local-2")
        dafnck("rollback", name)
    no_request_failed(load)
    assert {who_answers(stack, name) for _ in range(10)} == {f"{name}-local-1"}
    assert running(docker, name) == set()


def test_down_stops_containers_and_up_brings_them_back(
    stack: Stack, docker: Any, released: Released, dafnck: Dafnck, image_service: ImageService
) -> None:
    name = own_name("updown")
    released(image_service(name), "1")
    said: list[str] = []
    local_stack.down(stack, said.append)
    try:
        assert running(docker, name) == set()
        assert any("stopped the containers of" in words for words in said)
    finally:
        local_stack.up(stack.home, stack.ports, said.append)
    wait_for(lambda: who_answers(stack, name) == f"{name}-local-1", "it serves again")
    alone(stack, dafnck, docker, name, f"{name}-local-1")


@pytest.mark.timeout(300)
def test_an_image_from_a_commit_and_a_tag_that_moved(
    stack: Stack,
    ledger: Ledger,
    docker: Any,
    registry: str,
    released: Released,
    dafnck: Dafnck,
    image_service: ImageService,
) -> None:
    name = own_name("tagged")
    file = image_service(name, build={"push": f"{registry}/{name}"})
    git(file.parent, "init", "-q")
    at = commit(file.parent)
    done = dafnck("release", file.name, "--git", f"file://{file.parent}", "--commit", at)
    assert f"{name}-local-1 ({at[:12]}) serves" in done.stdout
    told = json.loads(dafnck("verify", f"{name}-local-1", "--json").stdout)
    assert {link["name"]: link["ok"] for link in told} == {
        "commit": True,
        "build": True,
        "signature": True,
        "artifact": True,
        "SBOM": None,
        "object store": True,
        "image": True,
        "replica-0": True,
        "replica-1": True,
    }

    image = read_image(stack.artifacts / ledger.release(f"{name}-local-1").artifact)
    assert image is not None
    assert docker.inspect_image(image.id)["Config"]["Labels"] == {
        "of": "tests",
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.source": f"file://{file.parent}",
        "org.opencontainers.image.revision": at,
        "org.opencontainers.image.version": at[:7],
        "org.opencontainers.image.created": "2026-01-02T03:04:05+00:00",
    }
    other = docker.import_image_from_data(b"", repository=f"{registry}/{name}", tag="other")
    moved = json.loads(other.splitlines()[-1])["status"]
    docker.tag(moved, image.repository, image.tag.rpartition(":")[2])
    docker.push(image.repository, tag=image.tag.rpartition(":")[2])
    again = dafnck(
        "release", file.name, "--git", f"file://{file.parent}", "--commit", at, check=1
    ).stderr
    assert f"{image.tag} is another image now" in again
    assert "nothing was started" in again
    assert who_answers(stack, name) == f"{name}-local-1"
    shown = dafnck("verify", f"{name}-local-1", check=1).stdout
    assert "BAD image" in shown
    remove_image(docker, moved)
