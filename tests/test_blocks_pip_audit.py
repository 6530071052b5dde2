"""The real pip-audit asks a source of ours, and one that is not there."""

import json
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from blocks.pip_audit import audit
from policy.evidence import Evidence
from policy.findings import Finding, Outcome, Severity, waive
from policy.gates import Gates, judge
from policy.pipeline import PipAudit
from policy.priority import rated

KNOWN = {
    "id": "GHSA-462w-v97r-4m45",
    "aliases": ["CVE-2019-10906", "PYSEC-2019-217"],
    "summary": "Jinja2 sandbox escape",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """Answers queries as OSV's API does."""

    asked: list[str] = []  # noqa: RUF012 - of the whole class

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.asked.append(name)
        content = json.dumps({"vulns": [KNOWN]} if name == "jinja2" else {}).encode()
        self.send_response(500 if name == "broken" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    install(tmp_path / "artifact", "jinja2", "2.10")
    install(tmp_path / "artifact", "markupsafe", "1.0")
    return tmp_path / "artifact"


def install(artifact: Path, name: str, version: str) -> None:
    info = artifact / f"venv/lib/python3.11/site-packages/{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def fake(folder: Path, answer: str, code: int = 0) -> str:
    path = folder / "an-audit"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_known_is_found_by_its_cve(osv: str, artifact: Path, tmp_path: Path) -> None:
    answer = audit(PipAudit(osv=osv), artifact, tmp_path)
    assert answer.outcome is Outcome.FINDINGS, answer.reason
    [found] = answer.findings
    assert (found.id, found.package, found.installed) == ("CVE-2019-10906", "jinja2", "2.10")
    assert (found.fixed, found.severity) == ("2.10.1", Severity.HIGH)
    assert {"jinja2", "markupsafe"} <= {*Osv.asked}
    waived = waive(answer.findings, [], date(2026, 1, 1))
    closed = {r.gate for r in judge(Gates(), Evidence(scans=(answer,), waived=waived)) if r.blocks}
    assert closed == {"findings"}


def test_nothing_known_is_clean(osv: str, tmp_path: Path) -> None:
    install(tmp_path / "artifact", "markupsafe", "1.0")
    answer = audit(PipAudit(osv=osv), tmp_path / "artifact", tmp_path)
    assert answer.outcome is Outcome.CLEAN, answer.reason


def test_a_source_that_is_not_there(artifact: Path, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1/query"
    answer = audit(PipAudit(osv=nobody), artifact, tmp_path)
    assert answer.outcome is Outcome.NOT_SCANNED
    assert "Connection refused" in answer.reason


def test_a_source_that_fails(osv: str, artifact: Path, tmp_path: Path) -> None:
    install(artifact, "broken", "1.0")
    answer = audit(PipAudit(osv=osv), artifact, tmp_path)
    assert answer.outcome is Outcome.NOT_SCANNED
    assert answer.reason


def test_an_artifact_without_packages(osv: str, tmp_path: Path) -> None:
    answer = audit(PipAudit(osv=osv), tmp_path, tmp_path)
    assert answer.reason == "no Python packages are installed in the artifact"


def test_a_package_that_the_source_does_not_know_was_not_looked_at(
    artifact: Path, tmp_path: Path
) -> None:
    """PyPI's service answers so with 0 and "No known vulnerabilities found"."""
    skipped = {"name": "Shop_Core", "skip_reason": "Dependency not found on PyPI"}
    known = {"name": "jinja2", "version": "2.10", "vulns": []}
    program = fake(tmp_path, json.dumps({"dependencies": [skipped, known], "fixes": []}))
    answer = audit(PipAudit(), artifact, tmp_path, program=program)
    assert answer.outcome is Outcome.NOT_SCANNED
    assert "does not know 1 of 2 packages: Shop_Core" in answer.reason
    ours = PipAudit(private=["shop-core"])
    assert audit(ours, artifact, tmp_path, program=program).outcome is Outcome.CLEAN


@pytest.mark.parametrize(
    ("answer", "code"),
    [("", 0), ("", 1), ("nothing", 0), ("{}", 0), ('{"dependencies": []}', 0), ("{}", 2)],
)
def test_what_is_no_answer_is_no_pass(
    artifact: Path, tmp_path: Path, answer: str, code: int
) -> None:
    program = fake(tmp_path, answer, code)
    said = audit(PipAudit(), artifact, tmp_path, program=program)
    assert said.outcome is Outcome.NOT_SCANNED
    assert said.reason


def test_no_pip_audit_and_one_that_hangs(artifact: Path, tmp_path: Path) -> None:
    assert "there is no program" in audit(PipAudit(), artifact, tmp_path, program="no-such").reason
    program = fake(tmp_path, "")
    Path(program).write_text("#!/bin/sh\nsleep 60\n")
    said = audit(PipAudit(within="500ms"), artifact, tmp_path, program=program)  # type: ignore[arg-type]
    assert said.reason == "it did not end within 0.5s"


def test_it_takes_the_severity_of_a_scanner_that_gives_one() -> None:
    def found(tool: str, severity: Severity, package: str = "jinja2") -> Finding:
        return Finding(tool, "vulnerability", "CVE-1", severity, "", "x", package=package)

    by_trivy, by_audit = found("trivy", Severity.LOW, "Jinja2"), found("pip-audit", Severity.HIGH)
    alone = found("pip-audit", Severity.HIGH, "other")
    assert [f.severity for f in rated([by_audit, by_trivy, alone], "pip-audit")] == [
        Severity.LOW,
        Severity.LOW,
        Severity.HIGH,
    ]
    unknown = found("trivy", Severity.UNKNOWN)
    assert rated([by_audit, unknown], "pip-audit") == [by_audit, unknown]
