"""`dafnck simulate`: the shipped decisions on made-up traffic."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from policy.errors import BadInput
from policy.service_file import Rollout
from policy.simulation import SHAPES, NewRelease, Traffic, trial

FILE = """\
version: 1
service: shop
build: {command: "cp x {out}"}
run: {command: "serve {port}", health: /healthz}
rollout:
  strategy: canary
  steps: [20%, 100%]
  bake: 20s
  within: 5m
  judge: {errors: at most 1.5x stable, good_enough: 2%}
"""
ROLLOUT = Rollout.model_validate(
    {
        "strategy": "canary",
        "steps": ["20%", "100%"],
        "bake": "20s",
        "within": "5m",
        "judge": {"errors": "at most 1.5x stable", "good_enough": "2%"},
    }
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dafnck.yaml"
    path.write_text(FILE)
    return path


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["simulate", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_good_releases_end_promoted_and_bad_ones_rolled_back(file: Path) -> None:
    page = file.parent / "page.html"
    words = [file, "--releases", 4, "--json", "--html", page, "--bad-errors", "20%"]
    result = json.loads(run(*words))
    assert result["good"]["rolled_back"] == 0
    assert result["bad"]["rolled_back"] == result["bad"]["proved"] == 1
    assert result["bad"]["seconds_median"] < 15
    assert result["bad"]["failed_median"] < result["bad"]["seconds_median"] * 20
    assert page.read_text().count("<svg") == 2
    assert json.loads(run(*words)) == result, "the same seed gives the same"


def test_the_table_says_what_was_asked(file: Path) -> None:
    said = run(file, "--releases", 1, "--rate", 50, "--slower", 2, "--shape", "day")
    assert "50 requests/s, 0.5% errors, median 50ms, day" in said
    assert "5% errors and 2 times as slow" in said
    assert "false rollbacks promised: at most 1%" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "odd"], "there is steady, day"),
        (["--errors", "many"], "'many' is not a share"),
        (["--latency", "slow"], "not a duration"),
        (["--html", "/no/where.html"], "there is no directory /no"),
    ],
)
def test_bad_input_is_refused(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        CliRunner().invoke(app, ["simulate", str(file), *words], catch_exceptions=False)


def test_a_policy_without_a_judge_has_nothing_to_simulate(file: Path) -> None:
    file.write_text(FILE.replace("  judge: {errors: at most 1.5x stable, good_enough: 2%}\n", ""))
    with pytest.raises(BadInput, match="no limit to simulate"):
        CliRunner().invoke(app, ["simulate", str(file)], catch_exceptions=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_traffic_ends(shape: str) -> None:
    one = trial(ROLLOUT, Traffic(50, 0.005, shape=shape), NewRelease(), np.random.default_rng(1))
    assert one.end in ("promoted", "rolled back")
    assert one.requests > 0


def test_recorded_traffic_is_dealt_to_both() -> None:
    from policy.samples import Counters

    second = Counters(50, 1, {0.1: 40, 1.0: 50, float("inf"): 50})
    traffic = Traffic(0, 0, recorded=(second,) * 20)
    bad = trial(ROLLOUT, traffic, NewRelease(errors=0.5), np.random.default_rng(1))
    assert bad.end == "rolled back"
    assert bad.seconds < 20
    assert 0.3 < bad.failed / bad.requests < 0.7


def test_little_traffic_is_not_promoted_on_nothing() -> None:
    one = trial(ROLLOUT, Traffic(0.1, 0.0), NewRelease(), np.random.default_rng(1))
    assert one.end == "rolled back"
    assert one.reason.startswith("still unsure at the deadline")
