"""Traefik on one machine: one dynamic file a service and environment, replaced atomically.

Invariants: only releases with a share are listed in the weighted service, so that a sticky cookie
cannot hold a client on a release that was rolled back; a write counts when Traefik's own API
answers with it.
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from blocks.files import locked, write_atomically
from policy.errors import NotApplied, Unreachable
from policy.release import Endpoints, MatchRules
from policy.samples import Counters

STATE = "# dafnck: "
LOCK_SECONDS = 10.0  # for the write of a small file
READ_BACK_SECONDS = 10.0  # it takes 50 ms; on a machine that does too much, seconds
# Upper bounds in seconds, finer than usual: a judge of latency sees in steps of these.
LATENCY_BUCKETS = [
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.014, 0.02, 0.03, 0.04, 0.055, 0.075),
    *(0.1, 0.14, 0.2, 0.28, 0.4, 0.55, 0.75, 1, 1.4, 2, 3, 5, 10, 30),
]


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return b"{}"
        raise Unreachable(f"Traefik answers {error.code} to {url}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(
            f"Traefik does not answer ({error}). Its files hold the last wish and it takes them up "
            "when it runs; dafnck up starts it"
        ) from error


def shared_document() -> str:
    """What the files of all services refer to. Traefik skips a configuration without any router,
    service or middleware, so this is also what makes the last service's end seen."""
    # Idle connections to replicas end soon: the router must not hold on to one that a replica is
    # about to close, and "no connection left" is how a drain ends.
    transport = {"forwardingTimeouts": {"idleConnTimeout": "1s", "dialTimeout": "5s"}}
    # Only requests that never reached a replica are tried again, so any method is safe.
    retry = {"retry": {"attempts": 4, "initialInterval": "100ms"}}
    http = {"serversTransports": {"dafnck": transport}, "middlewares": {"dafnck-retry": retry}}
    return json.dumps({"http": http}, indent=1) + "\n"


class TraefikRouter:
    """TrafficRouter of one service in one environment, over Traefik's file provider."""

    def __init__(
        self,
        dynamic: Path,
        api_url: str,
        service: str,
        environment: str,
    ) -> None:
        self.name = f"{service}-{environment}"
        self._path = dynamic / f"{self.name}.yaml"
        self._lock = dynamic.parent / "locks" / f"{self.name}.lock"
        self._api_url = api_url

    # -- TrafficRouter -----------------------------------------------------------------------

    def attach(self, endpoints: Endpoints) -> None:
        with locked(self._lock, LOCK_SECONDS):
            state = self._read()
            backend = {
                "urls": list(endpoints.urls),
                "health": endpoints.health_path,
                "timeout": endpoints.health_timeout,
                "host": endpoints.host,
                "port": endpoints.port,
            }
            if state["backends"].get(endpoints.release_id) == backend:
                return
            state["backends"][endpoints.release_id] = backend
            self._write(state)
        self._wait_for(
            endpoints.release_id,
            lambda service: (
                [server["url"] for server in service.get("loadBalancer", {}).get("servers", [])]
                == list(endpoints.urls)
            ),
        )

    def detach(self, release_id: str) -> None:
        with locked(self._lock, LOCK_SECONDS):
            state = self._read()
            if state["shares"].get(release_id):
                raise NotApplied(f"{release_id} has {state['shares'][release_id]}% of the traffic")
            state["backends"].pop(release_id, None)
            if (state["rules"] or {}).get("release_id") == release_id:
                state["rules"] = None
            self._write(state)
        self._wait_for(release_id, lambda service: not service)

    def shares(self) -> dict[str, int]:
        state = self._read()
        attached = dict.fromkeys(state["backends"], 0)
        weighted = self._service(self.name).get("weighted", {}).get("services", [])
        held = {one["name"].removesuffix("@file"): one.get("weight", 0) for one in weighted}
        if state["shares"] and not held:
            raise Unreachable("Traefik was started a moment ago and has not read its files yet")
        return attached | held

    def set_shares(self, shares: dict[str, int]) -> None:
        wanted = {release: share for release, share in shares.items() if share}
        with locked(self._lock, LOCK_SECONDS):
            state = self._read()
            if unknown := set(wanted) - set(state["backends"]):
                raise NotApplied(f"{', '.join(unknown)} not attached; traffic is unchanged")
            state["shares"] = wanted
            if state["rules"] and state["rules"]["release_id"] not in wanted:
                state["rules"]["cohort_on"] = False  # the cohort goes back with the others
            self._write(state)

        def held(service: dict[str, Any]) -> bool:
            services = service.get("weighted", {}).get("services", [])
            return {one["name"]: one.get("weight", 0) for one in services} == wanted

        self._wait_for(self.name, held)

    def match(self, rules: MatchRules | None) -> None:
        with locked(self._lock, LOCK_SECONDS):
            state = self._read()
            state["rules"] = rules and {
                "release_id": rules.release_id,
                "preview": rules.preview,
                "cohort_header": rules.cohort_header,
                "cohort_cookie": rules.cohort_cookie,
                "cohort_on": rules.cohort_on,
                "sticky": rules.sticky,
            }
            self._write(state)
            routers = self._document(state)["http"].get("routers", {})
        preview = f"{self.name}-preview-0"
        wanted = routers.get(preview, {})
        self._wait_for(
            preview,
            lambda router: all(router.get(key) == wanted.get(key) for key in ("rule", "service")),
            kind="routers",
        )

    # -- the file ----------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        try:
            first = self._path.read_text().partition("\n")[0]
        except FileNotFoundError:
            return {"backends": {}, "shares": {}, "rules": None}
        if not first.startswith(STATE):
            raise NotApplied(f"{self._path} was changed by hand; remove it and run dafnck up")
        return dict(json.loads(first.removeprefix(STATE)))

    def _write(self, state: dict[str, Any]) -> None:
        if not state["backends"]:
            # Traefik refuses an empty element, and with it the files of all other services.
            self._path.unlink(missing_ok=True)
            return
        # JSON is YAML; the state travels in the same file, so that both change in one rename.
        document = json.dumps(self._document(state), indent=1)
        write_atomically(self._path, f"{STATE}{json.dumps(state)}\n{document}\n")

    def _document(self, state: dict[str, Any]) -> dict[str, Any]:
        backends, shares, rules = state["backends"], state["shares"], state["rules"] or {}
        services: dict[str, Any] = {}
        for release, backend in backends.items():
            balancer: dict[str, Any] = {
                "servers": [{"url": url} for url in backend["urls"]],
                "serversTransport": "dafnck@file",
            }
            if backend["health"] and len(backend["urls"]) > 1:
                # Takes a replica that hangs out of the rotation; one alone is never taken out.
                balancer["healthCheck"] = {
                    "path": backend["health"],
                    "interval": f"{max(5.0, backend['timeout']):g}s",
                    "unhealthyInterval": "1s",
                    "timeout": f"{max(4.0, backend['timeout']):g}s",
                }
            services[release] = {"loadBalancer": balancer}
        if shares:
            weighted: dict[str, Any] = {
                "services": [{"name": r, "weight": w} for r, w in shares.items()]
            }
            if rules.get("sticky"):
                cookie = {"name": f"dafnck_{self.name}", "httpOnly": True, "sameSite": "lax"}
                weighted["sticky"] = {"cookie": cookie}
            services[self.name] = {"weighted": weighted}
        routers = self._routers(backends, shares, rules)
        return {"http": {"services": services, **({"routers": routers} if routers else {})}}

    def _routers(
        self, backends: dict[str, Any], shares: dict[str, int], rules: dict[str, Any]
    ) -> dict[str, Any]:
        """A release brings its own host or port: while two share the traffic, both are served."""
        doors = dict.fromkeys(_door(backends[release]) for release in shares)
        routers = {}
        for number, door in enumerate(doors):
            routers[f"{self.name}-main-{number}"] = _router(door, "", self.name, 10)
        release = rules.get("release_id")
        if release not in backends:
            return routers
        doors = {_door(backends[release]): None} | doors
        for number, door in enumerate(doors):
            for name, value in rules["preview"].items():
                condition = f"Header(`{name}`, `{value}`)"
                routers[f"{self.name}-preview-{number}"] = _router(door, condition, release, 1000)
            if rules["cohort_on"] and (cohort := rules["cohort_header"]):
                condition = f"Header(`{cohort[0]}`, `{cohort[1]}`)"
                routers[f"{self.name}-cohort-{number}"] = _router(door, condition, release, 900)
            if rules["cohort_on"] and (cohort := rules["cohort_cookie"]):
                pattern = rf"(^|;\s*){re.escape(cohort[0])}={re.escape(cohort[1])}(;|$)"
                condition = f"HeaderRegexp(`Cookie`, `{pattern}`)"
                routers[f"{self.name}-cohort-{number}"] = _router(door, condition, release, 900)
        return routers

    # -- read back ---------------------------------------------------------------------------

    def _service(self, name: str, kind: str = "services") -> dict[str, Any]:
        return dict(json.loads(_get(f"{self._api_url}/api/http/{kind}/{name}@file")))

    def _wait_for(self, name: str, taken_up: Any, kind: str = "services") -> None:
        give_up = time.monotonic() + READ_BACK_SECONDS
        while not taken_up(self._service(name, kind)):
            if time.monotonic() > give_up:
                raise NotApplied(
                    f"Traefik did not take up {self._path.name} in {READ_BACK_SECONDS:g}s; it goes "
                    f"on with what it had. It holds: {self._service(name, kind)}"
                )
            time.sleep(0.01)


def _door(backend: dict[str, Any]) -> tuple[str, str]:
    """-> (entry point, rule) by which requests for a release come in."""
    if backend["port"]:
        return f"port-{backend['port']}", "PathPrefix(`/`)"
    return "web", f"Host(`{backend['host']}`)"


def _router(door: tuple[str, str], condition: str, service: str, priority: int) -> dict[str, Any]:
    return {
        "entryPoints": [door[0]],
        "rule": f"{door[1]} && {condition}" if condition else door[1],
        "service": service,
        "priority": priority,
        "middlewares": ["dafnck-retry@file"],
    }


class TraefikMetrics:
    """TrafficMetrics from Traefik's own Prometheus endpoint: counts by service, here by release."""

    def __init__(self, api_url: str) -> None:
        self._url = f"{api_url}/metrics"

    def read(self) -> dict[str, Counters]:
        from prometheus_client.parser import text_string_to_metric_families

        totals: dict[str, list[float]] = {}
        buckets: dict[str, dict[float, float]] = {}
        try:
            families = list(text_string_to_metric_families(_get(self._url).decode()))
        except ValueError as error:  # it was started a moment ago and does not know the path yet
            raise Unreachable(f"Traefik tells no metrics at {self._url} yet") from error
        for family in families:
            if not family.name.startswith("traefik_service_request"):
                continue
            for sample in family.samples:
                release = sample.labels.get("service", "").removesuffix("@file")
                if sample.name == "traefik_service_requests_total":
                    total = totals.setdefault(release, [0, 0])
                    total[0] += sample.value
                    total[1] += sample.value if sample.labels["code"].startswith("5") else 0
                elif sample.name == "traefik_service_request_duration_seconds_bucket":
                    # A WebSocket (101) lasts as long as it is open: no latency of an answer.
                    if sample.labels["code"] != "101":
                        of = buckets.setdefault(release, {})
                        bound = float(sample.labels["le"])
                        of[bound] = of.get(bound, 0) + sample.value
        return {
            release: Counters(requests, errors, dict(sorted(buckets.get(release, {}).items())))
            for release, (requests, errors) in totals.items()
        }
