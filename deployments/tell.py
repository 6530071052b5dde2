"""Lines of a run for a job's log or a terminal.

What a run logs is not trusted: it gets no line of its own that a CI system or a terminal would take
for a command."""

import re
import sys
import time
from typing import Any

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Teller:
    def __init__(self, on_stderr: bool = False) -> None:
        self._stream = sys.stderr if on_stderr else sys.stdout
        self._console: Any = None
        self._status: Any = None

    def __enter__(self) -> "Teller":
        if self._stream.isatty():
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False)
            self._status = self._console.status("asks Prefect")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def line(self, text: str, *, at: float | None = None, level: int = 20) -> None:
        """`at`: seconds since the epoch, default now. `level`: as Python's logging has them."""
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        first, *others = plain(text).split("\n")
        word = "ERROR  " if level >= 40 else "WARNING  " if level >= 30 else ""
        whole = f"{clock}  {word}{first}" + "".join(f"\n{'':8}| {line}" for line in others)
        if self._console:
            style = "red" if level >= 40 else "yellow" if level >= 30 else None
            self._console.print(whole, soft_wrap=True, markup=False, style=style)
        else:
            print(whole, file=self._stream, flush=True)

    def now(self, what: str) -> None:
        """What a terminal shows below the lines until the next time."""
        if self._status:
            from rich.markup import escape

            self._status.update(escape(plain(what)))


def plain(text: str) -> str:
    """Without what moves the cursor, colours, rings or cannot be encoded."""
    text = CONTROLS.sub(" ", ESCAPES.sub("", text.replace("\r\n", "\n").rstrip()))
    return text.encode("utf-8", "replace").decode()
