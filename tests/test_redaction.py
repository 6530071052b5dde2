"""Secret values in what goes to people, in all the forms that they come in."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from blocks.redaction import HIDDEN, Redactor

WORD = 'p/ss+w ö"rd&=9Q'
URL = f"postgresql://shop:{quote(WORD, safe='')}@db.example.org:5432/shop"
WORDS = "host=db user=shop password='quo\\'ted word' dbname=shop"
JSON = json.dumps({"type": "key", "private_key": "-----KEY----\nabcdefghij"})
REDACTOR = Redactor([URL, "abc", "line one\nline two-long", WORDS, JSON])


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "text",
    [
        URL,
        WORD,
        quote(WORD, safe=""),
        quote(WORD),
        quote_plus(WORD),
        json.dumps({"url": URL}),
        json.dumps(WORD),
        json.dumps(WORD, ensure_ascii=False),
        "line two-long",
        WORDS,
        "quo'ted word",
        "-----KEY----\nabcdefghij",
        b64(URL),
        *(b64("x" * n + WORD + "y" * m) for n in range(4) for m in range(4)),
        base64.urlsafe_b64encode(f"u:{WORD}".encode()).decode(),
    ],
)
def test_no_form_of_it_is_left(text: str) -> None:
    told = REDACTOR.clean(f"before {text} after")
    assert HIDDEN in told
    assert told.startswith("before ")
    assert told.endswith(" after")
    for form in (WORD, quote(WORD, safe=""), quote(WORD), quote_plus(WORD)):
        assert form not in told
    inner = b64("x" + WORD)[4:-4]
    assert inner not in told


def test_other_text_stays() -> None:
    text = "psycopg: connection to db.example.org, port 5432 failed: abc"
    assert REDACTOR.clean(text) == text
    assert Redactor([]).clean(text) == text
    assert Redactor.of_everything().clean(text) == HIDDEN
    assert Redactor.of_everything().clean("") == ""
