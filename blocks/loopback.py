"""Replicas on loopback, of whatever kind: their ports, their health by HTTP, their connections."""

import http.client
import json
import random
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from policy.errors import NotApplied

PORTS = range(20000, 32000)  # below the range that the kernel takes outgoing ports from
PORTS_LOCK = "ports.lock"  # in the folder of the releases; held while one is chosen and noted


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def free_port(releases: Path) -> int:
    """One that no replica of these releases has noted and nobody listens on."""
    taken = set()
    for spec in releases.glob("*/replica-*.json"):
        with suppress(FileNotFoundError, ValueError):
            taken.add(json.loads(spec.read_text())["port"])
    for port in random.sample(PORTS, len(PORTS)):
        if port not in taken and is_free(port):
            return port
    raise NotApplied(f"no free port in {PORTS.start}-{PORTS.stop}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def http_trouble(port: int, path: str, timeout_seconds: float) -> str:
    """Ask once; empty when healthy, else why not."""
    try:
        with urllib.request.urlopen(url_of(port) + path, timeout=timeout_seconds) as answer:
            return "" if 200 <= answer.status < 300 else f"{path} answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"{path} answers {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{path} does not answer: {getattr(error, 'reason', error)}"


def connections_to(ports: Sequence[int], *, by_client: bool = False) -> tuple[int, ...]:
    """Established connections to each of these local ports, as the kernel lists them. `by_client`:
    counted at the end that opened them, where the other may be in a network of its own."""
    counts = dict.fromkeys(ports, 0)
    for connection in psutil.net_connections("tcp4") if ports else ():
        end = connection.raddr if by_client else connection.laddr
        if connection.status == psutil.CONN_ESTABLISHED and end and end.port in counts:
            counts[end.port] += not by_client or end.ip == "127.0.0.1"
    return tuple(counts[port] for port in ports)
