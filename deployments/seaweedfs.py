"""The object store of the local stack: SeaweedFS on loopback, S3 with a key of its own."""

import json
import random
import secrets
import sys
from pathlib import Path

from blocks.files import write_atomically
from blocks.stack import Ports, Stack, listens

PARTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc")
RANGE = range(13000, 20000)  # below the ports of replicas and those that the kernel gives out


def with_parts(ports: Ports, runs: bool) -> Ports:
    """Ports for what the parts of the store say to each other; those chosen before, while they are
    free or the store `runs`."""
    free = all(not listens(port) for port in ports.store_parts)
    if len(ports.store_parts) == len(PARTS) and (runs or free):
        return ports
    chosen: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(chosen) == len(PARTS):
            break
        if not listens(port):
            chosen.append(port)
    return ports.model_copy(update={"store_parts": chosen})


def argv(stack: Stack) -> list[str]:
    data = stack.home / "objects"
    data.mkdir(parents=True, exist_ok=True)
    at = dict(zip(PARTS, stack.ports.store_parts, strict=True))
    settings: dict[str, object] = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",  # there is nobody to elect but itself
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 0,  # as many as the disk holds: a bucket takes seven, of eight by default
        "filer": "true",
        "s3": "true",
        "s3.port": stack.ports.object_store,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": stack.store_credentials,
    }
    for name, port in at.items():
        part, _, kind = name.partition(".")
        settings[f"{part}.port.{kind}" if kind else f"{part}.port"] = port
    words = [f"-{name}={value}" for name, value in settings.items()]
    return [str(Path(sys.executable).parent / "weed"), "server", *words]


def write_credentials(stack: Stack) -> None:
    if stack.store_credentials.exists():
        return
    key = {"accessKey": "dafnck", "secretKey": secrets.token_urlsafe(24)}
    identity = {
        "name": "dafnck",
        "credentials": [key],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    content = json.dumps({"identities": [identity]}, indent=1)
    write_atomically(stack.store_credentials, content, 0o600)
