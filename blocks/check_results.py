"""What test suites write down: JUnit XML, Cobertura XML, pytest-benchmark JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree
from junitparser import Error, Failure, JUnitXml, JUnitXmlError, Skipped, TestCase, TestSuite
from pydantic import BaseModel, ValidationError

from policy.gates import GateResult, Status

MAX_BYTES = 64 * 2**20


class Unreadable(Exception):
    """There is no result, or it is not one."""


class Results(BaseModel):
    """Names of the tests, as `class.name`."""

    passed: set[str]
    failed: dict[str, str]  # with the first line of what went wrong
    skipped: set[str]


def read_junit(path: Path) -> Results:
    """Raises Unreadable."""
    results = Results(passed=set(), failed={}, skipped=set())
    try:
        xml = JUnitXml.fromroot(_root(path))
    except (ParseError, DefusedXmlException, JUnitXmlError, ValueError) as error:
        raise Unreadable(f"its JUnit XML cannot be read: {error}") from None
    suites = [xml] if isinstance(xml, TestSuite) else list(xml)
    for case in (case for suite in suites for case in suite):
        name = ".".join(part for part in (case.classname, case.name) if part)
        bad = [r for r in case.result if isinstance(r, Failure | Error)]
        if bad:
            said = str(bad[0].message or bad[0].text or "").strip().splitlines()
            results.failed[name] = said[0][:300] if said else ""
        elif any(isinstance(r, Skipped) for r in case.result):
            results.skipped.add(name)
        else:
            results.passed.add(name)
    return results


def read_coverage(path: Path) -> float | None:
    """Cobertura XML -> percent of the lines; None when no such file was written."""
    if not path.exists():
        return None
    try:
        return round(float(_root(path).attrib["line-rate"]) * 100, 2)
    except KeyError:
        raise Unreadable("its coverage XML names no line-rate") from None
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Unreadable(f"its coverage XML cannot be read: {error}") from None


class _Stats(BaseModel):
    data: list[float] = []  # seconds of each round, with --benchmark-save-data


class _Benchmark(BaseModel):
    fullname: str
    stats: _Stats


class _Benchmarks(BaseModel):
    benchmarks: list[_Benchmark]


def read_benchmarks(path: Path) -> dict[str, Sequence[float]]:
    """pytest-benchmark JSON -> seconds of each round, by test; empty when no such file."""
    if not path.exists():
        return {}
    try:
        found = _Benchmarks.model_validate_json(_checked(path).read_bytes())
    except ValidationError as error:
        what: Any = error.errors()[0]
        raise Unreadable(f"its benchmarks cannot be read: {what['msg']}") from None
    return {one.fullname: one.stats.data for one in found.benchmarks}


def write_junit(results: Sequence[GateResult]) -> str:
    """Gates as test cases, for CI systems that show those. A warning is skipped, with its words."""
    suite = TestSuite("gates")
    for result in results:
        case = TestCase(result.gate, "dafnck")
        words = f"{result.reason} (measured: {result.number or 'nothing'}; asked: {result.limit})"
        if result.blocks:
            case.result = [Failure(words)]
        elif result.status is not Status.PASS:
            case.result = [Skipped(words)]
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    return str(xml.tostring().decode())  # type: ignore[no-untyped-call]


def _root(path: Path) -> Any:
    """Entities and references are refused before anything is built of them."""
    return ElementTree.parse(_checked(path)).getroot()


def _checked(path: Path) -> Path:
    try:
        size = path.stat().st_size
    except OSError:
        raise Unreadable(f"it wrote no {path.name}") from None
    if size > MAX_BYTES:
        raise Unreadable(f"{path.name} is larger than {MAX_BYTES >> 20} MiB")
    return path
