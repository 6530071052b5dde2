"""Durations, sizes and shares as people write them, and as numbers with a unit in their name."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from policy.errors import BadInput

SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_SECONDS = 30 * 86400.0
TEN_YEARS = 3653 * 86400.0
BYTES = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_duration = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_size = re.compile(r"(\d+(?:\.\d+)?)\s*([BKMGT])(?:i?B)?")
_percent = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def seconds(value: Any, longest: float = LONGEST_SECONDS) -> float:
    """'500ms', '20s', '1h 30m' or a number of seconds -> seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _bounded(float(value), longest)
    if isinstance(value, str):
        parts = _duration.findall(value)
        if parts and not _duration.sub("", value).strip():
            return _bounded(sum(float(n) * SECONDS[unit] for n, unit in parts), longest)
    raise ValueError(f"{value!r} is not a duration; write 500ms, 20s, 10m, 1h 30m")


def _bounded(number: float, longest: float) -> float:
    if number < 0:
        raise ValueError("must not be negative")
    if not number <= longest:  # also what is not a number
        raise ValueError(f"is longer than {longest / 86400:.0f}d")
    return number


def size_bytes(value: Any) -> int:
    """'512M', '1.5GiB' or a number of bytes -> bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and (match := _size.fullmatch(value.strip())):
        if size := int(float(match[1]) * BYTES[match[2]]):
            return size
    raise ValueError(f"{value!r} is not a size; write 512M or 2G")


def percent(value: Any) -> float:
    """'5%' or 5 -> 5.0 (percent, 0 to 100). Raises ValueError."""
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := _percent.fullmatch(value.strip())):
        number = float(match[1])
    if number is None:
        raise ValueError(f"{value!r} is not a share; write 5%")
    if not 0 <= number <= 100:
        raise ValueError(f"{value} is outside 0% to 100%")
    return number


def whole_percent(value: Any) -> int:
    number = percent(value)
    if number != int(number):
        raise ValueError(f"{value} is not a whole percent")
    return int(number)


def fraction(value: Any) -> float:
    """'1%' or 0.01 -> 0.01. Raises ValueError."""
    if isinstance(value, str):
        return percent(value) / 100
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"{value!r} is not a share; write 1%")


def in_words(duration_seconds: float) -> str:
    """90.0 -> '1m 30s'; 0.25 -> '250ms'."""
    if duration_seconds < 1:
        return f"{duration_seconds * 1000:.0f}ms"
    words, rest = [], round(duration_seconds, 3)
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, SECONDS[unit])
        if count:
            words.append(f"{count:.0f}{unit}")
    if rest:
        words.append(f"{round(rest, 1):g}s")
    return " ".join(words) or "0s"


def _long(value: Any) -> float:
    return seconds(value, TEN_YEARS)


_DURATION = WithJsonSchema(
    {
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": r"^(\d+(\.\d+)?\s*(ms|s|m|h|d)\s*)+$"},
        ],
        "description": "a duration: 500ms, 20s, 10m, 1h 30m, or seconds",
    }
)
Seconds = Annotated[float, BeforeValidator(seconds), _DURATION]
LongSeconds = Annotated[float, BeforeValidator(_long), _DURATION]
Bytes = Annotated[
    int,
    BeforeValidator(size_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[BKMGT](i?B)?$"},
            ],
            "description": "a size: 512M, 2G, or bytes",
        }
    ),
]
Percent = Annotated[
    int,
    BeforeValidator(whole_percent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 100},
                {"type": "string", "pattern": r"^\d+\s*%$"},
            ],
            "description": "a share of the requests in whole percent: 5%",
        }
    ),
]
Percentage = Annotated[
    float,
    BeforeValidator(percent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 100},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$"},
            ],
            "description": "a share: 80%, 0.5%",
        }
    ),
]
Fraction = Annotated[
    float,
    BeforeValidator(fraction),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$"},
            ],
            "description": "a share, also below one percent: 1%, 0.5%",
        }
    ),
]


def moment(text: str) -> datetime:
    """'2026-11-25T02:15:00Z'. Raises BadInput."""
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            return read
    except ValueError:
        pass
    raise BadInput(f"{text!r} is no moment with a time zone; write 2026-11-25T02:15:00Z")
