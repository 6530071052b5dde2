"""The runbook says what the command does, in its order, and by words that exist."""

import re
from pathlib import Path

from typer.testing import CliRunner

from deployments import runbook
from deployments.cli import app
from tasks.recover import STEPS


def test_every_step_is_in_it_as_it_is_done() -> None:
    titles = re.findall(r"^### (\d+)\. (.*)$", runbook.text(), re.MULTILINE)
    assert titles == [(str(number), step.title) for number, step in enumerate(STEPS, 1)]
    text = " ".join(runbook.text().split())
    for step in STEPS:
        assert len(step.words) > 40, f"{step.name} says nothing of itself"
        assert step.words in text


def test_every_option_that_it_names_exists() -> None:
    told = set(re.findall(r"(--[a-z][a-z-]+)[ =`]", runbook.text().split("## What it does")[0]))
    printed = CliRunner().invoke(app, ["recover", "--help"], terminal_width=200).output
    assert told - {"--from", "--key"} <= set(re.findall(r"--[a-z][a-z-]+", printed)), printed
    assert {"--from", "--key", "--home", "--to-time", "--without", "--json"} <= told


def test_what_a_step_says_when_it_stops_is_in_it() -> None:
    """Whoever looks for the words of a refusal finds what to do."""
    source = (Path(__file__).parents[1] / "tasks" / "recover.py").read_text()
    code = "".join(re.findall(r'"([^"\n]*)"', source))
    for words in re.findall(r"^\| ([^|`]+) \|", runbook.text().split("only a step fails")[1], re.M):
        if words not in ("it says", "---"):
            assert words in code, words
