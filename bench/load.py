"""Clients of several kinds at once, in a process of their own; prints what failed as JSON.

    python -m bench.load URL HOST --rate N|max [--seconds S]

Ends after S seconds or at end of standard input. Kinds: keep-alive connections, a new connection
for each request, answers that take 2 seconds, WebSockets that talk for 4 seconds.
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


class Load:
    def __init__(self, url: str, host: str, rate: float | None) -> None:
        self._url, self._headers, self._rate = url, {"Host": host}, rate
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
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
            end = asyncio.create_task(self._end(seconds))
            await asyncio.gather(*clients)
            end.cancel()

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
            try:
                async with session.get(self._url + path, headers=self._headers) as answer:
                    await answer.read()
                    if answer.status == 200:
                        self.done[kind] += 1
                    else:
                        self.failed[f"{kind}: status {answer.status}"] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.failed[f"{kind}: {type(error).__name__}: {error}"[:120]] += 1

    async def _talking(self, session: aiohttp.ClientSession) -> None:
        while not self._over.is_set():
            try:
                async with session.ws_connect(self._url + "/ws", headers=self._headers) as socket:
                    until = time.monotonic() + SOCKET_SECONDS
                    while time.monotonic() < until:
                        await socket.send_str("hello")
                        message = await socket.receive(timeout=10)
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            self.cut += 1
                            break
                        await asyncio.sleep(0.2)
                    else:
                        self.done["websocket"] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.failed[f"websocket: {type(error).__name__}: {error}"[:120]] += 1


def figures(load: Load) -> dict[str, Any]:
    requests = sum(load.done.values()) + sum(load.failed.values()) + load.cut
    seconds = time.monotonic() - load._began
    return {
        "requests": requests,
        "per_second": round(requests / seconds),
        "failed": sum(load.failed.values()),
        "websockets_cut": load.cut,
        "good_by_kind": dict(load.done),
        "failed_by_kind": dict(load.failed),
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
