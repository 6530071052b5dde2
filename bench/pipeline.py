"""What the engine adds to building, testing, scanning and judging, over the bare commands.

    python -m bench.pipeline [--pairs 3] [--json FILE]

httpbin from its source distribution with its own tests, and one more that waits, so that the whole
takes about a minute. By hand: git clone, uv, pytest, Trivy three times, one after the other. By
dafnck: the flow `pipeline` on the same commit, in this process, Prefect included. In turns, each on
a commit of its own, package caches warm. Exit code 1 when a pipeline did not pass.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.real import application, bring_database, commit_all, have_trivy
from bench.stage import Stage, stage

WAIT_SECONDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    have_trivy()
    with tempfile.TemporaryDirectory() as place, stage(Path(place)) as here:
        bring_database(here)
        source = application(Path(place), "httpbin")
        (source / "tests" / "test_wait.py").write_text(
            f"import time\n\n\ndef test_it():\n    time.sleep({WAIT_SECONDS})\n"
        )
        _by_hand(here, source, commit_all(source), Path(place) / "warm")  # fills package caches
        by_hand, by_us = [], []
        for number in range(wanted.pairs):
            (source / "httpbin" / "number.py").write_text(f"NUMBER = {number}\n")
            commit = commit_all(source)
            by_hand.append(_by_hand(here, source, commit, Path(place) / f"hand-{number}"))
            by_us.append(_by_us(source, commit))
            print(f"by hand {by_hand[-1]:.1f} s, pipeline {by_us[-1]:.1f} s", file=sys.stderr)
    result = {
        "by_hand_seconds": median(by_hand),
        "pipeline_seconds": median(by_us),
        "ratio": median(by_us) / median(by_hand),
        "pairs": [list(pair) for pair in zip(by_hand, by_us, strict=True)],
    }
    print(json.dumps(result, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=1))


def _by_us(source: Path, commit: str) -> float:
    from flows.pipeline import pipeline

    began = time.monotonic()
    state: Any = pipeline("dafnck.yaml", git=f"file://{source}", commit=commit, return_state=True)
    took = time.monotonic() - began
    if not state.is_completed():
        print(state.message, file=sys.stderr)
        sys.exit(1)
    return took


def _by_hand(here: Stage, source: Path, commit: str, place: Path) -> float:
    from uv import find_uv_bin

    uv, clone, venv, extra = os.fsdecode(find_uv_bin()), place / "src", place / "v", place / "x"
    trivy = [str(shutil.which("trivy")), "--quiet", "--cache-dir", str(here.stack.scan_cache)]
    offline = ["--skip-db-update", "--skip-java-db-update", "--skip-check-update", "--offline-scan"]
    install = [uv, "pip", "install", "-q", "--link-mode", "copy"]
    python, theirs = str(venv / "bin" / "python"), str(extra / "bin" / "python")
    reports = [f"--junitxml={place}/junit.xml", f"--cov-report=xml:{place}/coverage.xml"]
    scanners = ["--scanners", "vuln,misconfig,secret", "-f", "json", "-o", f"{place}/fs.json"]
    licences = ["--scanners", "vuln,license", "-f", "json", "-o", f"{place}/rootfs.json"]
    packages = ["-f", "cyclonedx", "-o", f"{place}/sbom.json"]
    place.mkdir()
    began = time.monotonic()
    for words, folder in (
        ([str(shutil.which("git")), "clone", "-q", f"file://{source}", str(clone)], source),
        ([str(shutil.which("git")), "checkout", "-q", commit], clone),
        ([uv, "venv", "-q", "--relocatable", "--python", sys.executable, str(venv)], clone),
        ([*install, "--compile-bytecode", "--python", python, "-r", "serve.txt", "."], clone),
        ([uv, "venv", "-q", "--python", python, str(extra)], clone),
        ([*install, "--python", theirs, "-r", "test.txt", "."], clone),
        ([theirs, "-m", "pytest", "-q", "tests", "--cov=httpbin", *reports], clone),
        ([*trivy, "fs", *offline, *scanners, str(clone)], place),
        ([*trivy, "rootfs", *offline, *licences, str(venv)], place),
        ([*trivy, "rootfs", *offline, *packages, str(venv)], place),
    ):
        subprocess.run(words, cwd=folder, check=True, stdout=sys.stderr)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
