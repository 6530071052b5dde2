"""Whether the files of a server are in themselves right: every page of every table and index."""

import re
import subprocess
from typing import Any

from blocks.postgres import Server, pg_tool
from policy.backup_manifest import Difference
from policy.errors import NotApplied

CORRUPT = 2  # exit code of pg_amcheck
MOST = 20
_WHERE = re.compile(r"^((?:heap table|btree index) .*):$")


def amcheck(server: Server, major: int) -> list[Difference]:
    """Of all databases; the extension is made where it is missing, so this is for a server that is
    thrown away. Empty also where the extension is not installed. Raises NotApplied."""
    with server.connect(autocommit=True) as connection:
        if not _available(connection):
            return []
    with server.tool_environment() as environment:
        done = subprocess.run(
            [
                *(pg_tool("pg_amcheck", exactly=major), "--all", "--install-missing"),
                *("--no-password", "--jobs=2"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode not in (0, CORRUPT):
        said = " / ".join(done.stderr.splitlines()[-3:])
        raise NotApplied(f"pg_amcheck ended with {done.returncode}: {said[:600]}")
    return _told(done.stdout) if done.returncode == CORRUPT else []


def _available(connection: Any) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"
    ).fetchone()
    return bool(row[0])


def _told(output: str) -> list[Difference]:
    lines = output.splitlines()
    found = [
        Difference(what=match[1], wanted="whole", found=after.strip()[:300])
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if (match := _WHERE.match(line))
    ]
    return found[:MOST] or [
        Difference(what="files of the server", wanted="whole", found=output.strip()[:300])
    ]
