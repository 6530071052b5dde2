"""One request to a source of metrics, bounded in time and size; no proxy is asked."""

import ssl
import time
from collections.abc import Mapping

from policy.errors import Unreachable

ANSWER_SECONDS = 3.0  # a rollout looks once a second; what takes longer is no answer
LARGEST_BYTES = 64 * 2**20


def asked(
    who: str,
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    trusted: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """-> (status, content). A `form` is posted. `trusted`: by default no https is. Raises
    Unreachable, with `who` in its words and no header."""
    import httpx  # which is loud to load, and most commands ask for no metrics

    trusted = trusted or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    give_up = time.monotonic() + ANSWER_SECONDS
    content = bytearray()
    try:
        with (
            httpx.Client(verify=trusted, trust_env=False, timeout=ANSWER_SECONDS) as client,
            client.stream(
                "POST" if form else "GET", url, data=dict(form or {}), headers=headers
            ) as answer,
        ):
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > LARGEST_BYTES:
                    raise Unreachable(f"{who} answers with more than {LARGEST_BYTES >> 20} MiB")
                if time.monotonic() > give_up:
                    raise Unreachable(f"{who} does not answer within {ANSWER_SECONDS:g}s")
            return answer.status_code, bytes(content)
    except httpx.TimeoutException:
        raise Unreachable(f"{who} does not answer within {ANSWER_SECONDS:g}s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"{who} does not answer ({reason})") from None
