"""Artifacts: named by what went in, built once, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.builder import Builder
from blocks.checkouts import version_of
from blocks.steps import BuildFailed
from policy.errors import BadInput
from policy.service_file import Build


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "app.py").write_text("print('hello')\n")
    (folder / "requirements.txt").write_text("six==1.17.0\n")
    (folder / "other.txt").write_text("six==1.16.0\n")
    return folder


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "artifacts")


def build(**keys: object) -> Build:
    return Build.model_validate(keys)


COPY = build(command="cp app.py {out}")


def test_a_command_fills_the_artifact(builder: Builder, source: Path, tmp_path: Path) -> None:
    digest, reused = builder.build(COPY, source)
    artifact = tmp_path / "artifacts" / digest
    assert not reused
    assert (artifact / "app" / "app.py").read_text() == "print('hello')\n"
    assert not (artifact / "work").exists()


def test_the_same_inputs_are_built_once(builder: Builder, source: Path) -> None:
    digest, _ = builder.build(COPY, source)
    assert builder.build(COPY, source) == (digest, True)


@pytest.mark.parametrize("change", ["content", "name", "mode", "command", "requirements"])
def test_another_input_is_another_artifact(builder: Builder, source: Path, change: str) -> None:
    python = build(python={"requirements": "requirements.txt"})
    first, _ = builder.build(python if change == "requirements" else COPY, source)
    way = COPY
    if change == "content":
        (source / "app.py").write_text("print('world')\n")
    elif change == "name":
        (source / "requirements.txt").rename(source / "renamed.txt")
    elif change == "mode":
        (source / "app.py").chmod(0o755)
    elif change == "command":
        way = build(command="cp app.py {out}/")
    else:
        way = build(python={"requirements": "other.txt"})
    second, reused = builder.build(way, source)
    assert second != first
    assert not reused


def test_a_python_application_brings_its_packages(
    builder: Builder, source: Path, tmp_path: Path
) -> None:
    digest, _ = builder.build(build(python={"requirements": "requirements.txt"}), source)
    artifact = tmp_path / "artifacts" / digest
    python = artifact / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", "import six; print(six.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1.17.0\n"


def test_a_broken_build_shows_its_last_lines(builder: Builder, source: Path) -> None:
    with pytest.raises(BuildFailed) as failed:
        builder.build(build(command="seq 100; echo the reason; exit 3 # {out}"), source)
    message = str(failed.value)
    assert "sh ended with 3" in message
    assert "| the reason" in message
    assert "| 80\n" not in message
    assert builder.build(COPY, source)[1] is False


def test_a_broken_build_is_tried_again(builder: Builder, source: Path) -> None:
    once = build(command="test -e app2.py && cp app.py {out}")
    with pytest.raises(BuildFailed):
        builder.build(once, source)
    with pytest.raises(BuildFailed):
        builder.build(once, source)


def test_an_empty_result_is_no_artifact(builder: Builder, source: Path) -> None:
    with pytest.raises(BuildFailed, match=r"left \{out\} empty"):
        builder.build(build(command="true {out}"), source)


def test_a_build_that_hangs_is_ended(builder: Builder, source: Path) -> None:
    with pytest.raises(BuildFailed, match=r"did not end within 0.5s"):
        builder.build(build(command="sleep 60 # {out}", within=0.5), source)


def test_what_was_killed_half_way_is_built_anew(
    builder: Builder, source: Path, tmp_path: Path
) -> None:
    digest, _ = builder.build(COPY, source)
    artifact = tmp_path / "artifacts" / digest
    (artifact / "artifact.json").unlink()
    (artifact / "app" / "rubbish").touch()
    assert builder.build(COPY, source) == (digest, False)
    assert not (artifact / "app" / "rubbish").exists()


def test_secrets_of_ours_do_not_reach_a_build(
    builder: Builder, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "geheim")
    monkeypatch.setenv("DAFNCK_LEDGER_URL", "geheim")
    digest, _ = builder.build(build(command="env > {out}/env"), source)
    assert "geheim" not in (tmp_path / "artifacts" / digest / "app" / "env").read_text()


def test_missing_files_are_bad_input(builder: Builder, source: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.txt is not part of the source"):
        builder.build(build(python={"requirements": "nothing.txt"}), source)
    with pytest.raises(BadInput, match="no directory"):
        builder.build(build(command="x {out}", source="nowhere"), source)


def test_git_decides_what_is_source(builder: Builder, source: Path, tmp_path: Path) -> None:
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    (source / ".gitignore").write_text("*.log\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    first, _ = builder.build(COPY, source)
    (source / "noise.log").write_text("x")
    assert builder.build(COPY, source) == (first, True)
    (source / "new.py").write_text("x")
    assert builder.build(COPY, source)[0] != first
    assert version_of(source) not in ("", "unversioned")
    assert version_of(tmp_path) == "unversioned"


def test_unused_artifacts_go_but_not_fresh_ones(builder: Builder, source: Path) -> None:
    used, _ = builder.build(COPY, source)
    unused, _ = builder.build(build(command="cp app.py {out}/"), source)
    assert builder.remove_unused({used}) == []
    assert builder.remove_unused({used}, idle_seconds=0) == [unused]
    assert builder.build(COPY, source) == (used, True)


def test_pipes_and_links_in_the_source(builder: Builder, source: Path, tmp_path: Path) -> None:
    os.mkfifo(source / "pipe")
    (source / "link").symlink_to("app.py")
    (source / "dangling").symlink_to("nowhere")
    digest, _ = builder.build(build(command="cp -a . {out}"), source)
    app = tmp_path / "artifacts" / digest / "app"
    assert {path.name for path in app.iterdir()} == {
        *("app.py", "requirements.txt", "other.txt", "link", "dangling")
    }
    assert (app / "link").is_symlink()


def test_what_a_build_writes_beside_its_source_changes_nothing(
    builder: Builder, source: Path
) -> None:
    """setuptools leaves folders where it builds."""
    (source / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\n[tool.setuptools]\npy-modules = ["app"]\n'
    )
    python = build(python={"project": "."})
    digest, _ = builder.build(python, source)
    assert {path.name for path in source.iterdir()} == {
        "app.py",
        "requirements.txt",
        "other.txt",
        "pyproject.toml",
    }
    assert builder.build(python, source) == (digest, True)
    assert not (builder.folder(digest) / "work").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ln -s /etc/passwd {out}/link", "leads out of the artifact, app/link to /etc/passwd"),
        ("rmdir {out} && ln -s /etc {out}", "made {out} a link"),
    ],
)
def test_an_artifact_holds_all_that_it_is_made_of(
    builder: Builder, source: Path, command: str, words: str
) -> None:
    with pytest.raises(BuildFailed, match=words):
        builder.build(build(command=command), source)
    assert builder.build(build(command="touch {out}/a && ln -s a {out}/b"), source)


def test_editable_requirements_are_not_part_of_an_artifact(builder: Builder, source: Path) -> None:
    (source / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\n[tool.setuptools]\npy-modules = ["app"]\n'
    )
    (source / "requirements.txt").write_text("-e .\n")
    with pytest.raises(BuildFailed, match="shop is installed in editable mode"):
        builder.build(build(python={"requirements": "requirements.txt"}), source)


def test_a_project_may_ask_git_for_its_version(builder: Builder, source: Path) -> None:
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools", "setuptools-scm"]\n'
        'build-backend = "setuptools.build_meta"\n[project]\nname = "shop"\n'
        'dynamic = ["version"]\n[tool.setuptools]\npy-modules = ["app"]\n[tool.setuptools_scm]\n'
    )
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "v1.2"]):
        name = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", "-C", str(source), *name, *words], check=True)
    digest, _ = builder.build(build(python={"project": "."}), source)
    found = builder.folder(digest).glob("venv/lib/python*/site-packages/*.dist-info")
    assert {path.name for path in found} == {"shop-1.2.dist-info"}
    assert not (builder.folder(digest) / "app" / ".git").exists()


def test_a_lock_file_is_honoured(builder: Builder, source: Path) -> None:
    """What is the newest by now does not matter to who wrote down what was taken."""
    (source / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["six<1.17"]\n[tool.setuptools]\npy-modules = ["app"]\n'
    )
    locked = ["uv", "lock", "--quiet", "--project", str(source)]
    subprocess.run([Path(sys.executable).with_name("uv"), *locked[1:]], check=True)
    (source / "pyproject.toml").write_text(
        (source / "pyproject.toml").read_text().replace("six<1.17", "six")
    )
    digest, _ = builder.build(build(python={"project": "."}), source)
    found = builder.folder(digest).glob("venv/lib/python*/site-packages/*.dist-info")
    assert {path.name for path in found} == {"shop-1.dist-info", "six-1.16.0.dist-info"}
    assert not (builder.folder(digest) / "locked.txt").exists()
