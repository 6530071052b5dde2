"""httpbin with a fault that its health check does not see: every fifth other answer is an error."""

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from httpbin import app as good

_answers = count(1)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"].startswith("/status/") or next(_answers) % 5:
        return good(environ, start_response)
    start_response("500 Internal Server Error", [("X-Broken", "yes")])
    return [b"the broken build\n"]
