"""prefect.yaml names flows that exist, and importing stays as light as it must."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_every_entrypoint_is_a_flow(deployment: dict[str, str]) -> None:
    from prefect.flows import load_flow_from_entrypoint

    assert ":" not in deployment["entrypoint"], "module entrypoints alone"
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.name == deployment["entrypoint"].split(".")[-1]
    if flow.name in ("reconcile", "pipeline"):
        return  # it begins no rollout that would have to be taken back
    assert flow.on_failure_hooks
    assert flow.on_crashed_hooks
    assert flow.on_cancellation_hooks


def imported_by(*words: str) -> set[str]:
    code = f"import sys; sys.argv = {['dafnck', *words]!r}\n"
    code += "from deployments.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stderr.split())


def test_help_loads_next_to_nothing() -> None:
    heavy = {"prefect", "sqlalchemy", "httpx", "pydantic", "ruamel.yaml", "rich"}
    assert not heavy & imported_by("--help")


def test_status_loads_no_prefect() -> None:
    assert not {"prefect", "httpx", "matplotlib", "apprise"} & imported_by("status")


def test_apprise_is_loaded_by_the_child_that_sends_alone() -> None:
    assert not {"prefect", "apprise"} & imported_by("notify", "list")


def test_the_guard_loads_no_prefect_and_nothing_that_draws() -> None:
    code = "import deployments.guard, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"prefect", "httpx", "matplotlib", "jinja2", "rich"}
    assert not heavy & set(done.stdout.split())


def test_validate_loads_neither_prefect_nor_the_ledger() -> None:
    assert not {"prefect", "sqlalchemy"} & imported_by("validate", "examples/httpbin/1-first.yaml")
