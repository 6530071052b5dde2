"""A steady load on the router, with every answer kept: for the demo and the benchmarks."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp


@dataclass
class Answers:
    """What came back. `failed`: (moment, status or exception, who answered)."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[float, str, str]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
