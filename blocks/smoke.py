"""Asks a release whether it works, in ways that its team named."""

import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from blocks.confined import CannotRun, confined
from policy.pipeline import SmokeTest

MOST_BYTES = 4 * 2**20  # of an answer that is looked at


def ask(test: SmokeTest, url: str, headers: Mapping[str, str]) -> str:
    """Ask once, through the router. -> why it is not as it must be; empty when it is."""
    began = time.monotonic()
    content = b""
    try:
        with (
            httpx.Client(trust_env=False, timeout=test.within) as client,
            client.stream("GET", url + str(test.get), headers=dict(headers)) as answer,
        ):
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > MOST_BYTES or time.monotonic() - began > test.within:
                    break
    except httpx.HTTPError as error:
        return f"no answer within {test.within:g}s ({error or type(error).__name__})"
    took = time.monotonic() - began
    wanted = test.status or 200
    if answer.status_code != wanted:
        return f"answers {answer.status_code}, not {wanted}"
    if took > test.within:
        return f"took {took:.2f}s, at most {test.within:g}s is allowed"
    if test.header and test.header.value not in answer.headers.get(test.header.name, ""):
        has = answer.headers.get(test.header.name)
        return f"its header {test.header.name} is {has!r}, without {test.header.value!r}"
    if test.body and test.body not in content.decode(answer.encoding or "utf-8", "replace"):
        return f"its body does not hold {test.body!r}"
    return ""


def run(
    test: SmokeTest,
    place: Path,
    folder: Path,
    environment: Mapping[str, str],
    over: threading.Event,
) -> str:
    """Run the command in `folder`. -> why it failed; empty when it did not. `over`: when it is set,
    it is ended."""
    command = test.command
    argv = shlex.split(command) if isinstance(command, str) else list(command or ())
    try:
        with confined(
            argv,
            place,
            within_seconds=test.within,
            folder=folder,
            network=True,
            add=environment,
            over=over,
        ) as ended:
            return "" if ended.code == 0 else ended.why(test.within)
    except CannotRun as error:
        return str(error)
