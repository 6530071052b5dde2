"""Nothing unproven is released: tests, scans and gates in a real release, with a real Trivy."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck, Released, wait_for
from test_blocks_attestations import one_byte
from test_blocks_trivy import DATABASE, program  # noqa: F401 - a fixture
from test_live_release import Service, who_answers

from blocks.ledger import Ledger
from blocks.stack import Stack
from policy.release import Phase

pytestmark = pytest.mark.live

TESTS = [
    {
        "name": "unit",
        "command": "python3 -m pytest -q --junitxml={junit} --cov=probe "
        "--cov-report=xml:{coverage}",
    }
]


@pytest.fixture
def trivy(
    stack: Stack,
    program: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """Trivy on the PATH, and a fresh database; -> its metadata."""
    import sys

    folders = [str(Path(program).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    shutil.copytree(DATABASE, stack.scan_cache / "db", dirs_exist_ok=True)
    metadata = stack.scan_cache / "db" / "metadata.json"
    _collected(metadata, time.time())
    yield metadata
    shutil.rmtree(stack.scan_cache)


def _collected(metadata: Path, at: float) -> None:
    content = json.loads(metadata.read_text())
    content["UpdatedAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    metadata.write_text(json.dumps(content))


def proven(service: Service, name: str, folder: Path, **parts: Any) -> Path:
    (folder / "test_probe.py").write_text(
        "import probe\n\n\ndef test_it():\n    assert probe.app\n"
    )
    build = {"command": "cp probe.py test_probe.py {out}"}
    return service(name, build=build, tests=TESTS, scan={}, **parts)


def test_what_passes_is_released_and_what_does_not_is_never_started(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    trivy: Path,
    tmp_path: Path,
) -> None:
    gates = {"coverage": {"drop_at_most": "1%"}, "size": {"at_most": "1M"}}
    first = released(proven(service, "proof", tmp_path, gates=gates), 1)
    assert first.phase is Phase.PROMOTED, first.reason
    told = json.loads(dafnck("gate", "proof", "--json").stdout)
    answers = {gate["gate"]: gate["status"] for gate in told["gates"]}
    assert answers == {
        "tests": "pass",
        "findings": "pass",
        "secrets": "pass",
        "coverage drop": "not applicable",
        "size": "pass",
    }
    folder = Path(told["evidence"])
    for file in ("gates.json", "gates.xml", "findings.sarif", "tests/unit/junit.xml"):
        assert (folder / file).stat().st_size, file

    file = proven(service, "proof", tmp_path, gates=gates)
    (tmp_path / "requirements.txt").write_text("jinja2==2.10\n")
    second = released(file, 2)
    assert second.phase is Phase.FAILED
    assert "CVE-2019-10906 jinja2 (high, mended in 2.10.1)" in second.reason
    assert "start" not in {intent.act for intent in ledger.intents(second.id)}
    assert who_answers(stack, "proof") == "proof-local-1"
    assert "CVE-2019-10906" in dafnck("gate", "proof", check=1).stdout

    waivers = tmp_path / "waivers.yaml"
    waivers.write_text(
        "waivers:\n- {id: CVE-2019-10906, package: jinja2, reason: templates are our own, "
        "owner: anna, expires: 2999-12-31}\n"
    )
    file = proven(service, "proof", tmp_path, gates=gates)
    file.write_text(file.read_text().replace("scan: {}", "scan: {waivers: waivers.yaml}"))
    third = released(file, 3)
    assert third.phase is Phase.PROMOTED, third.reason
    assert "waived: CVE-2019-10906 of jinja2" in dafnck("gate", "proof").stdout


def test_a_failed_test_and_a_stale_database_are_named(
    stack: Stack,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    trivy: Path,
    tmp_path: Path,
) -> None:
    file = proven(service, "stale", tmp_path)
    (tmp_path / "test_probe.py").write_text("def test_it():\n    assert 1 == 2\n")
    _collected(trivy, time.time() - 3 * 86400)
    ended = released(file, 1)
    assert ended.phase is Phase.FAILED
    assert "tests: unit: test_probe.test_it" in ended.reason
    assert "findings: could not scan: trivy: its vulnerability database is 3d old" in ended.reason
    trivy.unlink()
    assert "there is no database" in dafnck("scan-db", "show", check=3).stdout


def test_what_is_exploited_is_not_released_and_every_gate_explains_itself(
    stack: Stack,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    trivy: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "requirements.txt").write_text("jinja2==2.10\n")
    (tmp_path / "bad.py").write_text("import os\nimport sys\n")
    ruff = "python3 -m ruff check --isolated --output-format sarif --output-file {sarif} bad.py"
    file = service(
        "exploited",
        build={"command": "cp probe.py {out}"},
        scan={"tools": [{"name": "ruff", "command": ruff}]},
        gates={
            "findings": {"at_least": "critical", "known_exploited": True},
            "lint": {"tools": ["ruff"], "at_most": 1, "level": "warn"},
        },
    )
    ended = released(file, 1)
    assert ended.phase is Phase.FAILED
    assert "findings: there is no snapshot of KEV" in ended.reason
    kev = {
        "catalogVersion": "1",
        "dateReleased": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "vulnerabilities": [{"cveID": "CVE-2019-10906"}],
    }
    (tmp_path / "kev.list").write_text(json.dumps(kev))
    assert "KEV of" in dafnck("scan-db", "import", tmp_path / "kev.list").stdout
    assert "there is no EPSS" in dafnck("scan-db", "show").stdout
    bad = tmp_path / "bad.list"
    bad.write_text("{}")
    assert "all is as it was" in dafnck("scan-db", "import", bad, check=2).stderr
    bad.unlink()

    ended = released(file, 2)
    assert ended.phase is Phase.FAILED
    assert "CVE-2019-10906 jinja2 (high, exploited, mended in 2.10.1)" in ended.reason
    told = dafnck("gate", "exploited", "--explain", check=1).stdout
    for words in (
        "findings: fail, closed",
        "asked     none of critical or worse, none exploited",
        "against 1 CVE-2019-10906 jinja2 (high, exploited, mended in 2.10.1)",
        "- {id: CVE-2019-10906, package: jinja2, reason: …",
        "lint: fail, open",
        "measured  2",
        "against 2 F401 bad.py:2",
        "set by    gates.lint.at_most; for local alone environments.local.gates.lint.at_most",
        "trivy: 1 findings, database of 20",
        "KEV of 20",
    ):
        assert words in told, told
    assert "against" not in dafnck("gate", "exploited", check=1).stdout


def test_a_gate_without_anything_to_judge_is_a_mistake(dafnck: Dafnck, service: Service) -> None:
    for gates in ({"findings": {}}, {"licenses": {}}, {"tests": {}}):
        said = dafnck("validate", service("idle", gates=gates), check=2).stderr
        assert "gates" in said
        assert "add" in said


def test_a_mistake_in_the_waivers_is_a_mistake_in_the_file(
    dafnck: Dafnck, service: Service, tmp_path: Path
) -> None:
    file = service("waived", scan={"waivers": "waivers.yaml"})
    assert "there is no file" in dafnck("validate", file, check=2).stderr
    (tmp_path / "waivers.yaml").write_text("waivers:\n- id: CVE-1\n  package: x\n  owner: me\n")
    said = dafnck("validate", file, check=2).stderr
    assert "waivers.yaml:2: waivers.0.reason: is missing" in said


def test_what_passed_once_is_not_tested_again(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    trivy: Path,
    tmp_path: Path,
) -> None:
    """Built once, tested once; scanned each time, since what is known of it grows."""
    file = proven(service, "retested", tmp_path)
    assert released(file, 1).phase is Phase.PROMOTED
    second = released(file, 2)
    assert second.phase is Phase.PROMOTED, second.reason
    outcomes = {act.act: act.outcome for act in ledger.intents(second.id)}
    assert "built before" in str(outcomes["build"])
    assert "as in retested-local-rollout-" in str(outcomes["test"])
    assert "trivy" in str(outcomes["scan"])
    told = dafnck("gate", "retested").stdout
    assert "the same artifact passed before: unit in retested-local-rollout-" in told

    artifact = stack.artifacts / ledger.release("retested-local-2").artifact
    one_byte(artifact / "attestations" / "tests-unit.dsse.json")
    third = released(file, 3)
    assert third.phase is Phase.PROMOTED
    outcomes = {act.act: act.outcome for act in ledger.intents(third.id)}
    assert "as in" not in str(outcomes["test"])


def test_a_pipeline_judges_and_starts_nothing(
    stack: Stack, ledger: Ledger, released: Released, service: Service, trivy: Path, tmp_path: Path
) -> None:
    from flows.pipeline import pipeline

    file = proven(service, "change", tmp_path)
    ended = pipeline(str(file), return_state=True)
    assert ended.is_completed(), ended.message
    found = Path(str(ended.message).rpartition(" see ")[2])
    assert {path.name for path in found.iterdir()} >= {"gates.json", "gates.xml", "findings.sarif"}
    assert not ledger.history("change")
    first = released(file, 1)
    assert first.phase is Phase.PROMOTED, first.reason
    outcomes = {act.act: act.outcome for act in ledger.intents(first.id)}
    assert "built before" in str(outcomes["build"])

    (tmp_path / "test_probe.py").write_text("def test_it():\n    assert 1 == 2\n")
    refused = pipeline(str(file), return_state=True)
    assert (refused.type.value, refused.name) == ("FAILED", "Refused")
    assert "tests: unit: test_probe.test_it" in str(refused.message)
    bad = pipeline(str(tmp_path / "nothing.yaml"), return_state=True)
    assert bad.name == "BadInput"
    assert len(ledger.history("change")) == 1


def test_an_abort_does_not_wait_for_the_tests(
    ledger: Ledger, released: Released, dafnck: Dafnck, service: Service, tmp_path: Path
) -> None:
    slow = {"name": "slow", "command": "sleep 100; touch {junit}"}
    file = service("slowtests", tests=[slow])
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(released, file, 1)
        wait_for(
            lambda: any(
                act.act == "test"
                for r in ledger.unfinished("slowtests")
                for act in ledger.intents(r.id)
            ),
            "tests run",
        )
        began = time.monotonic()
        dafnck("abort", "slowtests", "--reason", "took too long")
        assert time.monotonic() - began < 20
        rollout = ended.result()
    assert rollout.phase is Phase.FAILED
    assert "took too long" in rollout.reason
