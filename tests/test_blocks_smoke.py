"""Smoke tests: what a release answers is held against what its team wrote."""

import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from blocks import smoke
from policy.pipeline import SmokeTest


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(0.6)
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.end_headers()
        host = self.headers["Host"]
        self.wfile.write(f'{{"host": "{host}", "name": "Zoë"}}'.encode())
        if self.path == "/dripping":
            for _ in range(40):
                time.sleep(0.05)
                self.wfile.write(b" ")
                self.wfile.flush()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ({"get": "/"}, ""),
        ({"get": "/missing", "status": 404}, ""),
        ({"get": "/missing"}, "answers 404, not 200"),
        ({"get": "/", "header": "content-type: application/json"}, ""),
        ({"get": "/", "header": "Content-Type: text/html"}, "without 'text/html'"),
        ({"get": "/", "header": "X-None: 1"}, "X-None is None"),
        ({"get": "/", "body": "Zoë"}, ""),
        ({"get": "/", "body": '"host": "shop.example"'}, ""),
        ({"get": "/", "body": "else"}, "does not hold 'else'"),
        ({"get": "/slow", "within": "200ms"}, "no answer within 0.2s"),
        ({"get": "/dripping", "within": "500ms"}, "at most 0.5s is allowed"),
        ({"get": "/slow", "within": "5s"}, ""),
    ],
)
def test_an_answer(url: str, test: dict[str, object], why: str) -> None:
    said = smoke.ask(SmokeTest.model_validate(test), url, {"Host": "shop.example"})
    assert why in said
    assert bool(said) is bool(why)


def test_nobody_there() -> None:
    assert "no answer" in smoke.ask(SmokeTest(get="/"), "http://127.0.0.1:9", {})


def test_a_command_that_gets_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    (tmp_path / "check.py").write_text(
        "import os, sys\n"
        "assert 'AWS_SECRET_ACCESS_KEY' not in os.environ\n"
        "sys.exit(f'not {os.environ[\"URL\"]}' if os.environ['URL'] != 'http://x' else 0)\n"
    )
    test = SmokeTest(command=[sys.executable, "check.py"])
    scratch, over = tmp_path / "scratch", Event()
    assert smoke.run(test, scratch, tmp_path, {"URL": "http://x"}, over) == ""
    assert (
        smoke.run(test, scratch, tmp_path, {"URL": "http://y"}, over)
        == "ended with 1: not http://y"
    )
    assert "cannot run" in smoke.run(
        SmokeTest(command="no-such-program"), scratch, tmp_path, {}, over
    )
    late = SmokeTest(command="sleep 30", within=0.3)
    assert smoke.run(late, scratch, tmp_path, {}, over) == "did not end within 0.3s"
