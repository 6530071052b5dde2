"""Counts from a real Prometheus and a real Traefik, and every way in which they are no answer."""

import json
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from gateway_traefik import gateway_traefik
from prometheus_fixtures import (
    LOGIN,
    Prometheus,
    Server,
    a_prometheus,  # noqa: F401 - fixtures
    a_server,  # noqa: F401
)

from blocks import bounded_http
from blocks.gateway_traefik import GatewayTraefikMetrics
from blocks.ports import TrafficMetrics
from blocks.prometheus import PrometheusMetrics
from policy.errors import Unreachable
from policy.kubernetes import Metrics
from policy.samples import Counters

GATEWAY = "httproute-shop-shop-prod-gw-infra-web-ep-web-0-5547c1e3531123356db1-svc-"
POD = "5d8f7c9b6d-x2x4z"
ALIVE = "traefik_config_last_reload_success"
QUOTES = '"} or vector(1) or up{a="'
SCRAPED = {
    "traefik": [{"of": "two", "service": "traefik-metrics"}, {"of": "two"}],
    "idle": [{"of": "idle"}],
    "pods": [
        {"of": "app", "namespace": "shop", "pod": f"shop-prod-7-{POD}"},
        {"of": "app", "namespace": "other", "pod": f"shop-prod-7-{POD}"},
    ],
    "ingress": [{"of": "nginx", "namespace": "ingress-nginx"}],
    "mesh": [{"of": "istio", "namespace": "shop", "pod": f"shop-prod-7-{POD}"}],
    "quotes": [{"of": QUOTES}],
    "one": [{"of": "twice"}],
    "another": [{"of": "twice"}],
    "free": [{"of": "gateway"}],
}


def reader(url: str, folder: Path = Path(), **more: Any) -> PrometheusMetrics:
    metrics = Metrics.model_validate({"prometheus": url, **more})
    return PrometheusMetrics(metrics, "shop", "shop", "prod", folder)


def traefik_series(release: str, code: int = 200, place: str = "shop") -> str:
    service = f"{GATEWAY}{place}-{release}-0@kubernetesgateway"
    return f'traefik_service_requests_total{{code="{code}",method="GET",service="{service}"}}'


def traefik_bucket(release: str, le: str, code: int = 200) -> str:
    return traefik_series(release, code).replace(
        "requests_total{", f'request_duration_seconds_bucket{{le="{le}",'
    )


def anew(metrics: TrafficMetrics) -> dict[str, Counters]:
    """Read, and not what was read a moment ago."""
    if isinstance(metrics, PrometheusMetrics):
        metrics._reused_until = 0.0
    return metrics.read()


@pytest.fixture
def live(prometheus: Prometheus, tmp_path: Path) -> Callable[..., PrometheusMetrics]:
    """-> a reader of the series that have these labels."""
    (tmp_path / "login").write_text(LOGIN + "\n")

    def make(source: str, **matchers: str) -> PrometheusMetrics:
        ca = str(prometheus.ca)
        return reader(
            prometheus.url, tmp_path, source=source, basic="login", ca=ca, matchers=matchers
        )

    return make


def requests_of(metrics: TrafficMetrics) -> dict[str, float]:
    return {release: one.requests for release, one in anew(metrics).items()}


def why_not(metrics: TrafficMetrics) -> str:
    try:
        anew(metrics)
    except Unreachable as error:
        return str(error)
    return ""


Live = Callable[..., PrometheusMetrics]


@pytest.mark.live
def test_what_two_traefiks_count_is_added_and_survives_the_restart_of_one(
    prometheus: Prometheus, live: Live
) -> None:
    metrics = live("traefik", of="two")
    first, second = prometheus.exporters["two"]
    old, new = traefik_series("shop-prod-6"), traefik_series("shop-prod-7")
    first.series(**{ALIVE: 1, old: 1000})
    second.series(
        **{
            ALIVE: 1,
            old: 500,
            traefik_series("shop-b-prod-7"): 9,
            traefik_series("shop-dev-7"): 9,
            traefik_series("shop-prod-7", place="other"): 9,
        }
    )
    wait_for(lambda: _reads(live("traefik", of="two"), {"shop-prod-6": 1500}), "both")
    assert _reads(metrics, {"shop-prod-6": 1500})
    assert isinstance(metrics, TrafficMetrics)

    first.series(
        **{
            ALIVE: 1,
            old: 1010,
            new: 20,
            traefik_series("shop-prod-7", 503): 4,
            traefik_series("shop-prod-7", 101): 1,
            traefik_bucket("shop-prod-7", "0.1"): 15,
            traefik_bucket("shop-prod-7", "+Inf"): 20,
            traefik_bucket("shop-prod-7", "0.1", 503): 4,
            traefik_bucket("shop-prod-7", "+Inf", 503): 4,
            traefik_bucket("shop-prod-7", "+Inf", 101): 1,
        }
    )
    wait_for(lambda: _reads(metrics, {"shop-prod-6": 1510, "shop-prod-7": 25}), "the new release")
    counted = anew(metrics)["shop-prod-7"]
    assert counted == Counters(25, 4, {0.1: 19, inf: 24})

    second.series(**{ALIVE: 1, old: 3})  # started again
    wait_for(lambda: _reads(metrics, {"shop-prod-6": 1513, "shop-prod-7": 25}), "a restart")
    assert 0.2 < metrics.behind_seconds < 1.5, "the scrape interval, as far as looks can tell"
    second.status = 500
    wait_for(lambda: "gets no metrics any more from" in why_not(metrics), "a target that is lost")
    assert f"127.0.0.1:{second.port} (traefik)" in why_not(metrics)
    second.status = 200
    second.series(**{ALIVE: 1, old: 5})
    wait_for(lambda: _reads(metrics, {"shop-prod-6": 1515, "shop-prod-7": 25}), "it is back")


def _reads(metrics: TrafficMetrics, wanted: dict[str, float]) -> bool:
    try:
        return requests_of(metrics) == wanted
    except Unreachable:
        return False


@pytest.mark.live
def test_no_requests_yet_is_told_apart_from_no_source(prometheus: Prometheus, live: Live) -> None:
    metrics = live("traefik", of="idle")
    assert "has no series of shop in prod" in why_not(metrics)
    (exporter,) = prometheus.exporters["idle"]
    exporter.series(**{ALIVE: 1, traefik_series("shop-b-prod-7"): 9})
    wait_for(lambda: _reads(metrics, {}), "the source, without requests to shop")
    exporter.series(**{ALIVE: 1, traefik_series("shop-prod-7"): 2})
    wait_for(lambda: _reads(metrics, {"shop-prod-7": 2}), "first requests")
    exporter.series(something_else=1)
    wait_for(lambda: "has no series of shop" in why_not(metrics), "a source that is gone")


@pytest.mark.live
def test_applications_ingress_nginx_and_istio(prometheus: Prometheus, live: Live) -> None:
    application = live("application", of="app")
    nginx, istio = live("ingress-nginx", of="nginx"), live("istio", of="istio")
    pod, alike = prometheus.exporters["app"]
    (ingress,), (mesh,) = prometheus.exporters["nginx"], prometheus.exporters["istio"]
    counts = {
        'http_requests_total{status="200"}': 8,
        'http_requests_total{status="500"}': 2,
        'http_request_duration_seconds_bucket{le="0.5"}': 9,
        'http_request_duration_seconds_bucket{le="+Inf"}': 10,
    }
    pod.series(**counts)
    alike.series(**counts)
    name = "nginx_ingress_controller"
    labels = 'namespace="shop",service="shop-prod-7",ingress="shop"'
    ingress.series(
        **{
            f"{name}_config_last_reload_successful": 1,
            f'{name}_requests{{{labels},status="200"}}': 8,
            f'{name}_requests{{{labels},status="502"}}': 2,
            f'{name}_requests{{{labels.replace("shop", "tea", 1)},status="502"}}': 99,
            f'{name}_request_duration_seconds_bucket{{{labels},status="200",le="0.5"}}': 9,
            f'{name}_request_duration_seconds_bucket{{{labels},status="200",le="+Inf"}}': 10,
        }
    )
    to = (
        'destination_workload="shop-prod-7",destination_workload_namespace="shop",'
        'destination_service_name="shop-prod-7",destination_service_namespace="shop"'
    )
    took = "istio_request_duration_milliseconds_bucket"
    mesh.series(
        **{
            f'istio_requests_total{{reporter="destination",response_code="200",{to}}}': 8,
            f'istio_requests_total{{reporter="destination",response_code="503",{to}}}': 2,
            f'istio_requests_total{{reporter="source",response_code="503",{to}}}': 99,
            f'{took}{{reporter="destination",le="500",{to}}}': 9,
            f'{took}{{reporter="destination",le="+Inf",{to}}}': 10,
        }
    )
    expected = {"shop-prod-7": Counters(10, 2, {0.5: 9, inf: 10})}
    for metrics in (application, nginx, istio):
        wait_for(lambda of=metrics: _reads(of, {"shop-prod-7": 10}), "ten requests")
        assert anew(metrics) == expected
    pod.status = 500  # the only pod that is scraped
    wait_for(lambda: "gets no metrics any more" in why_not(application), "a pod that is silent")
    assert "up{pod" in why_not(live("application", of="app"))


@pytest.mark.live
def test_a_value_of_the_service_file_stays_a_value(prometheus: Prometheus, live: Live) -> None:
    (exporter,) = prometheus.exporters[QUOTES]
    exporter.series(**{ALIVE: 1, traefik_series("shop-prod-7"): 2})
    metrics = live("traefik", of=QUOTES)
    wait_for(lambda: _reads(metrics, {"shop-prod-7": 2}), "the series with that very label")
    assert "has no series" in why_not(live("traefik", of=f"{QUOTES}x"))


@pytest.mark.live
def test_a_target_of_two_jobs_is_not_counted_twice(prometheus: Prometheus, live: Live) -> None:
    (exporter,) = prometheus.exporters["twice"]
    exporter.series(**{ALIVE: 1, traefik_series("shop-prod-7"): 2})
    wait_for(lambda: "by several jobs" in why_not(live("traefik", of="twice")), "a refusal")
    wait_for(lambda: _reads(live("traefik", of="twice", job="another"), {"shop-prod-7": 2}), "one")


@pytest.mark.live
def test_who_may_not_read_is_told_so(prometheus: Prometheus, tmp_path: Path) -> None:
    (tmp_path / "login").write_text("reader:guessed")
    ca = str(prometheus.ca)
    none = {"of": "nothing"}
    metrics = reader(prometheus.url, tmp_path, basic="login", ca=ca, matchers=none)
    assert "refuses our credentials (401)" in why_not(metrics)
    (tmp_path / "login").write_text(LOGIN)
    assert "has no series of shop" in why_not(metrics), "read at each use"
    assert "certificate" in why_not(reader(prometheus.url, tmp_path, basic="login"))


@pytest.mark.live
def test_a_traefik_behind_a_gateway_is_read_by_itself_and_by_prometheus(
    prometheus: Prometheus, live: Live, tmp_path: Path
) -> None:
    releases = ("shop-prod-6", "shop-prod-7")
    with gateway_traefik(tmp_path, prometheus.free, "shop", "shop-prod", *releases) as traefik:
        itself = GatewayTraefikMetrics(traefik.url, "shop", "shop", "prod")
        assert isinstance(itself, TrafficMetrics)
        through = live("traefik", of="gateway")
        before = itself.read()
        wait_for(lambda: _reads(through, requests_of(itself)), "Prometheus has it too")
        traefik.backends["shop-prod-7"].status = 503
        assert sorted(traefik.ask(20)) == [200] * 10 + [503] * 10
        added = {
            release: now.since(before.get(release, Counters()))
            for release, now in itself.read().items()
        }
        assert {release: (one.requests, one.errors) for release, one in added.items()} == {
            "shop-prod-6": (10, 0),
            "shop-prod-7": (10, 10),
        }
        assert added["shop-prod-7"].buckets[inf] == 10
        wait_for(lambda: _reads(through, requests_of(itself)), "Prometheus has it too")
        assert anew(through) == itself.read()
        of_others = GatewayTraefikMetrics(f"{traefik.url}/metrics", "shop", "shop", "dev")
        assert of_others.read() == {}
    assert "does not answer" in why_not(itself)


# -- what is no answer ---------------------------------------------------------------------------


def vector(*series: tuple[dict[str, str], float], at: float = 1000.0, **more: object) -> bytes:
    result = [{"metric": labels, "value": [at, str(value)]} for labels, value in series]
    body = {"status": "success", "data": {"resultType": "vector", "result": result}, **more}
    return json.dumps(body).encode()


def counted(requests: float, scraped: float = 999.0) -> list[tuple[dict[str, str], float]]:
    name = "traefik_service_requests_total"
    target = {"job": "t", "instance": "1"}
    labels = {"service": f"{GATEWAY}shop-shop-prod-7-0@kubernetesgateway", "code": "200"}
    return [
        ({"__name__": name, **labels, **target}, requests),
        ({"dafnck": "ours", **target}, scraped),
        ({"dafnck": "alive", **target}, scraped),
        ({"dafnck": "samples", **target}, 20),
    ]


def test_one_look_is_one_request_and_is_used_for_a_second(server: Server) -> None:
    server.answer = vector(*counted(5))
    metrics = reader(f"{server.url}/prom/")
    for _ in range(5):
        assert metrics.read()["shop-prod-7"].requests == 5
    assert metrics.behind_seconds == 15
    assert [one["path"] for one in server.asked] == ["/prom/api/v1/query"]
    server.answer = vector(*counted(7))
    wait_for(lambda: metrics.read()["shop-prod-7"].requests == 7, "a second is over", 3)
    assert len(server.asked) == 2
    assert 'up{job=~"t"} == 0' in server.asked[1]["query"]


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (200, b"<html>Log in</html>", "not as a Prometheus does"),
        (200, b"", "not as a Prometheus does"),
        (200, b"[]", "not as a Prometheus does"),
        (200, b'{"status": "success"}', "not as a Prometheus does"),
        (200, vector()[:-9], "not as a Prometheus does"),
        (302, b"", "answers 302"),
        (404, b"404 page not found", "answers 404"),
        (400, b'{"status": "error", "error": "parse error"}', "answers 400: parse error"),
        (503, b'{"status": "error", "error": "query timed out"}', "503: query timed out"),
        (401, b"Unauthorized", r"refuses our credentials \(401\)"),
        (403, b"<html>", r"refuses our credentials \(403\)"),
        (200, vector(*counted(5), warnings=["no answer of a store"]), "in full: no answer of a"),
        (200, vector(*counted(5), isPartial=True), "did not answer in full"),
        (200, vector(), "has no series of shop in prod"),
        (200, vector(*counted(5, scraped=900.0)), "is 100s old"),
        (200, vector(*counted(5, scraped=900.0)[2:]), "is 100s old"),
    ],
)
def test_what_is_no_answer(server: Server, status: int, answer: bytes, words: str) -> None:
    server.status, server.answer = status, answer
    with pytest.raises(Unreachable, match=words):
        reader(server.url).read()


def test_remarks_about_the_query_are_no_warnings(server: Server) -> None:
    remarks = {"warnings": ["PromQL info: it might not be a counter"], "infos": ["so may this"]}
    server.answer = vector(*counted(5), **remarks)
    assert reader(server.url).read()["shop-prod-7"].requests == 5


def test_a_long_scrape_interval_is_no_silence(server: Server) -> None:
    series = [*counted(5, scraped=900.0)[:-1]]
    series.append(({"dafnck": "samples", "job": "t", "instance": "1"}, 5))  # one a minute
    server.answer = vector(*series)
    metrics = reader(server.url)
    assert metrics.read()["shop-prod-7"].requests == 5
    assert metrics.behind_seconds == 60


def test_after_a_gap_the_totals_go_on(server: Server) -> None:
    server.answer = vector(*counted(5))
    metrics = reader(server.url)
    metrics.read()
    server.status = 500
    assert why_not(metrics)
    server.status, server.answer = 200, vector(*counted(9))
    assert anew(metrics)["shop-prod-7"].requests == 9


def test_nobody_there() -> None:
    assert "does not answer" in why_not(reader("http://127.0.0.1:9"))
    assert "does not answer" in why_not(GatewayTraefikMetrics("http://127.0.0.1:9", "a", "b", "c"))
    assert "does not answer" in why_not(reader("http://no-such-host.invalid"))


def test_a_slow_answer_is_none_and_is_not_asked_for_all_the_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "ANSWER_SECONDS", 0.3)
    server.wait, server.answer = 1.0, vector(*counted(5))
    metrics = reader(server.url)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(Unreachable, match=r"within 0\.3s"):
            metrics.read()
    assert time.monotonic() - begun < 0.9
    assert len(server.asked) == 1


def test_an_endless_answer_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "LARGEST_BYTES", 1000)
    server.answer = b"x" * 5000
    assert "more than" in why_not(reader(server.url))


def test_another_server_is_no_traefik(server: Server) -> None:
    metrics = GatewayTraefikMetrics(server.url, "shop", "shop", "prod")
    for server.status, server.answer in ((404, b"nothing"), (200, b"<html>"), (200, b"up 1\n")):
        assert "without its metrics" in why_not(metrics)
    broken = f"{traefik_series('shop-prod-7')} many\n{ALIVE} 1\n"
    server.answer = broken.encode()
    assert "tells no metrics" in why_not(metrics)


def test_each_process_of_a_traefik_counts_for_itself(server: Server) -> None:
    metrics = GatewayTraefikMetrics(server.url, "shop", "shop", "prod")

    def counts(process: int, requests: int) -> float:
        started = f"process_start_time_seconds 1.7e+0{process}"
        lines = [f"{ALIVE} 1", started, f"{traefik_series('shop-prod-7')} {requests}", ""]
        server.answer = "\n".join(lines).encode()
        return metrics.read()["shop-prod-7"].requests

    assert counts(1, 100) == 100
    assert counts(1, 101) == 101
    assert counts(2, 7000) == 101, "another behind the same address"
    assert counts(1, 103) == 103
    assert counts(2, 7001) == 104
    assert counts(3, 1) == 104, "it was started again"
    assert counts(3, 3) == 106


def test_a_router_of_others_that_is_lost_is_none_of_ours(server: Server) -> None:
    other = {"job": "t", "instance": "2"}
    server.answer = vector(*counted(5), ({"dafnck": "alive", **other}, 999))
    metrics = reader(server.url)
    metrics.read()
    server.answer = vector(*counted(6), ({"dafnck": "down", **other}, 0))
    assert anew(metrics)["shop-prod-7"].requests == 6
    server.answer = vector(({"dafnck": "down", "job": "t", "instance": "1"}, 0))
    assert "gets no metrics any more from 1 (t)" in why_not(metrics)


def test_credentials_are_sent_and_never_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    from_environment, in_file, no_text = "$PROM_TOKEN", "token", "bytes"
    monkeypatch.setenv("PROM_TOKEN", "hush-1\n")
    metrics = reader(server.url, token=from_environment)
    server.status = 401
    said = why_not(metrics)
    assert server.asked[-1]["headers"]["Authorization"] == "Bearer hush-1"
    assert "hush" not in f"{said} {metrics!r} {server.asked[-1]['query']}"
    monkeypatch.setenv("PROM_TOKEN", "hush-2")
    why_not(metrics)
    assert server.asked[-1]["headers"]["Authorization"] == "Bearer hush-2"
    (tmp_path / "token").write_text("hush-3")
    why_not(reader(server.url, tmp_path, token=in_file))
    assert server.asked[-1]["headers"]["Authorization"] == "Bearer hush-3"

    asked = len(server.asked)
    monkeypatch.setenv("PROM_TOKEN", "hush\r\nX-Other: 1")
    said = why_not(metrics)
    assert "holds characters" in said
    assert "hush" not in said
    monkeypatch.delenv("PROM_TOKEN")
    assert "$PROM_TOKEN is empty or not set" in why_not(metrics)
    assert "there cannot be read: No such file" in why_not(reader(server.url, basic="/not/there"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert "it is no text" in why_not(reader(server.url, tmp_path, token=no_text))
    (tmp_path / "ca").write_text("no certificate")
    secure = server.url.replace("http:", "https:")
    assert "metrics.ca: ca cannot be used" in why_not(reader(secure, tmp_path, ca="ca"))
    assert len(server.asked) == asked
