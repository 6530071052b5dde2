"""Runs an analyser of the team's own choice, and reads the SARIF that it writes."""

import shlex
from pathlib import Path

from blocks import sarif
from blocks.confined import CannotRun, confined
from blocks.files import scratch
from policy.findings import Scan, not_scanned
from policy.pipeline import Tool


def run_tool(tool: Tool, source: Path, place: Path) -> Scan:
    """`source`: a copy of the source, in which it runs; `place`: for its answer. What it ends with
    says little, as tools end with 1 when they find something: what it wrote counts."""
    with scratch(place, tool.name) as here:
        answer = here / "answer.sarif"
        if isinstance(tool.command, str):
            text = tool.command.replace("{sarif}", shlex.quote(str(answer)))
            argv = ["/bin/sh", "-c", text]
        else:
            argv = [word.replace("{sarif}", str(answer)) for word in tool.command]
        try:
            with confined(
                argv, here, within_seconds=tool.within, folder=source, network=True
            ) as ended:
                if ended.code is None:
                    return not_scanned(tool.name, f"it {ended.why(tool.within)}")
                if not answer.exists() and ended.code != 0:
                    return not_scanned(tool.name, f"it {ended.why(tool.within)}")
        except CannotRun as error:
            return not_scanned(tool.name, str(error))
        return sarif.read(answer, tool.name)
