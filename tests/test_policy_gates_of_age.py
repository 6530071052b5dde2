"""How old the secrets of a release may be."""

import pytest

from policy.evidence import Evidence
from policy.gate_results import Status
from policy.gates_of_age import SecretAgeGate, judge_secret_age
from policy.rotation import DAY

GATE = SecretAgeGate.model_validate({"warn": "60d", "block": "90d"})


@pytest.mark.parametrize(
    ("ages", "status", "level", "words"),
    [
        ({"secret://a/b": 59.0}, Status.PASS, "warn", "secret://a/b is 59.0 days old, the oldest"),
        ({"secret://a/b": 61.0, "aws://c": 5.0}, Status.FAIL, "warn", "secret://a/b is 61.0 days"),
        ({"secret://a/b": 61.0, "aws://c": 91.0}, Status.FAIL, "block", "aws://c is 91.0 days old"),
        ({"env://A": None, "aws://c": 1.0}, Status.FAIL, "warn", "env://A: its age is not known"),
        ({"env://A": None, "aws://c": 91.0}, Status.FAIL, "block", "aws://c is 91.0 days old"),
        ({}, Status.NOT_APPLICABLE, "warn", "it is given none"),
        (None, Status.NOT_APPLICABLE, "warn", "nobody asked"),
    ],
)
def test_ages(ages: dict[str, float | None] | None, status: Status, level: str, words: str) -> None:
    in_seconds = None
    if ages is not None:
        in_seconds = {name: age and age * DAY for name, age in ages.items()}
    found = judge_secret_age(GATE, Evidence(secret_ages=in_seconds))
    assert (found.status, found.level) == (status, level)
    assert words in found.reason
    assert found.blocks == (level == "block")


@pytest.mark.parametrize("wrong", [{}, {"warn": "90d", "block": "60d"}, {"block": 0}])
def test_what_cannot_be_meant(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs warn|shorter than block|greater than 0"):
        SecretAgeGate.model_validate(wrong)
