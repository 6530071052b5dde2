"""Suites run in a copy of what was built; no result is never a pass. Tools are read by SARIF."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import wait_for

from blocks import sarif
from blocks.check_results import Unreadable, read_benchmarks, read_coverage, read_junit, write_junit
from blocks.suites import run_suite
from blocks.tools import run_tool
from policy.evidence import SuiteResult
from policy.findings import Finding, Outcome, Scan, Severity
from policy.gate_results import GateResult, Status
from policy.pipeline import Suite, Tool

EMPTY = '{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}, "results": []}]}'
PYTEST = f"{sys.executable} -m pytest -q -p no:cacheprovider --junitxml={{junit}}"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    app = tmp_path / "artifact" / "app"
    app.mkdir(parents=True)
    (app / "shop.py").write_text("def price():\n    return 3\n\n\ndef tax():\n    return 1\n")
    (app / "test_shop.py").write_text(
        "import shop\n\n\ndef test_price():\n    assert shop.price() == 3\n"
    )
    return app.parent


def run(artifact: Path, tmp_path: Path, **words: object) -> SuiteResult:
    suite = Suite.model_validate({"name": "unit", "command": PYTEST, **words})
    return run_suite(
        suite, artifact, tmp_path / "evidence", tmp_path / "scratch", threading.Event()
    )


class TestSuites:
    def test_results_and_coverage(self, artifact: Path, tmp_path: Path) -> None:
        command = f"{PYTEST} --cov=shop --cov-report=xml:{{coverage}}"
        result = run(artifact, tmp_path, command=command)
        assert (result.ran, result.failed, result.broken) == (1, (), "")
        assert result.coverage == 75.0
        assert (tmp_path / "evidence" / "unit" / "junit.xml").exists()

    def test_what_was_built_stays_as_it_is(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "app" / "test_shop.py").write_text(
            "def test_x():\n    open('shop.py', 'w').close()\n"
        )
        assert run(artifact, tmp_path).ran == 1
        assert (artifact / "app" / "shop.py").read_text()
        assert sorted(path.name for path in (artifact / "app").iterdir()) == [
            "shop.py",
            "test_shop.py",
        ]

    def test_a_failed_test_is_named_with_what_it_said(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "app" / "shop.py").write_text("def price():\n    return 4\n")
        (name,) = run(artifact, tmp_path).failed
        assert name.startswith("test_shop.test_price (")
        assert "assert 4 == 3" in name

    def test_flaky_ones_are_told(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "app" / "test_shop.py").write_text(
            "import pathlib\n\n\ndef test_flaky():\n    seen = pathlib.Path('seen')\n"
            "    there = seen.exists()\n    seen.touch()\n    assert there\n"
        )
        result = run(artifact, tmp_path, again=2)
        assert (result.failed, result.flaky) == ((), ("test_shop.test_flaky",))
        assert run(artifact, tmp_path).failed

    @pytest.mark.parametrize("second", ["<skipped/>", "<failure/>", None])
    def test_one_that_failed_and_does_not_pass_later_has_failed(
        self, artifact: Path, tmp_path: Path, second: str | None
    ) -> None:
        case = "" if second is None else f'<testcase name="bad">{second}</testcase>'
        good = '<testcase name="good"/>'
        (artifact / "app" / "1.xml").write_text(
            f'<testsuite>{good}<testcase name="bad"><failure/></testcase></testsuite>'
        )
        (artifact / "app" / "2.xml").write_text(f"<testsuite>{good}{case}</testsuite>")
        command = "n=1; test -e ran && n=2; touch ran; cp $n.xml {junit}"
        result = run(artifact, tmp_path, command=command, again=1)
        assert (result.failed, result.flaky) == (("bad",), ())

    def test_a_daemon_that_a_suite_leaves_is_ended(self, artifact: Path, tmp_path: Path) -> None:
        command = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & sleep 0.3 # {{junit}}"
        run(artifact, tmp_path, command=command)
        child = Path("/proc") / (tmp_path / "pid").read_text().strip()
        wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text(), "its end", 5)

    @pytest.mark.parametrize(
        "command", ["mkfifo {junit}", "mkdir {junit}", "ln -s /dev/zero {junit}"]
    )
    def test_what_is_no_file_is_no_result(
        self, artifact: Path, tmp_path: Path, command: str
    ) -> None:
        assert "cannot be read" in run(artifact, tmp_path, command=command).broken

    def test_no_test_at_all(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "app" / "test_shop.py").unlink()
        assert "no test failed, but it ended with 5" in run(artifact, tmp_path).broken

    def test_one_that_cannot_start(self, artifact: Path, tmp_path: Path) -> None:
        broken = run(artifact, tmp_path, command="no-such-program {junit}").broken
        assert "wrote no junit.xml" in broken
        assert "no-such-program" in broken

    def test_one_that_hangs(self, artifact: Path, tmp_path: Path) -> None:
        broken = run(artifact, tmp_path, command="sleep 600 # {junit}", within="500ms").broken
        assert broken == "did not end within 0.5s"

    def test_one_that_is_told_to_stop(self, artifact: Path, tmp_path: Path) -> None:
        over = threading.Event()
        threading.Timer(0.5, over.set).start()
        suite = Suite(name="unit", command="sleep 600 # {junit}")
        began = time.monotonic()
        result = run_suite(suite, artifact, tmp_path / "evidence", tmp_path / "scratch", over)
        assert "was stopped" in result.broken
        assert time.monotonic() - began < 30

    def test_our_settings_are_not_passed_on(
        self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hunter2")
        run(artifact, tmp_path, command="env # {junit}", env={"COLOUR": "blue"})
        said = (tmp_path / "evidence" / "unit" / "output-1.log").read_text()
        assert "COLOUR=blue" in said
        assert "hunter2" not in said

    def test_what_ships_is_not_changed_by_its_tests(self, tmp_path: Path) -> None:
        from blocks.builder import Builder
        from policy.service_file import Build

        source = tmp_path / "source"
        source.mkdir()
        (source / "requirements.txt").write_text("iniconfig==2.0.0\n")
        builder = Builder(tmp_path / "artifacts")
        build = Build.model_validate({"python": {"requirements": "requirements.txt"}})
        digest, _ = builder.build(build, source)
        spoil = "import iniconfig; open(iniconfig.__file__, 'a').write('# spoilt')"
        said = run(
            builder.folder(digest),
            tmp_path,
            command=f'python -c "{spoil}" && echo spoilt # {{junit}}',
        )
        assert "spoilt" in said.broken
        (module,) = builder.folder(digest).glob("venv/lib/*/site-packages/iniconfig/__init__.py")
        assert "spoilt" not in module.read_text()

    def test_requirements_go_over_what_ships_and_never_replace_it(self, tmp_path: Path) -> None:
        from blocks.builder import Builder
        from policy.service_file import Build

        source = tmp_path / "source"
        source.mkdir()
        (source / "requirements.txt").write_text("iniconfig==2.0.0\n")
        (source / "dev.txt").write_text("pytest\n")  # wants iniconfig, and would take a newer one
        (source / "test_it.py").write_text(
            "import importlib.metadata as m\n\n\n"
            "def test_it():\n    assert m.version('iniconfig') == '2.0.0'\n"
        )
        builder = Builder(tmp_path / "artifacts")
        build = Build.model_validate({"python": {"requirements": "requirements.txt"}})
        digest, _ = builder.build(build, source)
        result = run(
            builder.folder(digest),
            tmp_path,
            command="pytest -q --junitxml={junit}",
            requirements="dev.txt",
        )
        assert (result.ran, result.failed, result.broken) == (1, (), "")


class TestReading:
    def test_entities_are_refused(self, tmp_path: Path) -> None:
        bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><testsuites>&b;</testsuites>'
        (tmp_path / "junit.xml").write_text(bomb)
        with pytest.raises(Unreadable, match="cannot be read"):
            read_junit(tmp_path / "junit.xml")

    @pytest.mark.parametrize("text", ["", "<html/>", "no", '{"a": 1}'])
    def test_what_is_no_report(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x").write_text(text)
        for read in (read_junit, read_coverage, read_benchmarks):
            with pytest.raises(Unreadable):
                read(tmp_path / "x")

    @pytest.mark.parametrize(
        "text",
        [
            '<testsuite failures="1"><testcase name="a"/></testsuite>',
            '<testsuites><testcase name="a"/><testsuite errors="2"/></testsuites>',
        ],
    )
    def test_failures_that_are_counted_and_not_shown(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "junit.xml").write_text(text)
        with pytest.raises(Unreadable, match="failures and shows 0"):
            read_junit(tmp_path / "junit.xml")

    def test_cases_without_a_suite_count(self, tmp_path: Path) -> None:
        text = '<testsuites><testcase name="a"><failure message="no"/></testcase></testsuites>'
        (tmp_path / "junit.xml").write_text(text)
        assert read_junit(tmp_path / "junit.xml").failed == {"a": "no"}

    @pytest.mark.parametrize(
        "attributes", ['line-rate="75"', 'line-rate="nan"', 'line-rate="1" lines-valid="0"', ""]
    )
    def test_coverage_that_is_no_share(self, tmp_path: Path, attributes: str) -> None:
        (tmp_path / "x.xml").write_text(f"<coverage {attributes}/>")
        with pytest.raises(Unreadable):
            read_coverage(tmp_path / "x.xml")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-1"])
    def test_benchmarks_that_are_no_times(self, tmp_path: Path, number: str) -> None:
        text = f'{{"benchmarks": [{{"fullname": "a", "stats": {{"data": [{number}]}}}}]}}'
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(Unreadable):
            read_benchmarks(tmp_path / "x.json")

    def test_benchmarks_of_pytest_benchmark(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "app" / "test_shop.py").write_text(
            "def test_fast(benchmark):\n    benchmark.pedantic(sum, ([1],), rounds=7)\n"
        )
        command = f"{PYTEST} --benchmark-json={{benchmarks}} --benchmark-save-data"
        result = run(artifact, tmp_path, command=command)
        assert {name: len(rounds) for name, rounds in result.benchmarks.items()} == {
            "test_shop.py::test_fast": 7
        }

    def test_gates_as_junit(self, tmp_path: Path) -> None:
        results = [
            GateResult("tests", Status.PASS, "block", "3 ran", "all pass", "all passed"),
            GateResult("findings", Status.FAIL, "block", "1", "none", "CVE-1 <jinja2>"),
            GateResult("size", Status.FAIL, "warn", "9 MiB", "8 MiB", "too large"),
        ]
        (tmp_path / "gates.xml").write_text(write_junit(results))
        read = read_junit(tmp_path / "gates.xml")
        assert read.passed == {"dafnck.tests"}
        assert "CVE-1 <jinja2>" in read.failed["dafnck.findings"]
        assert read.skipped == {"dafnck.size"}


class TestTools:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "bad.py").write_text("import os\n")
        return folder

    def answer(self, source: Path, command: str, **words: object) -> Scan:
        tool = Tool.model_validate({"name": "lint", "command": command, **words})
        return run_tool(tool, source, source.parent / "scratch")

    def test_a_real_one_and_its_file_is_named_as_a_waiver_names_it(self, source: Path) -> None:
        command = f"{sys.executable} -m ruff check --output-format sarif --output-file {{sarif}} ."
        (finding,) = self.answer(source, command).findings
        assert (finding.id, finding.severity, finding.line) == ("F401", Severity.HIGH, 1)
        assert finding.about == "bad.py"

    def test_one_that_mends_does_not_mend_for_the_next(self, source: Path) -> None:
        self.answer(source, "rm bad.py # {sarif}")
        assert (source / "bad.py").exists()

    @pytest.mark.parametrize(
        ("command", "why"),
        [
            ("echo no such rule >&2; exit 2 # {sarif}", "it ended with 2: no such rule"),
            ("true {sarif}", "it wrote no SARIF file"),
            ("echo hello > {sarif}", "is not SARIF"),
            ("""echo '{{"version": "2.1.0", "runs": []}}' > {sarif}""", "is not SARIF"),
            ("""echo '{"version": "2.1.0", "runs": []}' > {sarif}""", "holds no run"),
            ("""echo '{"version": "1.0", "runs": []}' > {sarif}""", "2.1.0 can be read"),
            (f"echo '{EMPTY}' > {{sarif}}; exit 2", "found nothing, and ended with 2"),
            (f"echo '{EMPTY}' > {{sarif}}; kill -9 $$", "it was ended by signal 9"),
            ("mkfifo {sarif}", "no plain file"),
            ("mkdir {sarif}", "cannot be read"),
            ("ln -s /dev/zero {sarif}", "cannot be read"),
        ],
    )
    def test_no_answer_is_told(self, source: Path, command: str, why: str) -> None:
        answer = self.answer(source, command)
        assert answer.outcome is Outcome.NOT_SCANNED
        assert why in answer.reason

    def test_what_is_exploited_is_told_to_the_ci_system(self) -> None:
        one = Finding("trivy", "vulnerability", "CVE-1", Severity.HIGH, "", "x", epss=0.5, kev=True)
        [run] = json.loads(sarif.written([one]))["runs"]
        assert run["results"][0]["properties"] == {"kev": True, "epss": 0.5}

    def test_one_that_says_itself_that_it_failed(self, tmp_path: Path) -> None:
        run = {
            "tool": {"driver": {"name": "x"}},
            "results": [],
            "invocations": [{"executionSuccessful": False, "exitCodeDescription": "no licence"}],
        }
        path = tmp_path / "x.sarif"
        path.write_text(json.dumps({"version": "2.1.0", "runs": [run]}))
        assert "no licence" in sarif.read(path, "x").reason

    def test_it_hangs(self, source: Path) -> None:
        answer = self.answer(source, "sleep 600 # {sarif}", within="300ms")
        assert answer.reason == "it did not end within 0.3s"

    @pytest.mark.parametrize(
        ("result", "severity"),
        [
            ({"ruleId": "A"}, Severity.CRITICAL),  # by its score
            ({"ruleId": "A/1"}, Severity.CRITICAL),
            ({"rule": {"index": 0, "toolComponent": {"index": 0}}}, Severity.HIGH),
            ({"ruleId": "B", "level": "note"}, Severity.HIGH),  # of an extension
            ({"ruleId": "N"}, Severity.CRITICAL),  # its score is no number
            ({"ruleId": "?", "level": "error"}, Severity.HIGH),
            ({"ruleId": "?", "suppressions": [{"status": "rejected"}]}, Severity.MEDIUM),
            ({"ruleId": "?", "suppressions": [{"kind": "inSource"}]}, None),
            ({"ruleId": "?", "kind": "open"}, Severity.MEDIUM),
            ({"ruleId": "?", "kind": "pass"}, None),
        ],
    )
    def test_how_bad_it_is(
        self, tmp_path: Path, result: dict[str, object], severity: Severity | None
    ) -> None:
        def rule(name: str, score: str) -> dict[str, object]:
            return {"id": name, "properties": {"security-severity": score}}

        tool = {
            "driver": {"name": "x", "rules": [rule("A", "9.8"), rule("N", "nan")]},
            "extensions": [{"name": "pack", "rules": [rule("B", "7.5")]}],
        }
        path = tmp_path / "x.sarif"
        path.write_text(
            json.dumps({"version": "2.1.0", "runs": [{"tool": tool, "results": [result]}]})
        )
        read = sarif.read(path, "x")
        assert [f.severity for f in read.findings] == ([] if severity is None else [severity])

    def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        findings = [
            Finding("trivy", "secret", "key", Severity.CRITICAL, "A key", "a.py", line=3),
            Finding("trivy", "vulnerability", "CVE-1", Severity.LOW, "Bad", "r.txt", package="p"),
        ]
        path = tmp_path / "x.sarif"
        path.write_text(sarif.written(findings[:1], [(findings[1], "not reachable")]))
        read = sarif.read(path, "dafnck")
        assert [(f.id, f.severity, f.target, f.line) for f in read.findings] == [
            ("key", Severity.CRITICAL, "a.py", 3)
        ]
        assert "not reachable" in path.read_text()
