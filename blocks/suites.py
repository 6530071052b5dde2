"""Runs a suite of tests in a copy of what was built: what was tested is what ships."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.check_results import Results, Unreadable, read_benchmarks, read_coverage, read_junit
from blocks.confined import CannotRun, confined
from blocks.files import scratch
from blocks.steps import BuildFailed, Steps
from policy.gates import SuiteResult
from policy.pipeline import Suite

KEPT = {"junit": "junit.xml", "coverage": "coverage.xml", "benchmarks": "benchmarks.json"}


def run_suite(
    suite: Suite, artifact: Path, evidence: Path, place: Path, over: threading.Event
) -> SuiteResult:
    """`artifact`: the folder of what was built; it is copied into a folder in `place`. What the
    suite writes is kept in `evidence`/<suite>/. `over`: when it is set, what runs is killed.

    A suite that has failures runs again where the file says so: what passes then is flaky."""
    kept = evidence / suite.name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    try:
        with _workspace(suite, artifact, place, kept) as (copy, path):
            return _result(suite, copy, path, kept, over)
    except (Unreadable, CannotRun) as error:
        return SuiteResult(suite.name, 0, broken=str(error))
    except BuildFailed as error:
        return SuiteResult(suite.name, 0, broken=f"its requirements were not installed: {error}")


def _result(suite: Suite, place: Path, path: str, kept: Path, over: threading.Event) -> SuiteResult:
    first = results = _run(suite, place, path, kept, 1, over)
    flaky: set[str] = set()
    for attempt in range(2, suite.again + 2):
        if not results.failed:
            break
        results = _run(suite, place, path, kept, attempt, over)
        flaky |= results.passed & first.failed.keys()
    failed = results.failed  # in the last run: it has failed, whatever it did before
    return SuiteResult(
        suite.name,
        len(results.passed) + len(results.failed),
        failed=tuple(f"{name} ({said})" if said else name for name, said in failed.items()),
        skipped=len(results.skipped),
        flaky=tuple(sorted(flaky - failed.keys())),
        coverage=read_coverage(kept / KEPT["coverage"]),
        benchmarks=read_benchmarks(kept / KEPT["benchmarks"]),
    )


def _run(
    suite: Suite, place: Path, path: str, kept: Path, attempt: int, over: threading.Event
) -> Results:
    """Raises Unreadable when the suite left no result, or ended badly without a failed test."""
    names = {name: kept / file for name, file in KEPT.items()}
    for file in names.values():
        file.unlink(missing_ok=True)
    environment = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **suite.env}
    argv = _argv(suite, names)
    with confined(
        argv,
        place.parent,
        within_seconds=suite.within,
        folder=place,
        network=True,
        add=environment,
        over=over,
    ) as ended:
        shutil.copyfile(ended.answer, kept / f"output-{attempt}.log")
        if ended.code is None:
            raise Unreadable(ended.why(suite.within))
        try:
            results = read_junit(names["junit"])
        except Unreadable as error:
            said = ended.last_words or _last_line(ended.answer)
            raise Unreadable(f"{error} (exit code {ended.code}; {said})") from None
        if ended.code != 0 and not results.failed:
            raise Unreadable(
                f"no test failed, but it {ended.why(suite.within)} {_last_line(ended.answer)}"
            )
    return results


def _argv(suite: Suite, names: dict[str, Path]) -> list[str]:
    if isinstance(suite.command, str):
        text = suite.command
        for name, file in names.items():
            text = text.replace(f"{{{name}}}", shlex.quote(str(file)))
        return ["/bin/sh", "-c", text]
    argv = list(suite.command)
    for name, file in names.items():
        argv = [word.replace(f"{{{name}}}", str(file)) for word in argv]
    return argv


@contextmanager
def _workspace(suite: Suite, artifact: Path, place: Path, kept: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the application. -> (where it is, PATH)"""
    with scratch(place, suite.name) as here:
        copy = here / "app"
        shutil.copytree(artifact / "app", copy, symlinks=True)
        folders = [artifact / "venv" / "bin"] if (artifact / "venv").exists() else []
        if suite.requirements:
            folders.insert(0, _with_requirements(suite, artifact, here, kept))
        yield copy, os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def _with_requirements(suite: Suite, artifact: Path, here: Path, kept: Path) -> Path:
    """An environment with what the tests need, over that of the artifact: whatever the artifact has
    is used as it is there, never another version of it. -> its bin folder"""
    from uv import find_uv_bin

    uv, venv, shipped = os.fsdecode(find_uv_bin()), here / "venv", artifact / "venv"
    with (kept / "requirements.log").open("w") as output:
        steps = Steps(output, kept / "requirements.log", suite.within)
        python = str(shipped / "bin" / "python") if shipped.exists() else sys.executable
        steps.run([uv, "venv", "--python", python, str(venv)], here)
        install = [uv, "pip", "install", "--python", str(venv / "bin" / "python")]
        install += ["--requirement", str(artifact / "app" / str(suite.requirements))]
        if shipped.exists():
            frozen = [uv, "pip", "freeze", "--python", python]
            listed = subprocess.run(frozen, capture_output=True, text=True, check=True).stdout
            pins = [line for line in listed.splitlines() if "==" in line]
            (here / "shipped.txt").write_text("\n".join(pins) + "\n")
            install += ["--constraint", str(here / "shipped.txt")]
            _site_packages(venv).joinpath("shipped.pth").write_text(f"{_site_packages(shipped)}\n")
        steps.run(install, here)
    return venv / "bin"


def _site_packages(venv: Path) -> Path:
    found = sorted(venv.glob("lib/python*/site-packages"))
    return found[0] if found else Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))


def _last_line(answer: Path) -> str:
    with answer.open("rb") as file:
        file.seek(max(0, answer.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")
