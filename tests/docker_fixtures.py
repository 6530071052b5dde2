"""A Docker engine, a registry on loopback, and an image that needs nothing to be pulled."""

import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from blocks import docker_engine
from blocks.stack import listens

BUSYBOX = Path("/bin/busybox")
REGISTRY = "docker-registry"
RELEASED: set[str] = set()  # names of services, by all tests of this process

# Serves the id of its release, or errors. What it writes it writes to /tmp: the rest is read-only.
SERVE = """#!/bin/sh
echo "$0 begins as $(id -u) with $GREETING"
mkdir /tmp/www && echo -n "$DAFNCK_RELEASE" > /tmp/www/index.html
test "$HEALTH" = 503 || echo good > /tmp/www/healthz
test -z "$DIE" || { echo "no database"; exit 3; }
test -z "$FAIL" || exec httpd -f -p "$PORT" -h /srv/fail
exec httpd -f -p "$PORT" -h /tmp/www
"""
ERROR = """#!/bin/sh
printf 'Status: 500 broken\\r\\nContent-Type: text/plain\\r\\n\\r\\nbroken'
"""
DOCKERFILE = """FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
FROM tools AS tested
COPY serve /srv/serve
COPY fail /srv/fail
WORKDIR /srv
FROM tested AS app
ARG WORDS=none
ENV GREETING=$WORDS
LABEL of=tests
CMD ["/srv/serve"]
"""


@pytest.fixture(scope="session")
def docker() -> Iterator[Any]:
    """The engine's API; the tests are skipped where none answers."""
    if trouble := docker_engine.answers():
        pytest.skip(trouble)
    yield docker_engine.engine()
    # Not by each test: a stack that is brought up again brings back all that was ever released.
    remove_containers(docker_engine.engine(), *RELEASED)


@pytest.fixture(scope="session")
def registry(docker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback, which engines trust without TLS. -> host:port"""
    from conftest import free_port, wait_for

    if not shutil.which(REGISTRY):
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([REGISTRY, "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_for(lambda: listens(port), "the registry")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def image_source(folder: Path) -> Path:
    """Write what the test image is built from. -> the folder"""
    shutil.copy2(BUSYBOX, folder / "busybox")
    # Another image for each test: what one removes is no other's.
    (folder / "serve").write_text(f"{SERVE}# {secrets.token_hex(8)}\n")
    (folder / "serve").chmod(0o755)
    # What httpd runs for a folder without an index.
    (folder / "fail" / "cgi-bin").mkdir(parents=True)
    (folder / "fail" / "cgi-bin" / "index.cgi").write_text(ERROR)
    (folder / "fail" / "cgi-bin" / "index.cgi").chmod(0o755)
    (folder / "fail" / "healthz").write_text("good")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    if not BUSYBOX.exists():
        pytest.skip("busybox is not installed: apt-get install busybox-static")
    folder = tmp_path / "image"
    folder.mkdir()
    return image_source(folder)


@pytest.fixture
def image_service(docker: Any, source: Path) -> Callable[..., Path]:
    """Write a service file of the test image, with these parts laid over. -> its path. What is
    released by it is removed when all tests are over."""

    def write(name: str, **parts: Any) -> Path:
        RELEASED.add(name)
        quick = {"drain": "5s", "grace": "2s", "start": "20s", "env": {}, "replicas": 2}
        document = {
            "version": 1,
            "service": name,
            "platform": "docker",
            "rollout": {"strategy": "blue-green"},
            **parts,
            "build": {"image": {"target": "app"} | parts.get("build", {})},
            "run": {"port": 8000, "health": "/healthz"} | quick | parts.get("run", {}),
        }
        with (source / "dafnck.yaml").open("w") as text:
            YAML().dump(document, text)
        return source / "dafnck.yaml"

    return write


def remove_containers(docker: Any, *services: str) -> None:
    for service in set(services):
        found = docker.containers(all=True, filters={"label": f"dafnck.service={service}"})
        images = {one["ImageID"] for one in found}
        for one in found:
            docker.remove_container(one["Id"], force=True, v=True)
        for image in images:
            remove_image(docker, image)


def remove_image(docker: Any, image: str) -> None:
    from blocks.docker_errors import NotFound

    try:
        docker.remove_image(image, force=True)
    except NotFound:
        return


def own_name(name: str) -> str:
    """Names of containers are the engine's, and runs of tests may meet there."""
    return f"{name}{secrets.token_hex(3)}"
