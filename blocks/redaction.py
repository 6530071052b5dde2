"""Takes secret values out of text that goes to people, logs or a database."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from urllib.parse import quote, quote_plus, unquote, urlsplit

HIDDEN = "[secret]"
SHORTEST = 4  # a shorter one is in any text; nobody should have it
LONG = 8  # of a member of a value


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
    parts = (*value.strip().splitlines(), *_password(value), *_members(value))
    for whole in {value, value.strip(), *parts}:
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
    """Of a URL, as it is written and as it is meant, or of words as libpq takes them."""
    for found in re.finditer(r"\bpassword\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", value):
        yield found[1]
        yield re.sub(r"\\(.)", r"\1", found[1].strip("'"))
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return
    if parts.scheme and parts.password:
        yield parts.password
        yield unquote(parts.password)


def _members(value: str) -> Iterator[str]:
    """The texts of a value that is JSON; short ones are names of users and the like."""
    if value.strip()[:1] not in ("{", "["):
        return
    left = []
    with suppress(ValueError):
        left.append(json.loads(value))
    while left:
        one = left.pop()
        if isinstance(one, str) and len(one) >= LONG:
            yield one
        elif isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
