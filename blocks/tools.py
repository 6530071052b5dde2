"""Runs an analyser of the team's own choice, and reads the SARIF that it writes."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from blocks import sarif
from blocks.confined import CannotRun, confined
from blocks.files import scratch
from policy.findings import Outcome, Scan, not_scanned
from policy.pipeline import Tool


def run_tool(tool: Tool, source: Path, place: Path) -> Scan:
    """`source`: in a copy of it the tool runs; `place`: for that copy. Tools end with 1 when they
    find something, so what it wrote counts; but one that ends badly and found nothing did not look.
    """
    return replace(_run(tool, source, place), sarif=True)


def _run(tool: Tool, source: Path, place: Path) -> Scan:
    with scratch(place, "t") as here:
        # A copy for each: one that mends what it finds must not mend it for the next.
        copy, answer = here / "source", here / "answer.sarif"
        shutil.copytree(source, copy, symlinks=True)
        if isinstance(tool.command, str):
            text = tool.command.replace("{sarif}", shlex.quote(str(answer)))
            argv = ["/bin/sh", "-c", text]
        else:
            argv = [word.replace("{sarif}", str(answer)) for word in tool.command]
        limit = tool.within
        try:
            with confined(argv, place, within_seconds=limit, folder=copy, network=True) as ended:
                told = answer.is_symlink() or answer.exists()
                if ended.code is None or ended.code < 0 or (ended.code and not told):
                    return not_scanned(tool.name, f"it {ended.why(limit)}")
                scan = sarif.read(answer, tool.name, copy)
                if ended.code and scan.outcome is Outcome.CLEAN:
                    return not_scanned(tool.name, f"it found nothing, and {ended.why(limit)}")
        except CannotRun as error:
            return not_scanned(tool.name, str(error))
        return scan
