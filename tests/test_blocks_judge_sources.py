"""Where a judge's other numbers come from: Prometheus, commands, and requests of our own."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import wait_for

from blocks.custom_metrics import ask
from blocks.synthetic import SyntheticRequests
from blocks.traefik import TraefikMetrics
from policy.errors import Unreachable
from policy.judge import CustomMetric, read_requests


class Answering(http.server.BaseHTTPRequestHandler):
    """A Prometheus that answers with what the query asks for, and counts other requests."""

    asked: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/api/v1/query":
            self.asked.append(f"{self.command} {self.path} {self.headers['Host']}")
            self._send(200, {})
            return
        query = parse_qs(url.query)["query"][0]
        self.asked.append(query)
        vector = [{"metric": {}, "value": [1, "42.5"]}]
        if query == "bad(":
            self._send(400, {"status": "error", "error": "parse error"})
        elif query == "scalar":
            self._send(200, success("scalar", [1, "7"]))
        elif query == "nothing":
            self._send(200, success("vector", []))
        elif query == "nan":
            self._send(200, success("vector", [{"metric": {}, "value": [1, "NaN"]}]))
        else:
            self._send(200, success("vector", vector))

    do_POST = do_GET

    def _send(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def success(kind: str, result: object) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Answering.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def asked(metric: CustomMetric, folder: Path) -> float:
    return ask(metric, release="shop-prod-7", stable="shop-prod-6", url="http://x", folder=folder)


def by_promql(server: http.server.ThreadingHTTPServer, query: str) -> CustomMetric:
    return CustomMetric(name="q", promql=query, prometheus=url_of(server), at_most=1)


def test_a_promql_query_names_the_releases(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    query = 'max(queue{release="{release}"}) / max(queue{release="{stable}"})'
    assert asked(by_promql(server, query), tmp_path) == 42.5
    assert Answering.asked == [
        'max(queue{release="shop-prod-7"}) / max(queue{release="shop-prod-6"})'
    ]
    assert asked(by_promql(server, "scalar"), tmp_path) == 7


@pytest.mark.parametrize(
    ("query", "words"),
    [("bad(", "400: parse error"), ("nothing", "gives 0 series"), ("nan", "not a number")],
)
def test_no_number_is_no_answer(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, query: str, words: str
) -> None:
    with pytest.raises(Unreachable, match=words):
        asked(by_promql(server, query), tmp_path)


def test_a_prometheus_that_is_down_is_no_answer(tmp_path: Path) -> None:
    metric = CustomMetric(name="q", promql="x", prometheus="http://127.0.0.1:9", at_most=1)
    with pytest.raises(Unreachable, match="q: "):
        asked(metric, tmp_path)


def test_a_command_prints_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "not for commands")
    (tmp_path / "lag.sh").write_text('echo "${RELEASE##*-}"; [ -z "$PREFECT_API_AUTH_STRING" ]\n')
    metric = CustomMetric(name="lag", command="sh lag.sh", at_most=1)
    assert asked(metric, tmp_path) == 7


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo oh >&2; exit 3'", "exits 3: oh"),
        ("echo many", "could not convert"),
        ("no-such-program", "No such file"),
    ],
)
def test_a_command_that_fails_is_no_answer(command: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=words):
        asked(CustomMetric(name="lag", command=command, at_most=1), tmp_path)


def test_requests_are_read_from_lines() -> None:
    assert read_requests("/a\n\n# note\npost /b  # try\n") == [("GET", "/a"), ("POST", "/b")]
    for text in ("", "# nothing", "GET a", "GET /a now"):
        with pytest.raises(ValueError, match=r"line 1|no request"):
            read_requests(text)


def test_synthetic_requests_fill_up_low_traffic_and_stop_when_people_come(
    server: http.server.ThreadingHTTPServer,
) -> None:
    others = 0.0
    sending = SyntheticRequests(
        url_of(server),
        "shop.example",
        [("GET", "/a"), ("POST", "/b")],
        per_second=50,
        below=5,
        seen=lambda: others + sending.sent,
    )
    with sending:
        wait_for(lambda: sending.sent >= 4, "four requests")
        assert Answering.asked[:2] == ["GET /a shop.example", "POST /b shop.example"]
        others += 1000
        sent = wait_for(lambda: still(sending), "no more are sent")
        others += 1000
        time.sleep(0.2)
        assert sending.sent == sent


def still(sending: SyntheticRequests) -> int | None:
    sent = sending.sent
    time.sleep(0.2)
    return sent if sending.sent == sent else None


class NotYet(http.server.BaseHTTPRequestHandler):
    """Traefik in its first moments: it listens, and knows no path."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_traefik_that_was_started_a_moment_ago_has_no_metrics_yet() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), NotYet) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        with pytest.raises(Unreachable, match="tells no metrics"):
            TraefikMetrics(f"http://127.0.0.1:{server.server_port}").read()
        answering.join()
