"""Which series count the requests of which release, and the PromQL that asks for them.

Invariants: a value that somebody chose stands in a query as an escaped string and nothing else; a
series is ours only when its whole label says so, namespace included, never by a prefix.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from policy.kubernetes import Metrics
from policy.series import Reading, Target

LOOKBACK_SECONDS = 300  # of Prometheus: a series without a newer sample is gone
POD_LETTERS = "[bcdfghjklmnpqrstvwxz2456789]"  # of what Kubernetes makes up
CODES = ("code", "status", "status_code", "response_code")
MARK = "dafnck"  # label of ours that says which part of the answer a series is

Match = tuple[str, str, str]  # label, operator, value


def quoted(value: str) -> str:
    """A string of PromQL. Its escapes are those of Go, of which JSON's are a part."""
    return json.dumps(value, ensure_ascii=False)


def selector(name: str, matches: Iterable[Match]) -> str:
    return f"{name}{{{', '.join(f'{label}{sign}{quoted(v)}' for label, sign, v in matches)}}}"


@dataclass(frozen=True)
class Way:
    """One way in which labels name a release: `pattern` matches the whole of `label`, and `where`
    holds. `moved`: Prometheus may have put `exported_` before these labels, because the target has
    labels of the same names."""

    label: str
    pattern: str
    where: Mapping[str, str]
    moved: bool = False

    def matches(self) -> list[list[Match]]:
        asked = [(self.label, "=~", self.pattern)]
        asked += [(label, "=", value) for label, value in self.where.items()]
        if not self.moved:
            return [asked]
        found: list[list[Match]] = []
        for exported in product((False, True), repeat=len(asked)):
            one: list[Match] = []
            for (label, sign, value), away in zip(asked, exported, strict=True):
                one.append((f"exported_{label}" if away else label, sign, value))
                one += [] if away else [(f"exported_{label}", "=", "")]
            found.append(one)
        return found

    def release(self, labels: Mapping[str, str]) -> str | None:
        if any(self._value(labels, label) != value for label, value in self.where.items()):
            return None
        found = re.fullmatch(self.pattern, self._value(labels, self.label))
        return found["id"] if found else None

    def _value(self, labels: Mapping[str, str], label: str) -> str:
        moved = labels.get(f"exported_{label}", "") if self.moved else ""
        return moved or labels.get(label, "")


@dataclass(frozen=True)
class Source:
    """Whose metrics are read. `alive`: a selector of what is there whenever that is scraped, before
    the first request too. `others`: matchers of every series, `of_targets`: of `up` too."""

    requests: str
    duration: str  # name of the histogram, without _bucket
    ways: tuple[Way, ...]
    alive: str
    of_targets: tuple[Match, ...]
    others: tuple[Match, ...]
    seconds: float = 1.0  # in one unit of its bounds

    @property
    def alive_is_ours(self) -> bool:
        """It tells of our own pods, and not of a router that others use too."""
        return self.alive.startswith("up{")

    def counters(self) -> list[str]:
        """Selectors of the requests, then of their buckets."""
        return self._of(self.requests) + self._of(f"{self.duration}_bucket")

    def question(self, jobs: Iterable[str]) -> str:
        """All that one look needs, in one query, so that all of it is of the same moment. `jobs`:
        those that are known to count for us."""
        ours = " or ".join(f"timestamp({one})" for one in self._of(self.requests))
        alive = f"timestamp({self.alive})"
        if self.alive_is_ours:  # up: it is there, and new, when scraping failed
            alive = f"({alive} and {self.alive} == 1)"
        samples = f"count_over_time({self.alive}[{LOOKBACK_SECONDS}s])"
        parts = [
            *self.counters(),
            _marked("ours", f"max by (job, instance) ({ours})"),
            _marked("alive", f"max by (job, instance) ({alive})"),
            _marked("samples", f"max by (job, instance) ({samples})"),
        ]
        if of := sorted(jobs):
            jobs_pattern = "|".join(map(re.escape, of))
            down = selector("up", [("job", "=~", jobs_pattern), *self.of_targets])
            parts.append(_marked("down", f"{down} == 0"))
        return "\nor ".join(parts)

    def reading(self, labels: Mapping[str, str], value: float) -> Reading | None:
        """None for a series that is not ours."""
        name = labels.get("__name__", "")
        if name not in (self.requests, f"{self.duration}_bucket"):
            return None
        release = next(filter(None, (way.release(labels) for way in self.ways)), None)
        if release is None:
            return None
        code = next((labels[label] for label in CODES if label in labels), "")
        bound = None
        if name != self.requests:
            if code in (
                "101",
                "1xx",
            ):  # a WebSocket lasts as long as it is open: no latency of an answer
                return None
            try:
                bound = float(labels.get("le", "")) * self.seconds
            except ValueError:
                return None
        # Three characters, as 503 and 5xx have: gRPC has a status 5 of its own.
        error = len(code) == 3 and code.startswith("5")
        key = frozenset(labels.items())
        return Reading(release, target_of(labels), key, value, error, bound)

    def _of(self, name: str) -> list[str]:
        return [
            selector(name, [*matches, *self.others])
            for way in self.ways
            for matches in way.matches()
        ]


def _marked(part: str, query: str) -> str:
    return f'label_replace({query}, "{MARK}", "{part}", "", "")'


def target_of(labels: Mapping[str, str]) -> Target:
    return labels.get("job", ""), labels.get("instance", "")


def source_of(metrics: Metrics, namespace: str, service: str, environment: str) -> Source:
    """The series of the releases of this service in this environment."""
    others = tuple((label, "=", value) for label, value in metrics.matchers.items())
    release, inside = _release(service, environment), {"namespace": namespace}
    if metrics.source == "traefik":
        name = "traefik_service_request"
        way = Way("service", _traefik_service(_plain(namespace), release), {}, moved=True)
        alive = selector("traefik_config_last_reload_success", others)
        return Source(f"{name}s_total", f"{name}_duration_seconds", (way,), alive, others, others)
    if metrics.source == "ingress-nginx":
        name = "nginx_ingress_controller"
        way = Way("service", f"(?P<id>{release})", inside, moved=True)
        alive = selector(f"{name}_config_last_reload_successful", others)
        duration = f"{name}_request_duration_seconds"
        return Source(f"{name}_requests", duration, (way,), alive, others, others)
    pods = Way("pod", _pods_of(release), inside)
    if metrics.source == "application":
        name = "http_request"
        up = selector("up", [*pods.matches()[0], *others])
        return Source(f"{name}s_total", f"{name}_duration_seconds", (pods,), up, others, others)
    of_targets = tuple(match for match in others if match[0] != "reporter")
    # Where pods have no sidecar the gateway alone reports: matchers: {reporter: source}.
    reporter = () if "reporter" in metrics.matchers else (("reporter", "=", "destination"),)
    return Source(
        "istio_requests_total",
        "istio_request_duration_milliseconds",
        (
            _istio_way(
                "destination_workload", "destination_workload_namespace", release, namespace
            ),
            # A request that found no pod has an unknown workload, but it has a service.
            _istio_way(
                "destination_service_name", "destination_service_namespace", release, namespace
            ),
        ),
        selector("up", [*pods.matches()[0], *of_targets]),
        of_targets,
        (*reporter, *others),
        seconds=0.001,
    )


def _istio_way(label: str, of_namespace: str, release: str, namespace: str) -> Way:
    return Way(label, f"(?P<id>{release})", {of_namespace: namespace})


def _traefik_service(place: str, release: str) -> str:
    """As Traefik names what it forwards to, for patterns of a namespace and a release. By an
    HTTPRoute: from 3.7.6 on httproute-…-<hash of the rule>-svc-<namespace>-<Service>-<number>,
    before <namespace>-<Service>-http; by an IngressRoute or an Ingress: with the port at the end.
    """
    by_route = "(?:httproute-.+-[0-9a-f]{20}-svc-)?"
    return f"{by_route}{place}-(?P<id>{release})-(?:[0-9]+|http)@kubernetes(?:gateway|crd)?"


def _plain(text: str) -> str:
    return re.escape(text).replace("\\-", "-")


def _release(service: str, environment: str) -> str:
    return f"{_plain(service)}-{_plain(environment)}-[1-9][0-9]*"


def _pods_of(release: str) -> str:
    """<release>-<hash>-<five letters>; a long name loses the end of its hash."""
    return f"(?P<id>{release})-{POD_LETTERS}{{0,10}}-?{POD_LETTERS}{{5}}"
