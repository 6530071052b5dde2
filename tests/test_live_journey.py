"""One journey on every platform: first release, canary, a bad canary, blue-green, back to a named
release, what is left. A platform that keeps it is one that a service can be moved to."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck, Released, wait_for
from docker_fixtures import own_name
from kube_stage import KubeStage
from test_live_release import under_load, who_answers

from blocks.ledger import Ledger
from blocks.load import SteadyLoad
from blocks.stack import Stack
from policy.release import Phase

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

CANARY: dict[str, Any] = {"strategy": "canary", "steps": ["30%", "100%"], "bake": "3s", "keep": 1}
JUDGED: dict[str, Any] = CANARY | {
    "judge": {"method": "threshold", "errors": "at most 2%", "interval": "1s", "min_requests": 5}
}
BLUE_GREEN: dict[str, Any] = {"strategy": "blue-green", "keep": 1}


@dataclass
class Stage:
    """A platform, and a service on it."""

    name: str
    file: Callable[..., Path]  # parts -> a service file of it
    answers: Callable[[], str]  # the release that answers a request now
    left: Callable[[], set[str]]  # releases that the platform knows yet
    load: Callable[[], Any] | None  # requests while the body runs; None: nobody can ask from here
    bad: dict[str, Any]  # run: of a release that is bad
    judged: bool = True


@pytest.fixture
def local(stack: Stack, service: Callable[..., Path]) -> Stage:
    name = own_name("jl")
    return Stage(
        name,
        lambda **parts: service(name, **parts),
        lambda: who_answers(stack, name),
        lambda: {path.name for path in stack.releases.glob(f"{name}-*")},
        lambda: under_load(stack, name),
        {"env": {"EVERY": "3"}},
    )


@pytest.fixture
def docker_stage(stack: Stack, docker: Any, image_service: Callable[..., Path]) -> Stage:
    name = own_name("jd")

    def left() -> set[str]:
        found = docker.containers(all=True, filters={"label": f"dafnck.service={name}"})
        return {one["Labels"]["dafnck.release"] for one in found}

    return Stage(
        name,
        lambda **parts: image_service(name, **parts),
        lambda: who_answers(stack, name),
        left,
        lambda: under_load(stack, name),
        {"env": {"FAIL": "1"}},
    )


@pytest.fixture
def gateway_stage(kube_gateway_stage: KubeStage) -> Stage:
    return on_kubernetes(kube_gateway_stage)


@pytest.fixture
def service_stage(kube_service_stage: KubeStage) -> Stage:
    return on_kubernetes(kube_service_stage)


@pytest.fixture
def cluster_stage(real_cluster_stage: KubeStage) -> Stage:
    return on_kubernetes(real_cluster_stage)


def on_kubernetes(there: KubeStage) -> Stage:
    def load() -> SteadyLoad:
        assert there.door is not None
        return SteadyLoad(there.door, there.host, per_second=40)

    return Stage(
        there.name,
        there.file,
        there.answers,
        there.left,
        load if there.door else None,
        {"env": {"FAIL": "1"}} if there.judged else {"env": {"DIE": "1"}, "start": "20s"},
        there.judged,
    )


@pytest.fixture(
    params=[
        "local",
        "docker_stage",
        "gateway_stage",
        "service_stage",
        pytest.param("cluster_stage", marks=pytest.mark.kubernetes),
    ]
)
def stage(request: pytest.FixtureRequest) -> Stage:
    found: Stage = request.getfixturevalue(request.param)
    return found


def test_the_journey(
    stage: Stage, released: Released, dafnck: Dafnck, ledger: Ledger, stack: Stack
) -> None:
    name, canary = stage.name, JUDGED if stage.judged else CANARY

    def serves(number: int) -> None:
        """It alone answers, with all of its replicas, and says so."""
        expected = f"{name}-local-{number}"
        wait_for(lambda: stage.answers() == expected, f"{expected} answers")
        assert {stage.answers() for _ in range(10)} == {expected}
        told = json.loads(dafnck("status", "--json").stdout)
        seen = next(one for one in told if one["service"] == name)
        assert seen["unknown"] == []
        assert seen["shares"] == {expected: 100}
        assert seen["replicas"] == {expected: {"ready": 2, "wanted": 2, "trouble": ""}}

    assert released(stage.file(rollout=BLUE_GREEN), 1).phase is Phase.PROMOTED
    serves(1)

    failed: Counter[str] = Counter()
    with stage.load() if stage.load else nullcontext() as load:
        good = released(stage.file(run={"env": {"GREETING": "2"}}, rollout=canary), 2)
        assert good.phase is Phase.PROMOTED, good.reason
        shifts = [i.detail["shares"] for i in ledger.intents(good.id) if i.act == "shift"]
        assert [s[f"{name}-local-2"] for s in shifts][-1] == 100
        assert len(shifts) == 2
        serves(2)
        assert not load or not load.answers.failed_else, load.answers.failed_else
        before = load.answers.good if load else 0

        bad = released(stage.file(run=stage.bad, rollout=canary), 3)
        assert bad.phase is (Phase.ROLLED_BACK if stage.judged else Phase.FAILED), bad.reason
        serves(2)
        if load:
            assert load.answers.good > before
            failed = Counter(load.answers.failed_else)
            assert set(failed) <= {"500"}, "the bad release's own errors alone"

        assert released(stage.file(rollout=BLUE_GREEN), 4).phase is Phase.PROMOTED
        serves(4)
        back = dafnck("rollback", name, "--to", f"{name}-local-2", "--here")
        assert f"{name}-local-2 (2) serves" in back.stdout
        serves(2)
        if load:
            assert Counter(load.answers.failed_else) == failed, "no request after that"

    # One that was good and one that was not are kept beside what serves, and go with `down`.
    assert stage.left() == {f"{name}-local-{number}" for number in (2, 3, 4)}
    gone = dafnck("down", name, "--yes")
    assert f"{name} is gone from local" in gone.stdout
    assert stage.left() == set()
    assert stack.home.exists()
