"""What `dafnck trigger` asks for, and what it makes of answers. No servers."""

from dataclasses import replace
from pathlib import Path

import pytest
from ci_job import git

from blocks.git_source import GitSource, git_source
from blocks.remote_prefect import remote_prefect
from deployments.tell import plain
from deployments.trigger import Wish
from policy.errors import (
    BadInput,
    DafnckError,
    Frozen,
    NotAllowed,
    Refused,
    RolledBack,
    Unreachable,
    exit_code_of,
    state_name,
)

COMMIT = "a" * 40
WISH = Wish("release", "local", "shop", "prod", "1", GitSource("file:///x", COMMIT, "f"), "text")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Refused("x"), "Refused"),
        (NotAllowed("x"), "Refused"),
        (Frozen("x"), "Refused"),
        (RolledBack("x"), "RolledBack"),
        (BadInput("x"), "BadInput"),
        (Unreachable("x"), "Failed"),
    ],
)
def test_an_error_comes_back_as_its_exit_code(error: DafnckError, name: str) -> None:
    assert state_name(error) == name
    assert exit_code_of("FAILED", state_name(error)) == error.exit_code


def test_other_ends_have_exit_codes() -> None:
    assert exit_code_of("COMPLETED", "Completed") == 0
    assert exit_code_of("CANCELLED", "Cancelled") == 1
    assert exit_code_of("CRASHED", "Crashed") == 3
    assert exit_code_of("FAILED", "TimedOut") == 3
    assert exit_code_of("CRASHED", "Refused") == 3, "a crash is nobody's answer"


def test_every_difference_makes_another_run() -> None:
    assert WISH.key == replace(WISH).key
    others = {
        "deployment": "eu",
        "service": "x",
        "environment": "x",
        "version": "2",
        "content": "x",
        "freeze_override": "x",
        "source": GitSource("file:///x", "b" * 40, "f"),
    }
    keys = {replace(WISH, **{part: value}).key for part, value in others.items()}  # type: ignore[arg-type]
    assert len(keys | {WISH.key}) == len(others) + 1


def test_a_pipeline_knows_no_freeze() -> None:
    pipeline = replace(WISH, flow="pipeline").parameters("ada")
    assert set(WISH.parameters("ada")) - set(pipeline) == {"freeze_override", "image"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "dafnck.yaml").write_text("text\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path / "dafnck.yaml"


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/a.git",
        "git@git.example.com:a/b.git",
        "ssh://git@git.example.com:2222/a.git",
        "file:///srv/a.git",
    ],
)
def test_plain_urls_are_taken(file: Path, url: str) -> None:
    assert git_source(file, url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:s3cr3t@git.example.com/a.git",
        "https://s3cr3t@git.example.com/a.git",
        "https://:s3cr3t@git.example.com/a.git",
        "ssh://git:s3cr3t@git.example.com/a.git",
        "https://git.example.com/a.git?token=s3cr3t",
        "https://git.example.com/a.git#s3cr3t",
        "ext::sh -c s3cr3t",
        "ftp://s3cr3t/a",
        "--upload-pack=s3cr3t",
        "-oProxyCommand=s3cr3t:x",
        "../s3cr3t.git",
        "https://[s3cr3t",
    ],
)
def test_other_urls_are_refused_and_not_shown(file: Path, url: str) -> None:
    with pytest.raises(BadInput) as refusal:
        git_source(file, url)
    assert "s3cr3t" not in str(refusal.value)


def test_a_path_on_this_machine_becomes_a_url(file: Path) -> None:
    assert git_source(file, "/srv/a.git").url == "file:///srv/a.git"


def test_the_path_is_that_within_the_repository(file: Path) -> None:
    below = file.parent / "services" / "shop"
    below.mkdir(parents=True)
    (below / "dafnck.yaml").write_text("text\n")
    found = git_source(below / "dafnck.yaml", "file:///x")
    assert found.path == "services/shop/dafnck.yaml"
    assert "is not in commit" in found.doubts[0]


def test_doubts_about_the_work_tree_are_told(file: Path) -> None:
    first = git_source(file, "file:///x")
    assert first.doubts == ()
    assert first.here
    other = file.parent / "app.py"
    other.write_text("1\n")
    git(file.parent, "add", ".")
    git(file.parent, "commit", "-qm", "second")
    other.write_text("2\n")
    (file.parent / "untracked").write_text("left by the job")
    assert git_source(file, "file:///x").doubts == (
        "released is the commit, without your changes to app.py",
    )
    past = git_source(file, "file:///x", first.commit)
    assert not past.here
    assert past.commit == git_source(file, "file:///x", "HEAD~1").commit == first.commit


def test_a_short_commit_of_nowhere_is_refused(file: Path) -> None:
    with pytest.raises(BadInput, match="the full id is needed"):
        git_source(file, "file:///x", "deadbee")
    unknown = git_source(file, "file:///x", "DEADBEEF" * 5)  # a shallow clone does not have it
    assert unknown.commit == "deadbeef" * 5


def test_no_remote_is_told(file: Path) -> None:
    with pytest.raises(BadInput, match="name the repository by --git"):
        git_source(file)


def test_lines_of_a_run_command_nobody() -> None:
    assert plain("\x1b[31mred\x1b[0m\a") == "red "
    assert plain("a\r\nb\rc") == "a\nb c"
    assert plain("lone \ud800") == "lone ?"


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://p.example.com/api/", "https://p.example.com/runs/flow-run/1"),
        (
            "https://api.prefect.cloud/api/accounts/a/workspaces/w",
            "https://app.prefect.cloud/account/a/workspace/w/runs/flow-run/1",
        ),
    ],
)
def test_the_link_to_a_run(url: str, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_UI_URL", raising=False)
    with remote_prefect({"PREFECT_API_URL": url}) as api:
        assert api.link("1") == link


def test_a_proxy_of_the_ci_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy that is not there: who asks it gets no answer."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with remote_prefect({"PREFECT_API_URL": "http://prefect.invalid/api"}) as api:
        assert [str(pattern.pattern) for pattern in api._http._mounts] == ["http://"]
    with remote_prefect({"PREFECT_API_URL": "http://127.0.0.1:4200/api"}) as api:
        assert not api._http._mounts


def test_the_command_loads_no_prefect_and_no_ledger(tmp_path: Path) -> None:
    from test_entrypoints import imported_by

    assert not {"prefect", "sqlalchemy"} & imported_by("trigger", str(tmp_path / "none"))
