"""A seeded selection of what `make soak` kills: releases, rollbacks, the guard, the worker."""

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import soak

from blocks.stack import Stack
from deployments.local_stack import prefect_environment

pytestmark = pytest.mark.live

# Boundaries of a clean run. `make soak` counts them; here fewer must not be there. In containers
# they are the same ones.
COUNTED = {"release": 46, "rolled back": 40, "rollback": 34, "guard": 20, "guard forward": 14}


@pytest.mark.timeout(600)
def test_killed_anywhere_it_is_whole_again_within_twenty_seconds(
    tmp_path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_some(tmp_path, stack, monkeypatch, soak.LOCAL)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_anywhere_containers_are_whole_again_within_twenty_seconds(
    tmp_path: Path, stack: Stack, docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_some(tmp_path, stack, monkeypatch, soak.Where("docker"))
    assert not soak.suites_left()


@pytest.mark.timeout(600)
def test_killed_anywhere_a_cluster_is_whole_again_within_twenty_seconds(
    tmp_path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with soak.where("kubernetes", tmp_path / "cluster") as on:
        kill_some(tmp_path, stack, monkeypatch, on)


def kill_some(folder: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch, on: soak.Where) -> None:
    for name, value in prefect_environment(stack).items():
        monkeypatch.setenv(name, value)
    soak.drive_the_guard(stack)
    chosen = random.Random(7)
    kills = [
        soak.Kill(kind, at=chosen.randint(1, count)) for kind, count in COUNTED.items()
    ] + soak.moments(7, wanted=1, worker=0)
    lines: list[str] = []
    over = threading.Event()
    results = soak.run_all(stack, folder, kills, 2, lines.append, over, on)
    assert len(results) == len(kills), lines
    assert not [result for result in results if result.trouble], "\n".join(lines)
