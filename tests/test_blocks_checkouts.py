"""Sources from git: the commit that was asked for, clean, with submodules, or one clear line."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from blocks.builder import Builder
from blocks.checkouts import Checkouts, revision, without_secret
from blocks.git_source import checked_url
from policy.errors import BadInput, NotAllowed, Refused, Unreachable
from policy.service_file import Build

AUTHOR = {
    "GIT_AUTHOR_NAME": "Anna",
    "GIT_AUTHOR_EMAIL": "anna@example.org",
    "GIT_COMMITTER_NAME": "Ben",
    "GIT_COMMITTER_EMAIL": "ben@example.org",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "protocol.file.allow=always", *words],
        env={**os.environ, **AUTHOR},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(folder: Path, message: str = "a change") -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "app.py").write_text("print('one')\n")
    (folder / "dafnck.yaml").write_text("version: 1\n")
    commit(folder)
    return folder


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    return Checkouts(tmp_path / "checkouts")


def test_the_commit_and_nothing_else(checkouts: Checkouts, repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    (repository / "app.py").write_text("print('two')\n")
    second = commit(repository)
    (repository / "app.py").write_text("print('not committed')\n")
    url = f"file://{repository}"
    assert (checkouts.checkout(url, first) / "app.py").read_text() == "print('one')\n"
    assert (checkouts.checkout(url, second) / "app.py").read_text() == "print('two')\n"
    told = revision(checkouts.checkout(url, first))
    assert (told.uri, told.commit, told.dirty) == (url, first, False)
    assert told.author == "Anna <anna@example.org>"
    assert told.authored_at == 1767323045.0


def test_a_commit_that_no_branch_points_at_any_more(checkouts: Checkouts, repository: Path) -> None:
    (repository / "app.py").write_text("print('two')\n")
    lost = commit(repository)
    git(repository, "reset", "-q", "--hard", "HEAD~1")
    assert "two" in (checkouts.checkout(f"file://{repository}", lost) / "app.py").read_text()


def test_a_second_checkout_needs_no_repository(checkouts: Checkouts, repository: Path) -> None:
    at, url = git(repository, "rev-parse", "HEAD"), f"file://{repository}"
    first = checkouts.checkout(url, at)
    repository.rename(repository.with_name("away"))
    assert checkouts.checkout(url, at) == first


def test_submodules_are_there_and_part_of_the_artifact(
    checkouts: Checkouts, repository: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "code.py").write_text("ONE = 1\n")
    commit(library)
    git(repository, "submodule", "--quiet", "add", f"file://{library}", "lib")
    first = commit(repository)
    (library / "code.py").write_text("ONE = 2\n")
    inner = commit(library)
    git(repository / "lib", "fetch", "-q")
    git(repository / "lib", "checkout", "-q", inner)
    second = commit(repository)
    builder = Builder(tmp_path / "artifacts")
    build = Build.model_validate({"command": "cp -r lib {out}"})
    digests = []
    for at, says in ((first, "ONE = 1\n"), (second, "ONE = 2\n")):
        folder = checkouts.checkout(f"file://{repository}", at)
        digest, _ = builder.build(build, folder)
        assert (builder.folder(digest) / "app" / "lib" / "code.py").read_text() == says
        digests.append(digest)
    assert digests[0] != digests[1]


def test_a_service_file_that_says_something_else(checkouts: Checkouts, repository: Path) -> None:
    at, url = git(repository, "rev-parse", "HEAD"), f"file://{repository}"
    plain = checkouts.service_file(url, at, "dafnck.yaml")
    same = checkouts.service_file(url, at, "dafnck.yaml", "version: 1\n")
    other = checkouts.service_file(url, at, "dafnck.yaml", "version: 1  # by hand\n")
    assert plain.read_text() == same.read_text() == "version: 1\n"
    assert other.read_text() == "version: 1  # by hand\n"
    assert revision(other.parent).dirty
    assert not revision(same.parent).dirty


@pytest.mark.parametrize("name", ["/etc/passwd", "../dafnck.yaml", "link/dafnck.yaml"])
def test_a_service_file_outside_of_the_repository(
    checkouts: Checkouts, repository: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "outside").mkdir()
    (repository / "link").symlink_to(tmp_path / "outside")
    at = commit(repository)
    with pytest.raises(BadInput):
        checkouts.service_file(f"file://{repository}", at, name, "version: 1\n")
    assert not (tmp_path / "outside" / "dafnck.yaml").exists()


@pytest.mark.parametrize("at", ["main", "HEAD", "abc123", "--upload-pack=evil", ""])
def test_only_whole_commit_ids(checkouts: Checkouts, repository: Path, at: str) -> None:
    with pytest.raises(BadInput, match="the full id"):
        checkouts.checkout(f"file://{repository}", at)


def test_what_went_wrong_is_told(
    checkouts: Checkouts, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="has no such commit"):
        checkouts.checkout(f"file://{repository}", "0" * 40)
    with pytest.raises(Refused, match="there is no repository"):
        checkouts.checkout(f"file://{tmp_path}/nothing", "0" * 40)
    with pytest.raises(Unreachable, match="cannot fetch"):
        checkouts.checkout("http://127.0.0.1:9/x.git", "0" * 40)
    assert not list((tmp_path / "checkouts").glob("*/src"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="no git on this machine"):
        checkouts.checkout(f"file://{repository}", "0" * 40)


def test_a_repository_that_asks_for_a_password(checkouts: Checkouts) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Closed) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(NotAllowed, match="does not let this worker in"):
            checkouts.checkout(f"http://127.0.0.1:{server.server_port}/x.git", "0" * 40)
        server.shutdown()


@pytest.mark.parametrize(
    "url", ["https://anna:s3cret@host/x.git", "https://s3cret@host/x.git", "ssh://a:s3cret@h/x"]
)
def test_no_secret_is_taken_or_told(url: str) -> None:
    with pytest.raises(BadInput) as refused:
        checked_url(url, "git")
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in without_secret(url)


@pytest.mark.parametrize("url", ["--upload-pack=x", "ext::sh -c id", "", "http://host/x?token=1"])
def test_what_git_would_take_for_something_else(checkouts: Checkouts, url: str) -> None:
    with pytest.raises(BadInput):
        checkouts.checkout(url, "0" * 40)


@pytest.mark.parametrize("url", ["git@host:a/b.git", "ssh://git@host/a", "https://host/a"])
def test_ordinary_urls(url: str) -> None:
    assert checked_url(url, "git") == url


def test_unused_checkouts_go(checkouts: Checkouts, repository: Path, tmp_path: Path) -> None:
    at, url = git(repository, "rev-parse", "HEAD"), f"file://{repository}"
    used = checkouts.service_file(url, at, "dafnck.yaml")
    idle = checkouts.service_file(url, at, "dafnck.yaml", "version: 1 # other\n")
    fresh = checkouts.service_file(url, at, "dafnck.yaml", "version: 1 # fresh\n")
    for file in (used, idle):
        os.utime(file.parents[1] / "used", (time.time() - 7200,) * 2)
    checkouts.remove_unused({str(used.parent)})
    assert [used.exists(), idle.exists(), fresh.exists()] == [True, False, True]


def test_an_empty_content_spoils_nothing(checkouts: Checkouts, repository: Path) -> None:
    at, url = git(repository, "rev-parse", "HEAD"), f"file://{repository}"
    with pytest.raises(BadInput, match="its content is empty"):
        checkouts.service_file(url, at, "dafnck.yaml", "")
    assert checkouts.service_file(url, at, "dafnck.yaml").read_text() == "version: 1\n"


def test_a_repository_elsewhere_takes_nothing_of_this_machine(
    checkouts: Checkouts, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its submodules may not be folders of the worker. ssh is played by a script."""
    private = tmp_path / "private"
    private.mkdir()
    git(private, "init", "-q")
    (private / "secret").write_text("geheim")
    commit(private)
    git(repository, "submodule", "--quiet", "add", str(private), "lib")
    at = commit(repository)
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec git-upload-pack {repository}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    with pytest.raises(Unreachable, match="not allowed"):
        checkouts.checkout("git@host:shop.git", at)
    assert not list((tmp_path / "checkouts").rglob("secret"))
