"""What a Prometheus knows about the releases of one service.

It answers from what it scraped some seconds ago, or from what it scraped last before it lost a
target. So silence is told apart from "nothing happened": an answer that is old, not whole, or of
targets that are not scraped any more is no answer.
"""

import base64
import json
import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from blocks.bounded_http import asked
from policy.errors import Unreachable
from policy.kubernetes import Metrics
from policy.promql import LOOKBACK_SECONDS, MARK, source_of, target_of
from policy.samples import Counters
from policy.series import Reading, Target, Totals

REUSED_SECONDS = 0.9  # a rollout looks once a second
OLD_SECONDS = 60.0  # or three scrape intervals, whichever is longer


class PrometheusMetrics:
    """TrafficMetrics of the releases `<service>-<environment>-<number>` in one namespace."""

    def __init__(
        self,
        metrics: Metrics,
        namespace: str,
        service: str,
        environment: str,
        folder: Path = Path(),
    ) -> None:
        """`folder`: what relative names of files in `metrics` begin at."""
        self._metrics, self._folder = metrics, folder
        self._source = source_of(metrics, namespace, service, environment)
        self._named = f"{service} in {environment}"
        self._who = f"Prometheus at {metrics.prometheus}"
        self._url = f"{(metrics.prometheus or '').rstrip('/')}/api/v1/query"
        self._trusted: ssl.SSLContext | None = None
        self._totals = Totals()
        self._intervals: dict[Target, float] = {}  # between two scrapes, as far as it is known
        self._ours: set[Target] = set()  # where requests to us are counted
        self._lock = threading.Lock()
        self._last: dict[str, Counters] | Unreachable | None = None
        self._reused_until = 0.0

    @property
    def behind_seconds(self) -> float:
        """By how much counts may be late: the scrape interval, as far as it is known, at most a
        minute."""
        known = [self._intervals[target] for target in self._ours if target in self._intervals]
        return min(max(known, default=0.0), 60.0)

    def read(self) -> dict[str, Counters]:
        """Totals since the first read and what the series stood at then. Raises Unreachable."""
        with self._lock:
            if (begun := time.monotonic()) >= self._reused_until or self._last is None:
                try:
                    self._last = self._read()
                except Unreachable as error:
                    self._last = error
                # One that answers late is not asked all the time.
                took = time.monotonic() - begun
                self._reused_until = begun + max(REUSED_SECONDS, 2 * took)
            if isinstance(self._last, Unreachable):
                raise Unreachable(str(self._last))
            return dict(self._last)

    def _read(self) -> dict[str, Counters]:
        jobs = {job for job, _ in self._ours}
        readings: list[Reading] = []
        parts = ("ours", "alive", "down", "samples")
        told: dict[str, dict[Target, float]] = {part: {} for part in parts}
        now = 0.0
        for labels, at, value in self._ask(self._source.question(jobs)):
            now = max(now, at)
            if (part := labels.get(MARK, "")) in told:
                told[part][target_of(labels)] = value
            elif reading := self._source.reading(labels, value):
                readings.append(reading)
        newest = told["alive"] | told["ours"]
        self._learn_intervals(told["samples"], newest)
        self._doubt(told, now)
        self._ours |= set(told["ours"]) | (
            set(told["alive"]) if self._source.alive_is_ours else set()
        )
        return self._totals.add(readings, newest)

    def _learn_intervals(self, samples: dict[Target, float], newest: dict[Target, float]) -> None:
        """The shortest that was seen: a target may be new, and a gap one of several scrapes."""
        seen = [(target, LOOKBACK_SECONDS / max(1.0, n)) for target, n in samples.items()]
        before = self._totals.newest
        seen += [(t, at - before[t]) for t, at in newest.items() if at > before.get(t, at)]
        for target, interval in seen:
            self._intervals[target] = min(interval, self._intervals.get(target, interval))

    def _doubt(self, told: dict[str, dict[Target, float]], now: float) -> None:
        """Raises Unreachable when the counts do not say what happened until now."""
        ours, alive = told["ours"], told["alive"]
        if lost := sorted(set(told["down"]) & self._ours):
            raise Unreachable(
                f"{self._who} gets no metrics any more from {_in_words(lost)}: what is counted "
                f"there about {self._named} is not known. Its page /targets says why"
            )
        if not ours and not alive:
            raise Unreachable(
                f"{self._who} has no series of {self._named} and none of their source either "
                f"({self._source.alive}). Does it scrape {self._metrics.source}, and do the "
                "matchers fit?"
            )
        twice = [instance for instance in {i for _, i in ours} if _jobs(ours, instance) > 1]
        if twice:
            raise Unreachable(
                f"{self._who} counts requests to {self._named} twice: {min(twice)} is scraped by "
                "several jobs. Name one: matchers: {job: …}"
            )
        last = max(alive, key=lambda target: alive[target], default=("", ""))
        silent = sorted(
            target
            for target, at in (ours or {last: alive[last]}).items()
            if now - at > max(OLD_SECONDS, 3 * self._intervals.get(target, 0.0))
        )
        if silent:
            age = max(now - (ours or alive)[target] for target in silent)
            raise Unreachable(
                f"the newest that {self._who} has of {_in_words(silent)} is {age:.0f}s old: what "
                f"happened to {self._named} since then is not known"
            )

    # -- the question ------------------------------------------------------------------------

    def _ask(self, query: str) -> list[tuple[dict[str, str], float, float]]:
        """-> (labels, moment of the answer, value) of each series."""
        status, content = asked(
            self._who,
            self._url,
            form={"query": query},
            headers=self._login(),
            trusted=self._trust(),
        )
        if status in (401, 403):
            raise Unreachable(f"{self._who} refuses our credentials ({status})")
        try:
            body = json.loads(content)
            if status != 200 or body["status"] != "success":
                raise Unreachable(f"{self._who} answers {status}: {str(body.get('error'))[:300]}")
            warnings = [str(one) for one in body.get("warnings") or ()]
            partial = [one for one in warnings if not one.startswith("PromQL info")]
            if partial or body.get("isPartial"):
                words = partial[0][:300] if partial else "a part of it"
                raise Unreachable(f"{self._who} did not answer in full: {words}")
            return [_series(one) for one in body["data"]["result"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unreachable(
                f"{self._who} answers {status} and not as a Prometheus does; is the URL right, and "
                "is there no login page in front of it?"
            ) from None

    def _login(self) -> dict[str, str]:
        if place := self._metrics.token:
            return {"Authorization": f"Bearer {self._secret(place, 'token')}"}
        if place := self._metrics.basic:
            pair = self._secret(place, "basic").encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}

    def _secret(self, place: str, key: str) -> str:
        """Read at each use, as it may be renewed during a rollout. No message holds it."""
        if place.startswith("$"):
            value = os.environ.get(place[1:], "").strip()
        else:
            try:
                value = self._file(place).read_text().strip()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise Unreachable(f"metrics.{key}: {place} cannot be read: {why}") from None
        if not value:
            raise Unreachable(f"metrics.{key}: {place} is empty or not set in this process")
        # A line end in it would be a header of its own, and stand in the error about it.
        if not value.isprintable() or (key == "token" and not value.isascii()):
            raise Unreachable(f"metrics.{key}: {place} holds characters that no {key} has")
        return value

    def _trust(self) -> ssl.SSLContext | None:
        if self._trusted is None and self._url.startswith("https:"):
            ca = self._metrics.ca
            try:
                self._trusted = ssl.create_default_context(cafile=ca and str(self._file(ca)))
            except OSError as error:
                why = error.strerror or "it holds no certificate"
                raise Unreachable(f"metrics.ca: {ca} cannot be used: {why}") from None
        return self._trusted

    def _file(self, place: str) -> Path:
        return self._folder / Path(place).expanduser()


def _series(one: Any) -> tuple[dict[str, str], float, float]:
    at, value = one["value"]
    labels = {str(label): str(text) for label, text in one["metric"].items()}
    return labels, float(at), float(value)


def _jobs(targets: dict[Target, float], instance: str) -> int:
    return sum(of == instance for _, of in targets)


def _in_words(targets: list[Target]) -> str:
    first = ", ".join(f"{instance} ({job})" for job, instance in targets[:3])
    return f"{first} and {len(targets) - 3} more" if len(targets) > 3 else first
