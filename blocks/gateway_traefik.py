"""The one Traefik behind a Gateway, asked for its own counts: no Prometheus is needed."""

import threading

from blocks.bounded_http import asked
from policy.errors import Unreachable
from policy.kubernetes import Metrics
from policy.promql import source_of
from policy.samples import Counters
from policy.series import Reading, Totals

BEGUN = "process_start_time_seconds "


class GatewayTraefikMetrics:
    """TrafficMetrics of the releases `<service>-<environment>-<number>` in one namespace. Of
    several Traefiks behind one address each look sees one: that is better read by a Prometheus."""

    def __init__(self, url: str, namespace: str, service: str, environment: str) -> None:
        url = url.rstrip("/")
        self._url = url if url.endswith("/metrics") else f"{url}/metrics"
        self._source = source_of(Metrics(traefik=url), namespace, service, environment)
        self._mark = f"-{service}-{environment}-"  # in every line that is ours
        self._totals = Totals()
        self._lock = threading.Lock()

    def read(self) -> dict[str, Counters]:
        """Totals since the first read and what Traefik had counted then. Raises Unreachable."""
        who = f"Traefik at {self._url}"
        with self._lock:
            status, content = asked(who, self._url)
            lines = content.decode(errors="replace").splitlines()
            # It tells its own state from its first moment on, of requests when there were some.
            if status != 200 or not any(line.startswith("traefik_config") for line in lines):
                raise Unreachable(
                    f"{who} answers {status} without its metrics; they need metrics.prometheus in "
                    "its configuration, and the URL that of their entry point"
                )
            # One that was started again, or another behind the same address, counts anew.
            process = next((line for line in lines if line.startswith(BEGUN)), "")
            return self._totals.add(self._readings(lines, process), {("", process): 0.0})

    def _readings(self, lines: list[str], process: str) -> list[Reading]:
        from prometheus_client.parser import text_string_to_metric_families

        ours = [
            line
            for line in lines
            if line.startswith("traefik_service_request") and self._mark in line
        ]
        try:
            families = list(text_string_to_metric_families("\n".join([*ours, ""])))
        except Exception as error:  # whatever a parser says about what is no exposition
            raise Unreachable(f"Traefik at {self._url} tells no metrics: {error}") from None
        found = [
            self._source.reading(
                {"__name__": sample.name, **sample.labels, "instance": process}, sample.value
            )
            for family in families
            for sample in family.samples
        ]
        return [reading for reading in found if reading]
