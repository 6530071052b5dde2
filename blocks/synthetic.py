"""Requests of our own through the router, while too few people send any: a judge cannot tell
anything about a release that nobody asks."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import httpx

log = logging.getLogger("dafnck")
WINDOW_SECONDS = 10.0


class SyntheticRequests:
    """Sends the requests of a list, over and over, at a rate, from a thread of its own, as long as
    fewer than `below` a second come in besides."""

    def __init__(
        self,
        url: str,
        host: str,
        requests: list[tuple[str, str]],
        *,
        per_second: float,
        below: float,
        seen: Callable[[], float],
    ) -> None:
        """`seen`: how many requests the router has counted so far, ours among them."""
        self.sent = 0
        self._url, self._host, self._requests = url, host, requests
        self._pause, self._below, self._seen = 1 / per_second, below, seen
        self._window: deque[tuple[float, float]] = deque()  # time, requests of others so far
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sending, name="synthetic", daemon=True)

    def __enter__(self) -> "SyntheticRequests":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _needed(self) -> bool:
        now, others = time.monotonic(), self._seen() - self.sent
        self._window.append((now, others))
        while now - self._window[0][0] > WINDOW_SECONDS:
            self._window.popleft()
        began, before = self._window[0]
        return others - before < self._below * max(now - began, 1.0)

    def _sending(self) -> None:
        with httpx.Client(timeout=5, trust_env=False, headers={"Host": self._host}) as client:
            while not self._over.wait(self._pause):
                if not self._needed():
                    continue
                method, path = self._requests[self.sent % len(self._requests)]
                self.sent += 1
                try:
                    client.request(method, self._url + path)
                except httpx.HTTPError as error:
                    # The router counts what fails; this is only our end of it.
                    log.debug("synthetic request: %s", error)
