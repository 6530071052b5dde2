"""Numbers of the team's own about a release: from Prometheus, or from a command of theirs."""

import math
import os
import shlex
import subprocess
from pathlib import Path

import httpx

from policy.errors import Unreachable
from policy.judge import CustomMetric


def ask(metric: CustomMetric, *, release: str, stable: str | None, url: str, folder: Path) -> float:
    """-> the number as it is now. Raises Unreachable when there is none, with the reason.

    `folder`: where a command runs."""
    named = {"release": release, "stable": stable or "", "url": url}
    try:
        value = _by_promql(metric, named) if metric.promql else _by_command(metric, named, folder)
    except Exception as error:  # whatever a foreign server or program says instead of a number
        raise Unreachable(f"{metric.name}: {type(error).__name__}: {error}") from None
    if math.isnan(value):
        raise Unreachable(f"{metric.name}: is not a number just now")
    return value


def _by_promql(metric: CustomMetric, named: dict[str, str]) -> float:
    query = metric.promql or ""
    for name in ("release", "stable"):
        query = query.replace(f"{{{name}}}", named[name])
    answer = httpx.get(
        f"{(metric.prometheus or '').rstrip('/')}/api/v1/query",
        params={"query": query},
        timeout=5,
        trust_env=False,
    )
    body = answer.json()
    if body.get("status") != "success":
        raise ValueError(f"Prometheus answers {answer.status_code}: {body.get('error', 'nothing')}")
    result = body["data"]["result"]
    if body["data"]["resultType"] == "scalar":
        return float(result[1])
    if len(result) != 1:
        raise ValueError(f"the query gives {len(result)} series; it must give one")
    return float(result[0]["value"][1])


def _by_command(metric: CustomMetric, named: dict[str, str], folder: Path) -> float:
    command = metric.command or ""
    argv = shlex.split(command) if isinstance(command, str) else list(command)
    environment = {key.upper(): value for key, value in named.items()}
    for name in ("PATH", "HOME", "LANG"):
        if name in os.environ:
            environment[name] = os.environ[name]
    done = subprocess.run(
        argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the command exits {done.returncode}: {last[:200]}")
    return float(done.stdout.strip())
