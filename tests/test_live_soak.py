"""A seeded selection of what `make soak` kills: releases, rollbacks, the guard, the worker."""

import random
import threading
from pathlib import Path

import pytest
import soak

from blocks.stack import Stack
from deployments.local_stack import prefect_environment

pytestmark = pytest.mark.live

# Boundaries of a clean run. `make soak` counts them; here fewer must not be there.
COUNTED = {"release": 46, "rolled back": 40, "rollback": 34, "guard": 20, "guard forward": 14}


@pytest.mark.timeout(600)
def test_killed_anywhere_it_is_whole_again_within_twenty_seconds(
    tmp_path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in prefect_environment(stack).items():
        monkeypatch.setenv(name, value)
    soak.drive_the_guard(stack)
    chosen = random.Random(7)
    kills = [
        soak.Kill(kind, at=chosen.randint(1, count)) for kind, count in COUNTED.items()
    ] + soak.moments(7, wanted=1, worker=0)
    lines: list[str] = []
    results = soak.run_all(stack, tmp_path, kills, 2, lines.append, threading.Event())
    assert len(results) == len(kills), lines
    assert not [result for result in results if result.trouble], "\n".join(lines)
