"""Images: built and pushed by the real engine to a real registry, pinned by digest, cached."""

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_for
from docker_fixtures import REGISTRY, remove_image

from blocks.builder import Builder
from blocks.docker_engine import docker_command, refusal
from blocks.images import Images, read_image
from blocks.stack import listens
from blocks.steps import BuildFailed
from policy.errors import BadInput, NotAllowed, NotApplied, Refused, Unreachable
from policy.image import Image
from policy.service_file import Build

pytestmark = pytest.mark.live


@pytest.fixture
def builder(docker: Any, tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "home" / "artifacts")
    yield builder
    builder.remove_unused(set(), idle_seconds=0)
    builder.remove_half_built()
    left = [read_image(path.parent) for path in (tmp_path / "home").glob("artifacts/*/image.json")]
    assert not left, "what a test builds it removes"


def way(**keys: Any) -> Build:
    within = keys.pop("within", "2m")
    return Build.model_validate({"image": {"target": "app", **keys}, "within": within})


def built(builder: Builder, source: Path, **keys: Any) -> tuple[str, Image]:
    digest, _ = builder.build(way(**keys), source)
    image = builder.image_of(digest)
    assert image
    return digest, image


def ran(docker: Any, image: Image, *command: str) -> str:
    """What a program of the image prints."""
    made = docker.create_container(image.reference, entrypoint=[command[0]], command=command[1:])
    try:
        docker.start(made["Id"])
        docker.wait(made["Id"])
        return str(docker.logs(made["Id"]).decode())
    finally:
        docker.remove_container(made["Id"], force=True)


def test_an_image_is_an_artifact_pinned_by_its_id(
    docker: Any, builder: Builder, source: Path
) -> None:
    digest, image = built(builder, source, args={"WORDS": "hello world"})
    held = docker.inspect_image(image.id)
    assert image.reference == image.id == image.digest == held["Id"]
    assert image.tag in held["RepoTags"]
    assert builder.size_bytes(digest) == image.size_bytes == held["Size"] > 10**6
    assert Images(builder.scratch).digest_now(image.tag) == image.digest
    assert ran(docker, image, "/bin/sh", "-c", "echo $GREETING") == "hello world\n"
    marker = json.loads((builder.folder(digest) / "artifact.json").read_text())
    assert marker["build"]["image"]["args"] == {"WORDS": "hello world"}
    assert builder.build(way(args={"WORDS": "hello world"}), source) == (digest, True)
    assert not (builder.folder(digest) / "work").exists()


def test_another_argument_target_or_file_is_another_artifact(
    builder: Builder, source: Path
) -> None:
    first, image = built(builder, source)
    other, its = built(builder, source, args={"WORDS": "x"})
    stage, earlier = built(builder, source, target="tested")
    assert len({first, other, stage}) == len({image.id, its.id, earlier.id}) == 3
    (source / "serve").write_text("#!/bin/sh\n")
    assert built(builder, source)[0] not in (first, other, stage)


def test_labels_say_where_it_comes_from(docker: Any, builder: Builder, source: Path) -> None:
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    at = {"GIT_COMMITTER_DATE": "2025-01-01T00:00:00Z", "GIT_AUTHOR_DATE": "2024-02-03T04:05:06Z"}
    subprocess.run([*git, "commit", "-qm", "x"], check=True, env={**os.environ, **at})
    remote = "https://somebody:geheim@git.example.org/shop.git"
    subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    _, image = built(builder, source)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    said = docker.inspect_image(image.id)["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert {key.removeprefix(prefix): v for key, v in said.items() if key.startswith(prefix)} == {
        "title": "image",
        "source": "https://git.example.org/shop.git",
        "revision": head,
        "version": head[:7],
        "created": "2024-02-03T04:05:06+00:00",
    }
    assert said["of"] == "tests", "those of the Dockerfile stay"


def test_without_git_there_is_a_title_alone(docker: Any, builder: Builder, source: Path) -> None:
    _, image = built(builder, source)
    said = docker.inspect_image(image.id)["Config"]["Labels"]
    assert said == {"of": "tests", "org.opencontainers.image.title": "image"}


def test_a_pushed_image_is_pinned_by_digest_and_pulled_by_it(
    docker: Any, builder: Builder, source: Path, registry: str
) -> None:
    digest, image = built(builder, source, push=f"{registry}/team/shop")
    images = Images(builder.scratch)
    assert image.reference == f"{registry}/team/shop@{image.digest}"
    assert image.digest != image.id
    assert image.tag == f"{registry}/team/shop:{digest[:12]}"
    assert images.digest_now(image.tag) == images.digest_now(image.reference) == image.digest
    remove_image(docker, image.id)
    assert not images.held(image)
    assert builder.build(way(push=f"{registry}/team/shop"), source) == (digest, True)
    assert docker.inspect_image(image.reference)["Id"] == image.id


def test_a_tag_that_moved_is_noticed(
    docker: Any, builder: Builder, source: Path, registry: str
) -> None:
    _, image = built(builder, source, push=f"{registry}/moved")
    _, other = built(builder, source, push=f"{registry}/moved", args={"WORDS": "other"})
    repository, _, tag = image.tag.rpartition(":")
    docker.tag(other.id, repository, tag)
    docker.push(repository, tag)
    images = Images(builder.scratch)
    assert images.digest_now(image.tag) == other.digest != image.digest
    assert images.digest_now(image.reference) == image.digest, "what is pinned stays"
    with pytest.raises(NotApplied, match=f"there is no image {registry}/moved:nosuch"):
        images.digest_now(f"{registry}/moved:nosuch")


def test_a_lost_image_that_was_pushed_nowhere_is_built_again(
    docker: Any, builder: Builder, source: Path
) -> None:
    digest, image = built(builder, source)
    remove_image(docker, image.id)
    assert builder.build(way(), source) == (digest, False)
    again = builder.image_of(digest)
    assert again
    assert Images(builder.scratch).held(again)


def test_the_archive_is_there_for_the_body(builder: Builder, source: Path) -> None:
    digest, image = built(builder, source)
    with builder.image_archive(digest) as archive:
        assert archive
        with tarfile.open(archive) as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert image.id.removeprefix("sha256:") in manifest[0]["Config"]
    assert not archive.exists()
    files, _ = builder.build(Build.model_validate({"command": "cp serve {out}"}), source)
    assert builder.image_of(files) is None
    with builder.image_archive(files) as none:
        assert none is None


def test_secrets_are_mounted_and_stay_nowhere(
    docker: Any,
    builder: Builder,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not docker_command().buildkit:
        pytest.skip(f"{docker_command().program} cannot use BuildKit: install docker-buildx")
    monkeypatch.setenv("NPM_TOKEN", "geheim-one\ngeheim-two")
    (source / "token").write_text("geheim-three\n")
    (source / ".dockerignore").write_text("token\n")
    # Not a layer that an earlier run left: that had no secrets to read.
    words = f"ENV NOW={time.time()}\nRUN --mount=type=secret,id=npm --mount=type=secret,id=file "
    count = 'sh -c "cat /run/secrets/npm /run/secrets/file; cat /run/secrets/* | wc -c > /count"'
    text = (source / "Dockerfile").read_text().replace("FROM tools AS tested", f"{words}{count}\n$")
    (source / "Dockerfile").write_text(text.replace("$", "FROM tools AS tested", 1))
    place = {"npm": "$NPM_TOKEN", "file": "token"}
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "token").write_text("geheim-three\n")
    (source / "token").unlink()
    build = Build.model_validate(
        {"source": str(source), "image": {"target": "app", "secrets": place}}
    )
    digest, _ = builder.build(build, outside)
    image = builder.image_of(digest)
    assert image
    assert ran(docker, image, "/bin/cat", "/count") == "34\n", "the build had them"
    log = (tmp_path / "home" / "artifacts" / f"{digest}.log").read_text()
    assert "***" in log
    with builder.image_archive(digest) as archive:
        assert archive
        saved = archive.read_bytes()
        for content in (saved, *(p.read_bytes() for p in (tmp_path / "home").rglob("*.json"))):
            assert b"geheim" not in content
    assert "geheim" not in log
    assert "geheim" not in json.dumps(docker.history(image.id))
    monkeypatch.setenv("NPM_TOKEN", "another")
    assert builder.build(build, outside) == (digest, True), "a new password is no new artifact"
    monkeypatch.delenv("NPM_TOKEN")
    (source / "serve").write_text("x")
    with pytest.raises(BadInput, match=r"npm: \$NPM_TOKEN is not set"):
        builder.build(build, outside)


def test_without_buildkit_secrets_are_refused_and_the_rest_is_built(
    docker: Any, builder: Builder, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A docker command from 23 on, without the plugin: here around whichever there is."""
    old = tmp_path / "bin" / "docker"
    old.parent.mkdir()
    real = docker_command().program
    old.write_text(
        '#!/bin/sh\ncase "$*" in *buildx*) exit 1;; --version) echo Docker version 28.1.0;; '
        f'*) exec {real} "$@";; esac\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent))
    docker_command.cache_clear()
    try:
        (source / "token").write_text("geheim")
        with pytest.raises(Refused, match=r"build\.image\.secrets: needs BuildKit"):
            builder.build(way(secrets={"token": "token"}), source)
        digest, image = built(builder, source)
        assert docker_command().buildkit == ""
    finally:
        docker_command.cache_clear()
    assert docker.inspect_image(image.id)
    assert "Step 1/" in (tmp_path / "home" / "artifacts" / f"{digest}.log").read_text()
    docker.prune_images({"dangling": True, "label": ["of=tests"]})


def test_what_a_killed_build_left_is_removed(
    docker: Any, builder: Builder, source: Path, tmp_path: Path
) -> None:
    digest, image = built(builder, source)
    folder = builder.folder(digest)
    name = f"dafnck/{image.tag.partition('/')[2]}"
    for file in ("artifact.json", "image.json"):
        (folder / file).unlink()
    (folder / "tags").write_text(f"{name}\n{name}x\n")
    assert builder.remove_half_built() == [digest]
    assert not Images(builder.scratch).held(image)


def test_a_broken_build_shows_its_last_lines(builder: Builder, source: Path) -> None:
    (source / "Dockerfile").write_text(
        "FROM scratch AS app\nCOPY busybox /busybox\n"
        'RUN ["/busybox", "sh", "-c", "/busybox seq 1000; echo the reason; exit 3"]\n'
    )
    with pytest.raises(BuildFailed) as failed:
        builder.build(way(), source)
    said = str(failed.value)
    assert "the build failed: docker ended with" in said
    assert "the reason" in said
    assert "exit code: 3" in said or "returned a non-zero code: 3" in said
    assert len(said.splitlines()) < 20


def test_a_build_that_hangs_is_ended(docker: Any, builder: Builder, source: Path) -> None:
    (source / "Dockerfile").write_text(
        'FROM scratch AS app\nCOPY busybox /busybox\nRUN ["/busybox", "sleep", "61"]\n'
    )
    with pytest.raises(BuildFailed, match="did not end within 3s"):
        builder.build(way(within="3s"), source)

    def gone() -> bool:
        listed = subprocess.check_output(["ps", "-eo", "args"], text=True)
        return "/busybox sleep 61" not in listed

    wait_for(gone, "the engine ends what nobody waits for")


def test_what_is_wrong_with_the_base_image_is_said(
    builder: Builder, source: Path, registry: str, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(source, tmp_path / "base"))

    def building_on(name: str) -> str:
        (source / "Dockerfile").write_text(f"FROM {name} AS app\n")
        with pytest.raises(BuildFailed) as failed:
            builder.build(way(), source)
        return str(failed.value)

    assert building_on(f"{registry}/nosuch:1").startswith(
        f"the base image {registry}/nosuch:1 is not found, or not for us to see; nothing was"
    )
    _, image = built(builder, base, push=f"{registry}/base")
    said = building_on(f"{image.tag} AS x\nRUN nosuchprogram\nFROM x")
    assert "the build failed: docker ended with" in said
    assert "nosuchprogram: not found" in said
    (source / "Dockerfile").write_text("FROM 127.0.0.1:1/away:1 AS app\n")
    with pytest.raises(Unreachable, match="the registry does not answer: could not build"):
        builder.build(way(), source)


def test_a_registry_that_is_away_or_refuses(builder: Builder, source: Path, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"could not push to 127\.0\.0\.1:1/shop"):
        builder.build(way(push="127.0.0.1:1/shop"), source)
    port = free_port()
    (tmp_path / "users").touch()
    (tmp_path / "config.yml").write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/users}}}}\n"
    )
    with (tmp_path / "log").open("w") as log:
        closed = subprocess.Popen(
            [REGISTRY, "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: listens(port), "the registry")
        with pytest.raises(NotAllowed, match=f"could not push to 127.0.0.1:{port}/shop") as refused:
            builder.build(way(push=f"127.0.0.1:{port}/shop"), source)
        assert "docker login" in str(refused.value)
    finally:
        closed.terminate()
        closed.wait()


def test_an_engine_that_is_away(
    builder: Builder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        docker_command.cache_clear()
        with pytest.raises(Unreachable, match=r"nowhere.* does not answer.*systemctl start docker"):
            builder.build(way(), source)
    docker_command.cache_clear()
    assert builder.build(way(), source)[1] is False


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("write /var/lib/docker/x: no space left on device", NotApplied, "disk .* is full"),
        ("denied: requested access to the resource is denied", NotAllowed, "docker login"),
        ("unauthorized: authentication required", NotAllowed, "docker login"),
        ("dial tcp: lookup r.example on 10.0.0.1:53: no such host", Unreachable, "not answer"),
        ("net/http: request canceled (Client.Timeout exceeded while", Unreachable, "not answer"),
        ("Cannot connect to the Docker daemon at unix:///x.", Unreachable, "systemctl start"),
        (
            "permission denied while trying: error during connect",
            NotAllowed,
            "group",
        ),
    ],
)
def test_refusals_say_what_can_be_done(said: str, kind: type, words: str) -> None:
    error = refusal("push to r.example/shop", said)
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


def test_images_go_with_their_artifact_but_not_while_a_container_uses_them(
    docker: Any, builder: Builder, source: Path
) -> None:
    used, image = built(builder, source)
    idle, other = built(builder, source, args={"WORDS": "idle"})
    made = docker.create_container(image.id)
    docker.start(made["Id"])
    try:
        assert builder.remove_unused(set(), idle_seconds=0) == [idle]
        images = Images(builder.scratch)
        assert images.held(image)
        assert not images.held(other)
        assert builder.build(way(), source) == (used, True)
    finally:
        docker.remove_container(made["Id"], force=True)
    assert builder.remove_unused(set(), idle_seconds=0) == [used]
    assert not images.held(image)


def test_a_dockerfile_outside_of_the_source_is_bad_input(builder: Builder, source: Path) -> None:
    with pytest.raises(BadInput, match=r"build\.image\.dockerfile: other is not part"):
        builder.build(way(dockerfile="other"), source)
