"""Clients of several kinds at once, in a process of their own; prints what failed as JSON.

    python -m bench.load URL HOST --rate N|max [--seconds S]

Ends after S seconds or at end of standard input. Kinds: keep-alive connections, a new connection
for each request, answers that take 2 seconds, WebSockets that talk for 4 seconds. A line a second
says how many there were so far; the last line is all figures. Of what failed it says when it was
sent, when it failed (seconds since the epoch) and why.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import aiohttp

SOCKET_SECONDS = 4.0
KEEP_ALIVE, NEW, SLOW, SOCKETS = 8, 4, 10, 10  # clients of each kind
TOLD = 200  # failures that are told one by one


class Load:
    def __init__(self, url: str, host: str, rate: float | None) -> None:
        self._url, self._headers, self._rate = url, {"Host": host}, rate
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.cut = 0
        self._over = asyncio.Event()
        self._began = time.monotonic()
        self._tickets = 0

    async def run(self, seconds: float | None) -> None:
        timeout = aiohttp.ClientTimeout(total=30)
        pooled = aiohttp.TCPConnector(limit=0)
        fresh = aiohttp.TCPConnector(limit=0, force_close=True)
        async with (
            aiohttp.ClientSession(connector=pooled, timeout=timeout) as keep,
            aiohttp.ClientSession(connector=fresh, timeout=timeout) as new,
        ):
            clients = [self._asking("keep-alive", keep, "/", True) for _ in range(KEEP_ALIVE)]
            clients += [self._asking("new connection", new, "/", True) for _ in range(NEW)]
            clients += [self._asking("slow", keep, "/slow", False) for _ in range(SLOW)]
            clients += [self._talking(keep) for _ in range(SOCKETS)]
            beside = [asyncio.create_task(self._end(seconds)), asyncio.create_task(self._count())]
            await asyncio.gather(*clients)
            for task in beside:
                task.cancel()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(1)
            print(json.dumps({"requests": self.requests}), flush=True)

    @property
    def requests(self) -> int:
        return sum(self.done.values()) + sum(self.failed.values()) + self.cut

    async def _end(self, seconds: float | None) -> None:
        if seconds is not None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(sys.stdin.read)
        self._over.set()

    async def _turn(self) -> None:
        """Wait for this client's turn when the rate is limited."""
        if self._rate is not None:
            self._tickets += 1
            due = self._began + self._tickets / self._rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)

    async def _asking(
        self, kind: str, session: aiohttp.ClientSession, path: str, paced: bool
    ) -> None:
        while not self._over.is_set():
            if paced:
                await self._turn()
            sent_at = time.time()
            try:
                async with session.get(self._url + path, headers=self._headers) as answer:
                    await answer.read()
                    if answer.status == 200:
                        self.done[kind] += 1
                    else:
                        by = answer.headers.get("x-release", "the router")
                        self._fail(kind, sent_at, f"status {answer.status}", by)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._fail(kind, sent_at, f"{type(error).__name__}: {error}"[:120])

    def _fail(self, kind: str, sent_at: float, why: str, by: str = "") -> None:
        self.failed[f"{kind}: {why}"] += 1
        self._tell(kind, sent_at, f"{why} by {by}" if by else why)

    def _tell(self, kind: str, sent_at: float, why: str) -> None:
        if len(self.failures) < TOLD:
            now = time.time()
            self.failures.append({"kind": kind, "sent": sent_at, "failed": now, "why": why})

    async def _talking(self, session: aiohttp.ClientSession) -> None:
        while not self._over.is_set():
            sent_at = time.time()
            try:
                async with session.ws_connect(self._url + "/ws", headers=self._headers) as socket:
                    until = time.monotonic() + SOCKET_SECONDS
                    while time.monotonic() < until:
                        await socket.send_str("hello")
                        message = await socket.receive(timeout=10)
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            self.cut += 1
                            self._tell("websocket", sent_at, "cut")
                            break
                        await asyncio.sleep(0.2)
                    else:
                        self.done["websocket"] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._fail("websocket", sent_at, f"{type(error).__name__}: {error}"[:120])


def figures(load: Load) -> dict[str, Any]:
    seconds = time.monotonic() - load._began
    return {
        "requests": load.requests,
        "per_second": round(load.requests / seconds),
        "failed": sum(load.failed.values()),
        "websockets_cut": load.cut,
        "good_by_kind": dict(load.done),
        "failed_by_kind": dict(load.failed),
        "failures": load.failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("host")
    parser.add_argument("--rate", default="max")
    parser.add_argument("--seconds", type=float)
    wanted = parser.parse_args()
    load = Load(wanted.url, wanted.host, None if wanted.rate == "max" else float(wanted.rate))
    asyncio.run(load.run(wanted.seconds))
    print(json.dumps(figures(load)))


if __name__ == "__main__":
    main()
