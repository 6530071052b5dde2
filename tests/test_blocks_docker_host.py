"""Replicas as containers of the real engine: what they may, how they end, what is said of it."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from docker_fixtures import own_name, remove_containers, remove_image
from fakes import a_release

from blocks.builder import Builder
from blocks.by_release import ByRelease
from blocks.docker_host import DockerHost
from blocks.stack import Ports, Stack
from policy.errors import NotApplied, Refused, Unreachable
from policy.release import Endpoints, Release
from policy.service_file import Build, Run

pytestmark = pytest.mark.live
Make = Callable[..., Release]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(home=tmp_path, ports=Ports(), ledger_url="")


@pytest.fixture
def host(stack: Stack) -> DockerHost:
    return DockerHost(stack)


@pytest.fixture
def make(docker: Any, stack: Stack, source: Path) -> Iterator[Make]:
    """Build the image and make a release of it, not started. Keys are those of `run`."""
    name, builder = own_name("host"), Builder(stack.artifacts)

    def write(files: dict[str, bytes] | None = None, **run: Any) -> Release:
        digest, _ = builder.build(Build.model_validate({"image": {"target": "app"}}), source)
        wanted = {"port": 8000, "health": "/healthz", "grace": "1s", **run}
        return a_release(
            1,
            id=f"{name}-test-1",
            service=name,
            artifact=digest,
            platform="docker",
            run=Run.model_validate(wanted),
            files=files or {},
        )

    yield write
    remove_containers(docker, name)
    builder.remove_unused(set(), idle_seconds=0)


def ready(host: DockerHost, release: Release, count: int = 1) -> Endpoints:
    def look() -> Endpoints | None:
        seen = host.endpoints(release.id)
        return seen if len(seen.ready) == count else None

    found: Endpoints = wait_for(look, f"{count} ready: {host.endpoints(release.id).trouble}")
    return found


def inside(docker: Any, release: Release, command: str) -> tuple[int, str]:
    made = docker.exec_create(f"{release.id}.0", ["/bin/sh", "-c", command])
    said = docker.exec_start(made["Id"]).decode()
    return docker.exec_inspect(made["Id"])["ExitCode"], said


def test_a_replica_has_no_privileges_and_nothing_of_our_environment(
    docker: Any, host: DockerHost, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAFNCK_LEDGER_URL", "geheim")
    release = make(
        {"conf/app.ini": b"a = 1\n"},
        env={"URL": "http://localhost:{port}"},
        writable=["/var/cache"],
        limits={"memory": "64M", "processes": 40, "open_files": 300},
    )
    host.start(release, 1)
    seen = ready(host, release)
    assert inside(docker, release, "touch /srv/x")[0] != 0, "the root is read-only"
    assert inside(docker, release, "touch /tmp/x /var/cache/y") == (0, "")
    assert inside(docker, release, "cat conf/app.ini") == (0, "a = 1\n")
    assert inside(docker, release, "echo x > conf/app.ini")[0] != 0
    assert "CapEff:\t0000000000000000" in inside(docker, release, "cat /proc/1/status")[1]
    assert "NoNewPrivs:\t1" in inside(docker, release, "cat /proc/1/status")[1]
    assert inside(docker, release, "ulimit -n") == (0, "300\n")
    said = dict(line.split("=", 1) for line in inside(docker, release, "env")[1].splitlines())
    assert said["URL"] == "http://localhost:8000"
    assert {"PORT", "DAFNCK_RELEASE", "DAFNCK_VERSION", "URL", "GREETING"} <= set(said)
    assert "geheim" not in said.values()
    made = docker.inspect_container(f"{release.id}.0")
    limits = made["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"]) == (64 * 2**20, 40)
    assert limits["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "10m", "max-file": "3"},
    }
    assert "@" in made["Config"]["Image"] or made["Config"]["Image"].startswith("sha256:")
    assert made["Config"]["Labels"]["dafnck.release"] == release.id
    assert made["Config"]["Labels"]["dafnck.service"] == release.service
    listening = subprocess.check_output(["ss", "-Hltn"], text=True)
    port = seen.urls[0].rpartition(":")[2]
    assert f"127.0.0.1:{port}" in listening
    assert f"0.0.0.0:{port}" not in listening


def test_a_command_of_its_own_takes_the_port(docker: Any, host: DockerHost, make: Make) -> None:
    command = (
        "/bin/sh -c 'mkdir /tmp/w; echo {port} > /tmp/w/healthz; httpd -f -p {port} -h /tmp/w'"
    )
    release = make(command=command, port=None)
    host.start(release, 1)
    url = ready(host, release).urls[0]
    with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
        assert answer.read() == b"8080\n"


def test_a_command_asked_inside_says_when_it_is_healthy(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make(health={"command": "/bin/sh -c 'echo not yet; test -e /tmp/good{port}'"})
    host.start(release, 1)
    wait_for(
        lambda: "health command exits 1: not yet" in host.endpoints(release.id).trouble,
        "the command says no",
    )
    inside(docker, release, "touch /tmp/good8000")
    ready(host, release)


def test_the_healthcheck_of_the_image(
    docker: Any, host: DockerHost, make: Make, source: Path
) -> None:
    release = make(health={"healthcheck": "image"})
    with pytest.raises(NotApplied, match="the image has no HEALTHCHECK"):
        host.start(release, 1)
    host.stop(release.id, 1)
    host.remove(release.id)
    text = (source / "Dockerfile").read_text()
    (source / "Dockerfile").write_text(
        f'{text}HEALTHCHECK --interval=1h CMD ["/bin/test", "-e", "/tmp/good"]\n'
    )
    release = make(health={"healthcheck": "image"})
    host.start(release, 1)
    assert not host.endpoints(release.id).ready
    inside(docker, release, "touch /tmp/good")
    ready(host, release)


@pytest.mark.skipif(os.geteuid() != 0, reason="kills a container's process: root alone may")
def test_one_that_dies_comes_back_on_its_port_and_its_last_words_are_known(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make()
    host.start(release, 1)
    urls = ready(host, release).urls
    os.kill(docker.inspect_container(f"{release.id}.0")["State"]["Pid"], signal.SIGKILL)
    wait_for(lambda: host.endpoints(release.id).restarts == 1, "a restart")
    seen = ready(host, release)
    assert seen.urls == urls
    assert seen.last_words == "/srv/serve begins as 0 with none"
    assert not seen.fatal


def test_one_that_ends_again_and_again_is_given_up(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make(env={"DIE": "1"})
    host.start(release, 1)
    seen = wait_for(
        lambda: (seen := host.endpoints(release.id)).fatal and seen, "given up: ends at once"
    )
    assert seen.restarts >= 2
    assert seen.trouble == "restarting: no database"
    assert seen.last_words == "no database"
    host.stop(release.id, 1)
    assert "no database" in [line.text for line in host.log(release.id, 50)], "its log is kept"


def test_out_of_memory_is_said(docker: Any, host: DockerHost, make: Make) -> None:
    eats = "/bin/sh -c 'test {port}; x=1; while true; do x=$x$x; done'"
    release = make(command=eats, limits={"memory": "16M"})
    host.start(release, 1)
    wait_for(lambda: "out of memory" in host.endpoints(release.id).trouble, "the reason")


def test_sigterm_reaches_the_program_and_sigkill_follows(
    docker: Any, host: DockerHost, make: Make
) -> None:
    turning = "while :; do sleep 0.05; done"
    polite = ["/bin/sh", "-c", f'trap "echo ended in order; exit 0" TERM; {turning}', "{port}"]
    release = make(command=polite, grace="20s")
    host.start(release, 1)
    wait_for(lambda: host.endpoints(release.id, quick=True).ready, "it runs")
    began = time.monotonic()
    host.stop(release.id, 20)
    assert time.monotonic() - began < 10
    assert "ended in order" in [line.text for line in host.log(release.id, 5)]
    host.remove(release.id)
    deaf = make(command=["/bin/sh", "-c", f'trap "" TERM; {turning}', "{port}"])
    host.start(deaf, 1)
    wait_for(lambda: host.endpoints(deaf.id, quick=True).ready, "it runs")
    began = time.monotonic()
    host.stop(deaf.id, 1)
    assert 0.9 < time.monotonic() - began < 8
    assert host.endpoints(deaf.id).wanted == 0


def test_connections_are_counted_for_the_drain(docker: Any, host: DockerHost, make: Make) -> None:
    release = make()
    host.start(release, 2)
    seen = ready(host, release, 2)
    assert seen.connections == (0, 0)
    port = int(seen.urls[1].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as held:
        held.sendall(b"GET /healthz HTTP/1.0\r\n")  # and no more: it waits for the rest
        wait_for(lambda: host.endpoints(release.id).connections == (0, 1), "one connection")
    wait_for(lambda: host.endpoints(release.id).connections == (0, 0), "none")


def test_it_keeps_its_port_unless_somebody_took_it(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make()
    host.start(release, 1)
    urls = ready(host, release).urls
    host.stop(release.id, 1)
    host.start(release, 1)
    assert ready(host, release).urls == urls
    host.stop(release.id, 1)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", int(urls[0].rpartition(":")[2])))
        thief.listen()
        host.start(release, 1)
        assert ready(host, release).urls != urls


def test_a_container_that_was_removed_is_missed_and_made_again(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make()
    host.start(release, 2)
    ready(host, release, 2)
    docker.remove_container(f"{release.id}.1", force=True)
    seen = host.endpoints(release.id)
    assert (seen.wanted, len(seen.ready), seen.trouble) == (2, 1, "its container is gone")
    host.start(release, 2)
    ready(host, release, 2)


def test_somebody_elses_container_is_left_alone(
    docker: Any, host: DockerHost, make: Make, stack: Stack
) -> None:
    release = make()
    image = json.loads((stack.artifacts / release.artifact / "image.json").read_text())["id"]
    docker.create_container(image, name=f"{release.id}.0", labels={"of": "somebody"})
    try:
        with pytest.raises(NotApplied, match=r"that is not of this stack; nothing was started"):
            host.start(release, 1)
        host.stop(release.id, 1)
        host.remove(release.id)
        assert docker.inspect_container(f"{release.id}.0")["Config"]["Labels"]["of"] == "somebody"
    finally:
        docker.remove_container(f"{release.id}.0", force=True)


def test_what_cannot_be_started_is_said(
    docker: Any, host: DockerHost, make: Make, stack: Stack
) -> None:
    release = make(command="nosuchprogram {port}")
    host.start(release, 1)
    seen = wait_for(lambda: (seen := host.endpoints(release.id)).fatal and seen, "given up")
    assert "exec nosuchprogram failed: No such file or directory" in seen.trouble
    host.stop(release.id, 1)
    host.remove(release.id)
    release = make()
    pinned = json.loads((stack.artifacts / release.artifact / "image.json").read_text())
    remove_image(docker, pinned["id"])
    with pytest.raises(NotApplied, match="is neither in the engine nor in a registry any more"):
        host.start(release, 1)
    assert host.endpoints(release.id).wanted == 0


def test_an_image_for_another_machine_is_refused(
    docker: Any, host: DockerHost, make: Make, stack: Stack, tmp_path: Path
) -> None:
    release = make()
    path = stack.artifacts / release.artifact / "image.json"
    pinned = json.loads(path.read_text())
    foreign = _for_another_machine(docker, tmp_path)
    path.write_text(json.dumps(pinned | {"reference": foreign, "id": foreign}))
    try:
        with pytest.raises(NotApplied, match="is made for s390x, this machine is"):
            host.start(release, 1)
    finally:
        path.write_text(json.dumps(pinned))
        remove_image(docker, foreign)


def _for_another_machine(docker: Any, folder: Path) -> str:
    """An image without a layer, as `docker load` takes it. -> its id"""
    import hashlib
    import io
    import tarfile

    layer = io.BytesIO()
    tarfile.open(fileobj=layer, mode="w").close()
    content = layer.getvalue()
    config = {
        "architecture": "s390x",
        "os": "linux",
        "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "history": [{"created_by": "tests"}],
    }
    text = json.dumps(config).encode()
    name = hashlib.sha256(text).hexdigest()
    files = {
        f"{name}.json": text,
        "layer.tar": content,
        "manifest.json": json.dumps(
            [{"Config": f"{name}.json", "RepoTags": None, "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tarfile.open(folder / "foreign.tar", "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with (folder / "foreign.tar").open("rb") as archive:
        list(docker.load_image(archive))
    return f"sha256:{name}"


def test_an_engine_that_is_away_is_said_and_nothing_is_forgotten(
    docker: Any, host: DockerHost, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make()
    host.start(release, 1)
    ready(host, release)
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        for act in (
            lambda: host.endpoints(release.id),
            lambda: host.start(release, 2),
            lambda: host.stop(release.id, 1),
        ):
            with pytest.raises(Unreachable, match=r"does not answer .* what runs keeps running"):
                act()
        assert host.running() == [release.id]
    assert ready(host, release).wanted == 1


def test_all_are_stopped_with_the_stack_and_come_back(
    docker: Any, host: DockerHost, make: Make
) -> None:
    release = make()
    host.start(release, 2)
    urls = ready(host, release, 2).urls
    assert host.stop_all() == [release.id]
    seen = host.endpoints(release.id)
    assert (seen.wanted, seen.ready) == (2, ())
    assert host.running() == [release.id]
    host.start(release, 2)
    assert ready(host, release, 2).urls == urls


def test_two_stacks_do_not_touch_each_other(
    docker: Any, host: DockerHost, make: Make, tmp_path: Path
) -> None:
    release = make()
    host.start(release, 1)
    ready(host, release)
    other = DockerHost(Stack(home=tmp_path / "other", ports=Ports(), ledger_url=""))
    assert other.running() == []
    other.stop(release.id, 1)
    other.remove(release.id)
    assert ready(host, release).wanted == 1


def test_several_at_once_start_one_replica_once(
    docker: Any, host: DockerHost, make: Make, stack: Stack
) -> None:
    """As when the guard and `dafnck up` meet."""
    release = make()
    host.start(release, 1)
    docker.remove_container(f"{release.id}.0", force=True)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            DockerHost(stack).start(release, 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    ready(host, release)


def test_each_release_is_on_the_platform_that_it_was_made_for(
    docker: Any, stack: Stack, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make()
    both = ByRelease(stack)
    both._containers.start(release, 1)
    ready(both._containers, release)
    assert both.endpoints(release.id).wanted == 1
    with pytest.raises(Refused, match="still runs"):
        both.remove(release.id)
    both.stop(release.id, 1)
    both.remove(release.id)
    assert not (stack.releases / release.id).exists()
    assert not docker.containers(all=True, filters={"label": f"dafnck.release={release.id}"})
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert both.endpoints("shop-local-1").wanted == 0, "a process never asks the engine"
