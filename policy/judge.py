"""What a team may ask of the judge: `rollout.judge` in the service file."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from policy.part import Command, Part, in_arguments
from policy.quantities import Fraction, Seconds, percent, seconds

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
METRICS = ("errors", *QUANTILES, "latency")

_limit = re.compile(r"at most\s+(\d+(?:\.\d+)?)\s*(x\s+stable|times\s+stable(?:'s)?|%|ms|s)")
_HOW = "write 'at most 2%', 'at most 500ms' or 'at most 1.5x stable'"


class Limit(Part):
    """'at most 1.5x stable', 'at most 2%' (errors) or 'at most 500ms' (latency)."""

    at_most: float = Field(ge=0, description="ratio, fraction of requests, or seconds")
    of: Literal["stable", "fraction", "seconds"]

    @classmethod
    def read(cls, text: str) -> "Limit":
        match = _limit.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is not a limit; {_HOW}")
        if "stable" in match[2]:
            return cls(at_most=float(match[1]), of="stable")
        if match[2] == "%":
            return cls(at_most=percent(f"{match[1]}%") / 100, of="fraction")
        return cls(at_most=seconds(match[1] + match[2]), of="seconds")

    def __str__(self) -> str:
        if self.of == "stable":
            return f"at most {self.at_most:g}x stable"
        if self.of == "fraction":
            return f"at most {self.at_most * 100:g}%"
        return f"at most {self.at_most * 1000:g}ms"


def _limits(value: Any) -> Any:
    """'at most 1.5x stable and at most 2%' -> both."""
    if isinstance(value, str):
        return tuple(Limit.read(text) for text in value.split(" and "))
    if isinstance(value, Mapping) and set(value) == {"at_most", "of"}:
        return (value,)  # as releases of before were written down
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"{value!r} is not a limit; {_HOW}")


Limits = Annotated[
    tuple[Limit, ...],
    BeforeValidator(_limits),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^at most \d+(\.\d+)?\s*(x\s+stable|times\s+stable('s)?|%|ms|s)"
            r"( and at most .+)?$",
            "description": "at most 2%, at most 500ms, at most 1.5x stable, or two of them: "
            "at most 1.5x stable and at most 2%",
        }
    ),
]


class CustomMetric(Part):
    """A number of your own against a threshold. It makes no promise about false rollbacks: more
    than `misses` in a row fail."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$", description="what the report calls it")
    promql: str | None = Field(
        None,
        description="a PromQL query that gives one number; {release} and {stable} are replaced",
    )
    prometheus: str | None = Field(
        None, pattern=r"^https?://\S+$", description="address of the Prometheus to ask"
    )
    command: Command | None = Field(
        None,
        description="instead: a command that prints one number; RELEASE, STABLE and URL are in its "
        "environment",
    )
    at_most: float | None = Field(None, description="the number must not be over this")
    at_least: float | None = Field(None, description="the number must not be under this")
    interval: Seconds = Field(10.0, ge=1, description="pause between two questions")
    misses: int = Field(2, ge=0, description="misses in a row that are forgiven")

    @field_validator("command")
    @classmethod
    def _readable(cls, command: Command | None) -> Command | None:
        return None if command is None else in_arguments(command)

    @model_validator(mode="after")
    def _fits(self) -> "CustomMetric":
        if (self.promql is None) == (self.command is None):
            raise ValueError("needs exactly one of promql, command")
        if (self.promql is None) != (self.prometheus is None):
            raise ValueError("promql and prometheus belong together")
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most or at_least")
        return self


class Synthetic(Part):
    """Requests of our own, when too few people come: sent through the router like theirs, to both
    releases in their shares."""

    file: str = Field(
        description="requests beside the service file, one a line: a path, or METHOD and path"
    )
    per_second: float = Field(5.0, gt=0, le=200, description="how many a second")
    below: float = Field(
        5.0, gt=0, le=1000, description="only while fewer requests a second than this come in"
    )


def read_requests(text: str) -> list[tuple[str, str]]:
    """Lines like '/cart' or 'POST /cart'; empty ones and # comments are left out. -> (method,
    path). Raises ValueError with the line's number."""
    requests = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        method, path = ("GET", words[0]) if len(words) == 1 else (words[0].upper(), words[1])
        if len(words) > 2 or not path.startswith("/") or not method.isalpha():
            raise ValueError(f"line {number}: write a path, or a method and a path: GET /cart")
        requests.append((method, path))
    if not requests:
        raise ValueError("holds no request")
    return requests


class Judge(Part):
    """When the new release is worse than the one that runs."""

    method: Literal["sequential", "threshold"] = Field(
        "sequential",
        description="sequential: decides as soon as the counts prove it, with a stated chance of "
        "being wrong; threshold: measures against the limits in intervals",
    )
    errors: Limits | None = Field(None, description="share of answers with status 5xx")
    p50: Limits | None = Field(None, description="median latency")
    p90: Limits | None = Field(None, description="90th percentile of latency")
    p95: Limits | None = Field(None, description="95th percentile of latency")
    p99: Limits | None = Field(None, description="99th percentile of latency")
    latency: Limits | None = Field(
        None, description="all of the latencies, sequential and relative to stable only"
    )
    metrics: tuple[CustomMetric, ...] = Field((), description="numbers of your own")
    false_rollbacks: Fraction = Field(
        0.01,
        gt=0,
        le=0.2,
        description="sequential: the chance of ever rolling back a release that keeps its limits",
    )
    false_passes: Fraction = Field(
        0.05,
        gt=0,
        le=0.2,
        description="sequential: the chance of passing a step with a release that misses a limit",
    )
    good_enough: Fraction = Field(
        0.01,
        ge=0,
        le=0.5,
        description="sequential: an error rate below this passes, even where it cannot be told "
        "apart from stable's yet; 0% switches that off",
    )
    bursts: Seconds = Field(
        0.0,
        description="sequential: errors of one version may come in bursts of up to this long that "
        "say nothing about the version; costs several times as long until a rollback",
    )
    early: bool = Field(
        True, description="sequential: a step that has proved itself ends before its bake time"
    )
    synthetic: Synthetic | None = Field(None, description="requests of our own at low traffic")
    interval: Seconds = Field(5.0, ge=0.5, description="threshold: length of one measurement")
    failure_limit: int = Field(
        0, ge=0, description="threshold: failed measurements that are forgiven"
    )
    min_requests: int = Field(
        20, ge=1, description="threshold: fewer requests in a measurement are inconclusive"
    )
    unsure: Literal["hold", "roll back"] = Field(
        "roll back", description="what to do when the time is over and nothing is proved"
    )

    def limits(self) -> list[tuple[str, Limit]]:
        """Each limit with its metric, in the order of METRICS."""
        return [(metric, limit) for metric in METRICS for limit in getattr(self, metric) or ()]

    @model_validator(mode="after")
    def _limits_fit(self) -> "Judge":
        for metric, limit in self.limits():
            if metric == "errors" and limit.of == "seconds":
                raise ValueError("errors: a time is no limit for a share; write 'at most 2%'")
            if metric != "errors" and limit.of == "fraction":
                raise ValueError(f"{metric}: a share is no limit for a time; write 'at most 500ms'")
            if metric == "latency" and limit.of != "stable":
                raise ValueError(
                    "latency: has no single value; write 'at most 1.3x stable', or p99"
                )
            if self.method == "sequential" and limit.of == "stable" and limit.at_most < 1.05:
                raise ValueError(
                    f"{metric}: that little can never be shown; write 'at most 1.1x stable' or more"
                )
            if self.method == "sequential" and limit.of != "stable" and limit.at_most == 0:
                raise ValueError(f"{metric}: no count can show zero; write 'at most 0.1%'")
        if not self.limits() and not self.metrics:
            raise ValueError("needs one limit at least: errors, p50, p90, p95, p99 or latency")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_method(self) -> "Judge":
        other = {
            "sequential": ("interval", "failure_limit", "min_requests"),
            "threshold": (
                *("latency", "false_rollbacks", "false_passes", "good_enough", "bursts", "early"),
            ),
        }[self.method]
        for key in other:
            if getattr(self, key) != type(self).model_fields[key].default:
                owner = "threshold" if self.method == "sequential" else "sequential"
                raise ValueError(f"{key}: belongs to `method: {owner}`, not to {self.method}")
        return self
