"""What is generated is current, and what the documents name exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.reference import generated
from tasks.read import configuration, read_all

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_generated_documents_are_current() -> None:
    for path, text in generated().items():
        assert path.read_text() == text, f"{path.name} is not current: make docs"


def test_the_command_prints_the_committed_schema() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "schema"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert json.loads(printed) == json.loads((ROOT / "docs" / "dafnck.schema.json").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_make_targets_exist(page: Path) -> None:
    from deployments.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    known |= {group.name for group in app.registered_groups}
    text = page.read_text()
    named = set(re.findall(r"(?:^|`|\n    )dafnck ([a-z]+(?:-[a-z]+)*)", text))
    assert named <= known, named - known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {
        word
        for line in re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
        for word in line.split()
    }
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


WHOLE_FILES = [
    text
    for page in PAGES
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    if "version: 1" in text and "\nstack: " not in text
]


@pytest.mark.parametrize("text", WHOLE_FILES)
def test_service_files_in_documents_are_good(text: str, tmp_path: Path) -> None:
    (tmp_path / "dafnck.yaml").write_text(text)
    assert read_all(tmp_path / "dafnck.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*/*.yaml")), ids=str)
def test_examples_are_good(file: Path) -> None:
    for environment, service in read_all(file).items():
        configuration(service, environment, file)
