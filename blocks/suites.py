"""Runs a suite of tests in a copy of what was built: what was tested is what ships."""

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from blocks.check_results import Results, Unreadable, read_benchmarks, read_coverage, read_junit
from blocks.confined import CannotRun, Ended, confined
from blocks.files import scratch
from blocks.image_suites import REPORTS, in_container
from blocks.images import read_image
from blocks.steps import BuildFailed, Steps
from policy.evidence import SuiteResult
from policy.pipeline import Suite

# Also of what was installed from a folder or a repository, which `pip freeze` names by its place.
PINS = """
import importlib.metadata, sys
with open(sys.argv[1], "w") as file:
    for one in importlib.metadata.distributions():
        print(f"{one.name}=={one.version}", file=file)
"""
KEPT = {"junit": "junit.xml", "coverage": "coverage.xml", "benchmarks": "benchmarks.json"}
Begin = Callable[[], AbstractContextManager[Ended]]  # runs its command once


def run_suite(
    suite: Suite, artifact: Path, evidence: Path, place: Path, over: threading.Event
) -> SuiteResult:
    """`artifact`: the folder of what was built; it is copied into a folder in `place`, or a
    container of its image runs. What the suite writes is kept in `evidence`/<suite>/. `over`: when
    it is set, what runs is killed.

    A suite that has failures runs again where the file says so: what passes then is flaky."""
    kept = evidence / suite.name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    try:
        if image := read_image(artifact):
            return _result(
                suite,
                kept,
                lambda: in_container(
                    _argv(suite, {name: REPORTS / file for name, file in KEPT.items()}),
                    image,
                    place,
                    {file: kept / file for file in KEPT.values()},
                    within_seconds=suite.within,
                    environment=suite.env,
                    over=over,
                ),
            )
        with _workspace(suite, artifact, place, kept, over) as (copy, path):
            return _result(
                suite,
                kept,
                lambda: confined(
                    _argv(suite, {name: kept / file for name, file in KEPT.items()}),
                    place,
                    within_seconds=suite.within,
                    folder=copy,
                    network=True,
                    add={"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **suite.env},
                    over=over,
                ),
            )
    except (Unreadable, CannotRun) as error:
        return SuiteResult(suite.name, 0, broken=str(error))
    except BuildFailed as error:
        return SuiteResult(suite.name, 0, broken=f"its requirements were not installed: {error}")


def _result(suite: Suite, kept: Path, begin: Begin) -> SuiteResult:
    """What failed once and does not pass in the last run has failed; what does is flaky."""
    once: dict[str, str] = {}
    for attempt in range(1, suite.again + 2):
        results = _run(suite, kept, attempt, begin)
        once |= results.failed
        if not results.failed:
            break
    flaky = once.keys() & results.passed
    failed = {name: said for name, said in once.items() if name not in flaky}
    return SuiteResult(
        suite.name,
        len(results.passed | failed.keys()),
        failed=tuple(f"{name} ({said})" if said else name for name, said in failed.items()),
        skipped=len(results.skipped),
        flaky=tuple(sorted(flaky)),
        coverage=read_coverage(kept / KEPT["coverage"]),
        benchmarks=read_benchmarks(kept / KEPT["benchmarks"]),
    )


def _run(suite: Suite, kept: Path, attempt: int, begin: Begin) -> Results:
    """Raises Unreadable when the suite left no result, or ended badly without a failed test."""
    for file in (kept / name for name in KEPT.values()):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    with begin() as ended:
        shutil.copyfile(ended.answer, kept / f"output-{attempt}.log")
        if ended.code is None:
            raise Unreadable(ended.why(suite.within))
        try:
            results = read_junit(kept / KEPT["junit"])
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
def _workspace(
    suite: Suite, artifact: Path, place: Path, kept: Path, over: threading.Event
) -> Iterator[tuple[Path, str]]:
    """A copy of the artifact. -> (where its application is, PATH)"""
    with scratch(place, "s") as here:
        app, venv = here / "app", here / "venv"
        shutil.copytree(artifact / "app", app, symlinks=True)
        folders = []
        if (artifact / "venv").exists():
            shutil.copytree(artifact / "venv", venv, symlinks=True)
            folders = [venv / "bin"]
        if suite.requirements:
            folders.insert(0, _with_requirements(suite, app, venv, kept, over))
        yield app, os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def _with_requirements(
    suite: Suite, app: Path, venv: Path, kept: Path, over: threading.Event
) -> Path:
    """An environment with what the tests need, over a copy of the artifact's: whatever ships is
    used as it ships, never another version of it. -> its bin folder"""
    from uv import find_uv_bin

    uv, extra, here = os.fsdecode(find_uv_bin()), app.parent / "extra", app.parent
    log = kept / "requirements.log"
    with log.open("w") as output:
        steps = Steps(output, log, suite.within, over)
        python = str(venv / "bin" / "python") if venv.exists() else sys.executable
        steps.run([uv, "venv", "--python", python, str(extra)], here)
        install = [uv, "pip", "install", "--python", str(extra / "bin" / "python")]
        install += ["--requirement", str(app / str(suite.requirements))]
        if venv.exists():
            pins = here / "shipped.txt"
            steps.run([python, "-c", PINS, str(pins)], here)
            install += ["--constraint", str(pins)]
            _site_packages(extra).joinpath("shipped.pth").write_text(f"{_site_packages(venv)}\n")
        steps.run(install, here)
    return extra / "bin"


def _site_packages(venv: Path) -> Path:
    return next(iter(sorted(venv.glob("lib/python*/site-packages"))))


def _last_line(answer: Path) -> str:
    with answer.open("rb") as file:
        file.seek(max(0, answer.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")
