"""Stack files: what is meant is read, what cannot be meant is refused with file, line and key."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ci_job import git
from conftest import ROOT

from deployments.trigger import _begin, wish_of
from flows.release_stack import release_stack, run_name
from policy.errors import BadInput, Refused
from policy.stack_file import AT_ONCE
from tasks.read import read_service
from tasks.read_stack import is_stack_file, read_stack, read_stack_everywhere

GOOD = """\
version: 1
stack: checkout
services:
  db-api: db/dafnck.yaml
  shop: {file: shop/dafnck.yaml, after: [db-api]}
  web:
    file: web/dafnck.yaml
    after: [shop]
at_once: 2
"""


def write_service(folder: Path, name: str, environments: str = "", more: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dafnck.yaml").write_text(
        f"version: 1\nservice: {name}\nbuild: {{command: 'cp a {{out}}'}}\n"
        f"run: {{command: 'serve {{port}}', health: /}}\n{more}{environments}"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    both = "environments: {prod: {}, staging: {}}\n"
    write_service(tmp_path / "db", "db-api", both)
    write_service(tmp_path / "shop", "shop", both)
    write_service(tmp_path / "web", "web", "environments: {prod: {}}\n")
    return tmp_path


Refuse = Callable[[str], str]


@pytest.fixture
def refused(folder: Path) -> Refuse:
    def read(text: str, environment: str | None = "prod") -> str:
        (folder / "stack.yaml").write_text(text)
        with pytest.raises(BadInput) as error:
            read_stack(folder / "stack.yaml", environment)
        words = str(error.value)
        assert "\n" not in words
        return words.replace(f"{folder}/", "")

    return read


def test_what_is_meant_is_read(folder: Path) -> None:
    file = folder / "stack.yaml"
    file.write_text(GOOD)
    wanted = read_stack(file, "prod")
    assert wanted.after == {"db-api": (), "shop": ("db-api",), "web": ("shop",)}
    assert wanted.stack.at_once == 2
    assert wanted.services["web"][0] == folder / "web" / "dafnck.yaml"
    assert list(read_stack_everywhere(file)) == ["prod"], "the one that all of them have"
    file.write_text(GOOD.replace("at_once: 2\n", ""))
    assert read_stack(file, "prod").stack.at_once == AT_ONCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("stack: checkout\n", "stack: Check out\n"), "stack.yaml:2: stack: 'Check out' does not"),
        (("stack: checkout", "stak: checkout"), "stack.yaml:2: stak: unknown key; did you mean st"),
        (("version: 1", "version: 2"), "stack.yaml:1: version: 2 is newer than this dafnck"),
        (("at_once: 2", "at_once: 0"), "stack.yaml:9: at_once: input should be greater than or e"),
        (("file: web", "fil: web"), "stack.yaml:7: services.web.fil: unknown key; did you mean fi"),
        (
            ("after: [db-api]", "after: [dbapi]"),
            "stack.yaml:5: services.shop.after.0: there is",
        ),
        (
            ("after: [shop]", "after: [shop, shop]"),
            "stack.yaml:8: services.web.after: names shop",
        ),
        (("after: [db-api]", "after: db-api"), "stack.yaml:5: services.shop.after: input should"),
        (("db/dafnck", "dx/dafnck"), "stack.yaml:4: services.db-api"),
        (("  db-api: db/", "  shop: db/"), 'found duplicate key "shop"'),
        (("  db-api: db/", "  other: db/"), "stack.yaml:5: services.shop.after.0: there is no"),
        (("db/dafnck.yaml", "web/dafnck.yaml"), "services.db-api: web/dafnck.yaml is of web, not"),
        (("services:\n", "services: {}\nat_most:\n"), "stack.yaml:4: at_most: unknown key"),
        (("after: [shop]", "after: [web]"), "stack.yaml:8: services.web.after: a circle, so that"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_line(
    refused: Refuse, change: tuple[str, str], words: str
) -> None:
    assert words in refused(GOOD.replace(*change))


def test_a_circle_is_named(refused: Refuse) -> None:
    circle = GOOD.replace("db-api: db/dafnck.yaml", "db-api: {file: db/dafnck.yaml, after: [web]}")
    assert "db-api → web → shop → db-api" in refused(circle)


def test_no_services_are_no_change(refused: Refuse) -> None:
    assert "services" in refused("version: 1\nstack: checkout\nservices: {}\n")
    assert "services: must be a mapping" in refused("version: 1\nstack: a\nservices: [a, b]\n")


def test_an_environment_that_one_of_them_lacks(refused: Callable[..., str]) -> None:
    words = refused(GOOD, "staging")
    assert words.startswith("web/dafnck.yaml:5: environments: there is no 'staging'")
    words = refused(GOOD, None)
    assert "name an environment by --env: db-api has prod, staging; shop has prod, staging" in words


def test_a_mistake_in_one_of_the_files_is_told_where_it_is(refused: Refuse, folder: Path) -> None:
    write_service(folder / "shop", "shop", "environments: {prod: {}}\n", "rollot: {}\n")
    assert refused(GOOD).startswith("shop/dafnck.yaml:5: rollot: unknown key; did you mean rollout")


def test_two_of_them_want_the_same_requests(refused: Refuse, folder: Path) -> None:
    for name in ("shop", "web"):
        host = "route: {host: www.example.org}\n"
        write_service(folder / name, name, "environments: {prod: {}}\n", host)
    assert refused(GOOD) == (
        "stack.yaml:6: services.web: host www.example.org is also that of shop"
    )


def test_one_environment_needs_no_name(folder: Path) -> None:
    for name, place in (("db-api", "db"), ("shop", "shop"), ("web", "web")):
        write_service(folder / place, name)
    (folder / "stack.yaml").write_text(GOOD)
    assert read_stack(folder / "stack.yaml").environment == "local"


def test_no_environment_is_in_all_of_them(folder: Path) -> None:
    write_service(folder / "web", "web", "environments: {dev: {}}\n")
    (folder / "stack.yaml").write_text(GOOD)
    with pytest.raises(BadInput, match="no environment is in all of its services"):
        read_stack_everywhere(folder / "stack.yaml")


def test_it_is_told_from_a_service_file(folder: Path) -> None:
    file = folder / "stack.yaml"
    file.write_text(GOOD)
    assert is_stack_file(file)
    assert not is_stack_file(folder / "web" / "dafnck.yaml")
    assert not is_stack_file(folder / "none.yaml")
    with pytest.raises(BadInput, match="this file is of several services"):
        read_service(file)


def test_a_ci_job_asks_for_it_as_for_one_service(folder: Path) -> None:
    file = folder / "stack.yaml"
    file.write_text(GOOD)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    asked: dict[str, Any] = {"git": f"file://{folder}", "commit": None, "deployment": "local"}
    wish = wish_of(file, "prod", None, flow="release", freeze_override=None, **asked)
    commit = git(folder, "rev-parse", "HEAD")
    assert wish.name == f"checkout {commit[:12]} → prod"
    flow = inspect.signature(release_stack.fn).parameters
    given = wish.parameters("ada")
    assert set(given) <= set(flow)
    assert (given["stack_file"], given["commit"]) == ("stack.yaml", commit)
    with pytest.raises(BadInput, match="a pipeline takes the file of one"):
        wish_of(file, "prod", None, flow="pipeline", freeze_override=None, **asked)


def test_an_old_job_does_not_claim_that_its_stack_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A releases, B releases, and the job of A is run again. The runs go by the names that the
    flow gives them, whose worker has no checkout yet."""
    file = folder / "stack.yaml"
    file.write_text(GOOD)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    asked: dict[str, Any] = {"git": f"file://{folder}", "commit": None, "deployment": "local"}
    wish = wish_of(file, "prod", "a", flow="release", freeze_override=None, **asked)

    def named(version: str) -> str:
        given = wish.parameters("ada") | {"version": version}
        context = SimpleNamespace(parameters=given)
        monkeypatch.setattr("flows.release_stack.flow_run", context)
        return run_name()

    assert named("a") == wish.name
    mine = {"id": "1", "name": wish.name, "created": "then", "state": {"type": "COMPLETED"}}
    since = [mine]
    looked: list[list[str]] = []

    def completed_since(flows: list[str], words: str, created: str) -> list[dict[str, Any]]:
        looked.append(flows)
        return [run for run in since if words in str(run["name"])]

    api: Any = SimpleNamespace(
        deployment=lambda flow, name: {"id": "d"},
        runs=lambda deployment, tags: [],
        create_run=lambda deployment, body: (mine, False),
        completed_since=completed_since,
        link=lambda run_id: f"http://prefect/{run_id}",
    )
    rest: Any = SimpleNamespace(line=lambda *words: None, patient=False)
    assert not _begin(api, wish, False, rest, rest).new
    since.insert(0, mine | {"id": "2", "name": named("b")})
    with pytest.raises(Refused, match=r"checkout a → prod was released before, and then came ch"):
        _begin(api, wish, False, rest, rest)
    assert looked == [["release_stack"]] * 2


def test_the_command_validates_it(folder: Path) -> None:
    def validate(text: str) -> "subprocess.CompletedProcess[str]":
        (folder / "stack.yaml").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", "validate", folder / "stack.yaml"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    good = validate(GOOD)
    assert good.returncode == 0
    assert good.stdout.splitlines() == [
        "wave 1: db-api",
        "wave 2: shop",
        "wave 3: web",
        "checkout in prod: good",
    ]
    bad = validate(GOOD.replace("[db-api]", "[db]"))
    assert bad.returncode == 2
    assert re.search(
        r"stack.yaml:5: services.shop.after.0: there is no service db; did", bad.stderr
    )
