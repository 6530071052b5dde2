"""Which series are whose, what a query may hold, and what becomes of series that come and go."""

import re
from math import inf, nan

import pytest

from policy.kubernetes import Metrics
from policy.promql import Source, quoted, source_of
from policy.samples import Counters
from policy.series import Reading, Totals

GATEWAY = "httproute-shop-shop-prod-gw-infra-web-ep-web-0-5547c1e3531123356db1-svc-"


def a_source(kind: str, **more: str) -> Source:
    metrics = Metrics.model_validate({"prometheus": "http://x", "source": kind, "matchers": more})
    return source_of(metrics, "shop", "shop", "prod")


def release_of(source: Source, **labels: str) -> str | None:
    reading = source.reading({"__name__": source.requests, **labels}, 1)
    return reading and reading.release


@pytest.mark.parametrize(
    ("service", "release"),
    [
        (f"{GATEWAY}shop-shop-prod-7-1@kubernetesgateway", "shop-prod-7"),
        (f"{GATEWAY}shop-shop-prod-70-12@kubernetesgateway", "shop-prod-70"),
        ("shop-shop-prod-7-http@kubernetesgateway", "shop-prod-7"),  # before 3.7.6
        ("shop-shop-prod-7-80@kubernetescrd", "shop-prod-7"),
        ("shop-shop-prod-7-http@kubernetes", "shop-prod-7"),
        (f"{GATEWAY}shop-shop-prod-0@kubernetesgateway", None),  # what all releases share
        (f"{GATEWAY}shop-shop-prod-7-1-0@kubernetesgateway", None),
        (f"{GATEWAY}shop-shop-b-prod-7-0@kubernetesgateway", None),
        (f"{GATEWAY}shop-b-shop-prod-7-0@kubernetesgateway", None),
        (f"{GATEWAY}other-shop-prod-7-0@kubernetesgateway", None),
        (f"{GATEWAY}shop-shop-dev-7-0@kubernetesgateway", None),
        (f"{GATEWAY}shop-shop-prod-x-7-0@kubernetesgateway", None),
        (f"{GATEWAY}shop-shop-prod-7-0@file", None),
        ("shop-prod-7@file", None),
        (f"{GATEWAY}shop-shop-prod-07-0@kubernetesgateway", None),
    ],
)
def test_traefik_names_a_service(service: str, release: str | None) -> None:
    source = a_source("traefik")
    assert release_of(source, service=service) == release
    assert release_of(source, exported_service=service, service="traefik") == release


@pytest.mark.parametrize(
    ("pod", "release"),
    [
        ("shop-prod-7-5d8f7c9b6d-x2x4z", "shop-prod-7"),
        ("shop-prod-7-x2x4z", "shop-prod-7"),  # a name so long that its hash is cut off
        ("shop-prod-70-5d8f7c9b6d-x2x4z", "shop-prod-70"),
        ("shop-prod-7-db-5d8f7c9b6d-x2x4z", None),
        ("shop-prod-7-web-x2x4z", None),
        ("shop-b-prod-7-5d8f7c9b6d-x2x4z", None),
        ("a-shop-prod-7-5d8f7c9b6d-x2x4z", None),
        ("shop-prod-5d8f7c9b6d-x2x4z", None),
        ("shop-dev-7-5d8f7c9b6d-x2x4z", None),
    ],
)
def test_pods_belong_to_releases(pod: str, release: str | None) -> None:
    source = a_source("application")
    assert release_of(source, pod=pod, namespace="shop") == release
    assert release_of(source, pod=pod, namespace="other") is None
    assert release_of(source, pod=pod) is None


def test_ingress_nginx_names_the_service_and_its_namespace() -> None:
    source = a_source("ingress-nginx")
    assert release_of(source, service="shop-prod-7", namespace="shop") == "shop-prod-7"
    assert release_of(source, service="shop-prod-7", namespace="other") is None
    assert release_of(source, service="shop-prod", namespace="shop") is None
    away = {"namespace": "ingress-nginx", "exported_namespace": "shop"}
    assert release_of(source, service="shop-prod-7", **away) == "shop-prod-7"
    away |= {"service": "metrics", "exported_service": "shop-prod-7"}
    assert release_of(source, **away) == "shop-prod-7"
    away["exported_namespace"] = "other"
    assert release_of(source, **away | {"namespace": "shop"}) is None


def test_istio_names_the_workload_or_where_there_is_none_the_service() -> None:
    source = a_source("istio")
    ran = {"destination_workload": "shop-prod-7", "destination_workload_namespace": "shop"}
    asked = {"destination_service_name": "shop-prod-6", "destination_service_namespace": "shop"}
    assert release_of(source, **ran, **asked) == "shop-prod-7"
    none = {"destination_workload": "unknown", "destination_workload_namespace": "unknown"}
    assert release_of(source, **none, **asked) == "shop-prod-6"
    asked["destination_service_namespace"] = "other"
    assert release_of(source, **none, **asked) is None
    assert 'reporter="destination"' in source.question([])
    by_gateway = a_source("istio", reporter="source").question(["istio"])
    assert 'reporter="source"' in by_gateway
    assert 'reporter="destination"' not in by_gateway
    assert 'up{job=~"istio"}' in by_gateway, "no label of a series is one of up"
    bucket = {"__name__": "istio_request_duration_milliseconds_bucket", "le": "250", **ran}
    reading = source.reading(bucket, 1)
    assert reading is not None
    assert reading.bound == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"code": "503"}, True),
        ({"status": "5xx"}, True),
        ({"status_code": "500"}, True),
        ({"response_code": "502"}, True),
        ({"code": "499"}, False),
        ({"code": "200"}, False),
        ({"code": "5"}, False),  # of gRPC: not found
        ({}, False),
    ],
)
def test_errors_are_answers_of_5xx(labels: dict[str, str], error: bool) -> None:
    source = a_source("application")
    pod = {"pod": "shop-prod-7-5d8f7c9b6d-x2x4z", "namespace": "shop"}
    reading = source.reading({"__name__": "http_requests_total", **pod, **labels}, 1)
    assert reading is not None
    assert reading.error is error
    bucket = {"__name__": "http_request_duration_seconds_bucket", "le": "0.5", **pod}
    assert source.reading({**bucket, "code": "101"}, 1) is None
    assert source.reading({**bucket, "le": "many"}, 1) is None
    found = source.reading(bucket, 1)
    assert found is not None
    assert found.bound == 0.5


@pytest.mark.parametrize("value", ['"', "\\", "\n", '"} or vector(1) or up{job="', "ü\u2028", "`"])
def test_a_value_is_one_string_of_the_query(value: str) -> None:
    text = quoted(value)
    assert re.fullmatch(r'"([^"\\\n]|\\.)*"', text)
    query = a_source("traefik", cluster=value).question([value])
    assert f"cluster={text}" in query
    rest = re.sub(r'"([^"\\\n]|\\.)*"', "", query)
    assert "vector" not in rest


T = ("job", "1")


def reading(value: float, key: str = "a", target: tuple[str, str] = T, **more: float) -> Reading:
    return Reading("r-1", target, key, value, **more)  # type: ignore[arg-type]


def test_a_counter_that_fell_was_started_again() -> None:
    totals = Totals()
    assert totals.add([reading(100)], {T: 1})["r-1"].requests == 100
    assert totals.add([reading(130)], {T: 2})["r-1"].requests == 130
    assert totals.add([reading(4)], {T: 3})["r-1"].requests == 134
    assert totals.add([reading(9)], {T: 4})["r-1"].requests == 139


def test_one_pod_that_goes_takes_nothing_away() -> None:
    totals = Totals()
    totals.add([reading(100), reading(5000, "b")], {T: 1})
    assert totals.add([reading(101)], {T: 2})["r-1"].requests == 5101
    assert totals.add([], {T: 3})["r-1"].requests == 5101
    assert totals.add([reading(103), reading(5001, "b")], {T: 4})["r-1"].requests == 5104


def test_a_new_series_counts_from_zero_and_a_new_target_from_where_it_is() -> None:
    totals = Totals()
    later = ("job", "2")
    totals.add([reading(100)], {T: 1})
    assert totals.add([reading(100), reading(7, "b")], {T: 2})["r-1"].requests == 107
    found = [reading(100), reading(7, "b"), reading(9000, "c", later)]
    assert totals.add(found, {T: 3, later: 3})["r-1"].requests == 107
    found[2] = reading(9002, "c", later)
    assert totals.add(found, {T: 4, later: 4})["r-1"].requests == 109


def test_a_target_that_was_there_before_its_first_request_counts_from_zero() -> None:
    totals = Totals()
    assert totals.add([], {T: 1}) == {}
    assert totals.add([reading(3)], {T: 2})["r-1"].requests == 3


def test_an_older_view_of_another_prometheus_is_no_restart() -> None:
    totals = Totals()
    totals.add([reading(100)], {T: 10})
    assert totals.add([reading(90)], {T: 9.5})["r-1"].requests == 100
    assert totals.add([reading(110)], {T: 11})["r-1"].requests == 110


def test_errors_and_buckets_add_up_over_series() -> None:
    totals = Totals()
    totals.add([], {T: 0})
    added = totals.add(
        [
            reading(10),
            Reading("r-1", T, "e", 2, error=True),
            Reading("r-1", T, "f", 4, bound=0.5),
            Reading("r-1", T, "g", 12, bound=inf),
            Reading("r-1", T, "h", 1, bound=0.5),
            reading(nan, "i"),
            reading(-1, "j"),
        ],
        {T: 1},
    )
    assert added == {"r-1": Counters(12, 2, {0.5: 5, inf: 12})}
