"""A small ASGI application to release in tests and benchmarks: fast, slow, streaming and faulty.

    GET /          the release that answers, as text
    GET /slow      the same after 2 seconds
    GET /healthz   200, or what HEALTH says
    WS  /ws        answers every message with the release

Faults, by environment: EVERY=5 fails every fifth answer; DELAY=0.2 makes each so many seconds
slower; HEALTH=503 is never healthy; DIE_AFTER=3 ends the process after so many seconds; DEAF=1
ignores SIGTERM; LEAK=5 keeps so many megabytes more with each answer, and ends when there are none.
"""

import asyncio
import os
import signal
import threading
from itertools import count
from typing import Any

RELEASE = os.environ.get("DAFNCK_RELEASE", "none").encode()
EVERY = int(os.environ.get("EVERY", "0"))
DELAY = float(os.environ.get("DELAY", "0"))
HEALTH = int(os.environ.get("HEALTH", "200"))
LEAK = int(os.environ.get("LEAK", "0")) * 2**20
_kept: list[bytearray] = []
_answers = count(1)

if "DIE_AFTER" in os.environ:
    timer = threading.Timer(float(os.environ["DIE_AFTER"]), os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await _socket(receive, send)
    elif scope["type"] == "http":
        await _answer(scope["path"], send)
    else:
        await _lifespan(receive, send)


async def _answer(path: str, send: Any) -> None:
    status = 200
    if path == "/healthz":
        status = HEALTH
    else:
        if path == "/slow":
            await asyncio.sleep(2)
        if DELAY:
            await asyncio.sleep(DELAY)
        if LEAK:
            _leak()
        if EVERY and next(_answers) % EVERY == 0:
            status = 500
    headers = [(b"content-type", b"text/plain"), (b"x-release", RELEASE)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": RELEASE})


def _leak() -> None:
    try:
        _kept.append(bytearray(LEAK))
    except MemoryError:
        print("out of memory", flush=True)  # what to do without is not known: end, as most do
        os.kill(os.getpid(), signal.SIGKILL)


async def _socket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{RELEASE.decode()} {message['text']}"})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            if "DEAF" in os.environ:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
