"""A steady load on the router, every answer counted: what the people behind it would have seen."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx


@dataclass
class Answers:
    sent: int = 0
    good: int = 0
    from_bad_build: int = 0  # failed, and says itself that it comes from the broken build
    failed_else: Counter[str] = field(default_factory=Counter)  # status or exception
    first_bad_at: float | None = None  # of these, seconds since the epoch
    first_failed_at: float | None = None  # of all that failed


class SteadyLoad:
    """Requests at a fixed rate from a thread of its own, whether or not earlier ones came back."""

    def __init__(self, url: str, host: str, *, per_second: float) -> None:
        self.answers = Answers()
        self._url, self._host, self._rate = url, host, per_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)

    def __enter__(self) -> "SteadyLoad":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(15)

    async def _send(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
        async with httpx.AsyncClient(limits=limits, timeout=10, trust_env=False) as client:
            began = time.monotonic()
            while not self._over.is_set():
                self.answers.sent += 1
                request = asyncio.create_task(self._ask(client))
                under_way.add(request)
                request.add_done_callback(under_way.discard)
                due = began + self.answers.sent / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*under_way)

    async def _ask(self, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.get(self._url, headers={"Host": self._host})
        except httpx.HTTPError as error:
            self.answers.failed_else[type(error).__name__] += 1
            self._failed()
            return
        if 200 <= answer.status_code < 300:
            self.answers.good += 1
        elif "X-Broken" in answer.headers:
            self.answers.from_bad_build += 1
            self.answers.first_bad_at = self.answers.first_bad_at or time.time()
        else:
            self.answers.failed_else[str(answer.status_code)] += 1
        if not 200 <= answer.status_code < 300:
            self._failed()

    def _failed(self) -> None:
        self.answers.first_failed_at = self.answers.first_failed_at or time.time()
