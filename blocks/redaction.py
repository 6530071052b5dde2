"""Takes secret values out of text that goes to people, logs or a database."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus, urlsplit

HIDDEN = "[secret]"
SHORTEST = 4  # a shorter one is in any text; nobody should have it


class Redactor:
    """Knows each value as it is, as JSON, in URLs and in base64 at any place of a longer text; of a
    URL its password as well."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values for form in _forms(value) if len(form) >= SHORTEST}
        # The longest first: one may be a part of another.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._all = False

    @classmethod
    def of_everything(cls) -> "Redactor":
        """When it cannot be known what is secret."""
        made = cls(())
        made._all = True
        return made

    def clean(self, text: str) -> str:
        if self._all:
            return HIDDEN if text else ""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text


def _forms(value: str) -> Iterator[str]:
    for whole in {value, value.strip(), *value.strip().splitlines(), *_password(value)}:
        yield whole
        yield json.dumps(whole)[1:-1]
        yield json.dumps(whole, ensure_ascii=False)[1:-1]
        for safe in ("", "/", "/:", "/:@?&="):
            yield quote(whole, safe=safe)
        yield quote_plus(whole)
        yield from _base64(whole.encode())


def _base64(content: bytes) -> Iterator[str]:
    """The digits that hold nothing but this content, at each of the three places that it can have
    in what is encoded."""
    for before in range(3):
        first = -(-before * 8 // 6)  # digits that hold bits of what stands before
        digits = base64.b64encode(b"\0" * before + content).decode().rstrip("=")
        # The last digit may hold bits of what comes after.
        whole = (before + len(content)) * 8 // 6
        inner = digits[first:whole]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _password(value: str) -> Iterator[str]:
    """Of a URL, as it is written and as it is meant."""
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return
    if parts.scheme and parts.password:
        from urllib.parse import unquote

        yield parts.password
        yield unquote(parts.password)
