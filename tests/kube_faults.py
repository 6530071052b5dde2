"""What goes wrong with an API server when a test says so; always the same way."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from kube_requests import Write
from kube_store import Answer

WORDS = {
    429: ("TooManyRequests", "Too many requests, please try again later."),
    500: ("InternalError", "Internal error occurred: etcdserver: leader changed"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within the requested timeout"),
    401: ("Unauthorized", "Unauthorized"),
    410: ("Expired", "The resourceVersion for the provided watch is too old."),
    409: (
        "Conflict",
        "Operation cannot be fulfilled: the object has been modified; please apply your changes "
        "to the latest version and try again",
    ),
}


@dataclass
class Fault:
    """Of the next `times` requests that fit; of all of them with None."""

    times: int | None = 1
    verb: str = ""  # get list watch create update patch apply delete; "" fits all
    plural: str = ""  # pods, deployments/scale; "" fits all
    name: str = ""
    code: int = 0  # answers so
    retry_after: int | None = None
    seconds: float = 0.0  # answers so much later
    reset: bool = False  # hangs up without a word
    lost: bool = False  # does it, and hangs up before it answers

    def fits(self, verb: str, plural: str, name: str) -> bool:
        pairs = ((self.verb, verb), (self.plural, plural), (self.name, name))
        return self.times != 0 and all(mine in ("", its) for mine, its in pairs)

    def answer(self) -> Answer:
        reason, words = WORDS[self.code]
        details = {"retryAfterSeconds": self.retry_after} if self.retry_after is not None else None
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return Answer(self.code, reason, words, details, headers)


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, **fault: object) -> Fault:
        """Fields of a Fault. -> it; `times = 0` ends it."""
        made = Fault(**fault)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(made)
        return made

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def next(self, verb: str, plural: str, name: str) -> Fault | None:
        """The first one that fits, used up by one."""
        with self._lock:
            found = next((one for one in self._faults if one.fits(verb, plural, name)), None)
            if found is not None and found.times is not None:
                found.times -= 1
            return found


def at_write(number: int, act: Callable[[Write], None]) -> Callable[[Write], None]:
    """Do this at the n-th write from here on (1 is the next)."""
    left = [number]

    def count(write: Write) -> None:
        left[0] -= 1
        if left[0] == 0:
            act(write)

    return count
