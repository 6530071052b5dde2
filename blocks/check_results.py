"""What test suites write down: JUnit XML, Cobertura XML, pytest-benchmark JSON."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree
from junitparser import Error, Failure, JUnitXml, JUnitXmlError, Skipped, TestCase, TestSuite
from pydantic import BaseModel, Field, ValidationError

from blocks.files import read_plain_file
from policy.gate_results import GateResult, Status

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
        root = _root(path)
        from_element: Any = TestCase.fromelem
        cases = [from_element(case) for case in root.iter("testcase")]
        declared = sum(
            int(suite.get(kind) or 0)
            for suite in root.iter("testsuite")
            if suite.find("testsuite") is None  # others repeat what those within them say
            for kind in ("failures", "errors")
        )
    except (*NO_XML, JUnitXmlError, AttributeError) as error:
        raise Unreadable(f"its JUnit XML cannot be read: {error}") from None
    if root.tag not in ("testsuites", "testsuite"):
        raise Unreadable(f"its JUnit XML cannot be read: it begins with <{root.tag}>")
    shown = 0
    for case in cases:
        name = ".".join(part for part in (case.classname, case.name) if part)
        bad = [r for r in case.result if isinstance(r, Failure | Error)]
        shown += len(bad)
        if bad:
            said = str(bad[0].message or bad[0].text or "").strip().splitlines()
            results.failed[name] = said[0][:300] if said else ""
        elif any(isinstance(r, Skipped) for r in case.result):
            results.skipped.add(name)
        else:
            results.passed.add(name)
    results.passed -= results.failed.keys()
    if declared > shown:
        raise Unreadable(f"its JUnit XML counts {declared} failures and shows {shown}")
    return results


def read_coverage(path: Path) -> float | None:
    """Cobertura XML -> percent of the lines; None when no such file was written."""
    if not os.path.lexists(path):
        return None
    try:
        root = _root(path)
        rate = float(root.attrib["line-rate"])
    except KeyError:
        raise Unreadable("its coverage XML names no line-rate") from None
    except NO_XML as error:
        raise Unreadable(f"its coverage XML cannot be read: {error}") from None
    if root.get("lines-valid") == "0":
        raise Unreadable("its coverage measured no line")
    if not 0 <= rate <= 1:
        raise Unreadable(f"its coverage XML has a line-rate of {rate:g}; that is no share")
    return round(rate * 100, 2)


Rounds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NO_XML = (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError)


class _Stats(BaseModel):
    data: list[Rounds] = []  # seconds of each round, with --benchmark-save-data


class _Benchmark(BaseModel):
    fullname: str
    stats: _Stats


class _Benchmarks(BaseModel):
    benchmarks: list[_Benchmark]


def read_benchmarks(path: Path) -> dict[str, Sequence[float]]:
    """pytest-benchmark JSON -> seconds of each round, by test; empty when no such file."""
    if not os.path.lexists(path):
        return {}
    try:
        found = _Benchmarks.model_validate_json(_content(path))
    except ValidationError as error:
        what: Any = error.errors()[0]
        raise Unreadable(f"its benchmarks cannot be read: {what['msg']}") from None
    return {one.fullname: one.stats.data for one in found.benchmarks}


def write_junit(results: Sequence[GateResult]) -> str:
    """Gates as test cases, for CI systems that show those. A warning is skipped, with its words."""
    suite = TestSuite("gates")
    for result in results:
        case = TestCase(result.gate, "dafnck")
        measured = f"measured: {result.number or 'nothing'}; asked: {result.limit}"
        words = f"{_printable(result.reason)} ({measured})"
        if result.blocks:
            case.result = [Failure(words)]
        elif result.status is not Status.PASS:
            case.result = [Skipped(words)]
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    return str(xml.tostring().decode())  # type: ignore[no-untyped-call]


def _printable(words: str) -> str:
    """XML has no way to write control characters, as the colours of a terminal are."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in words)


def _root(path: Path) -> Any:
    """Entities and references are refused before anything is built of them."""
    return ElementTree.fromstring(_content(path))


def _content(path: Path) -> bytes:
    try:
        return read_plain_file(path, MAX_BYTES)
    except FileNotFoundError:
        raise Unreadable(f"it wrote no {path.name}") from None
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error}") from None
