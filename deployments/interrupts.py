"""Ctrl-C and SIGTERM as a CI system sends them: the first is noted, the second leaves at once."""

import signal
import threading
import time
from types import FrameType
from typing import Any

ONE_PRESS_SECONDS = 0.5  # within it a parent and the process group may each pass the same one on


class Interrupts:
    def __init__(self) -> None:
        self.patient = False  # until there is something to leave orderly, the first one leaves too
        self.number: int | None = None
        self._noted_at = 0.0
        self._event = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def wait(self, seconds: float) -> None:
        """No longer than until the first of them comes."""
        if self.number is None:
            self._event.wait(seconds)
        else:
            time.sleep(seconds)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._noted_at = number, now
            self._event.set()
            if not self.patient:
                raise KeyboardInterrupt
        elif now - self._noted_at > ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
