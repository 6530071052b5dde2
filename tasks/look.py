"""Looks at the world once a second during a rollout and keeps what it saw.

A part that does not answer is no verdict about the release: the last known value stays, and the
reason is told.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from policy.canary import Counters, Judgement, Sample, judge, routing_doubt
from policy.errors import Unreachable
from policy.release import Endpoints, Release, RolloutRecord, Verdict
from policy.rollout import Action, Seen
from tasks.site import Site

log = logging.getLogger("dafnck")
MISSES = 3  # looks in a row without any ready replica
SETTLE_SECONDS = 2.0  # answers to requests of before a shift still come in after it


@dataclass
class Known:
    """What answered last."""

    shares: dict[str, int] = field(default_factory=dict)
    counters: dict[str, Counters] | None = None
    new: Endpoints | None = None
    stable: Endpoints | None = None
    silent: dict[str, str] = field(default_factory=dict)  # part -> why it does not answer


class Eyes:
    """Looks on behalf of one rollout, in the loop and, between looks, from a thread of its own."""

    def __init__(
        self, site: Site, rollout: RolloutRecord, new: Release, still_ours: Callable[[], None]
    ) -> None:
        """`still_ours` raises when another process took the rollout over."""
        self.site, self.rollout, self.new = site, rollout, new
        self._still_ours = still_ours
        self._misses = 0
        self.samples: list[Sample] = []
        self.shifted_at = site.clock()
        self.judgement: Judgement | None = None
        self.known = Known()
        self.interrupted = threading.Event()  # set: look again now
        self.cancelled: str | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sampling, name="samples", daemon=True)

    def __enter__(self) -> "Eyes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> Seen:
        self._still_ours()
        record = self.site.ledger.rollout(self.rollout.id)
        self.sample()
        known = self.known
        workloads = self.site.platform.workloads
        known.new = self._ask("workloads", lambda: workloads.endpoints(self.new.id), known.new)
        if (stable := record.stable_id) and stable != self.new.id:
            known.stable = self._ask(
                "workloads", lambda: workloads.endpoints(stable, quick=True), known.stable
            )
        share = known.shares.get(self.new.id, 0)
        self.judgement = self._judge(share)
        ready = len(known.new.ready) if known.new else 0
        self._misses = 0 if ready else self._misses + 1
        return Seen(
            now=self.site.clock(),
            phase=record.phase,
            share=share,
            shifted_at=self.shifted_at,
            new_ready=ready,
            # Under load a health check may go unanswered now and then; death is silence that lasts.
            new_dead=self._misses >= MISSES,
            restarts=known.new.restarts if known.new else 0,
            stable_running=known.stable.wanted if known.stable else 0,
            verdict=self.judgement.verdict if self.judgement else None,
            verdict_reason=self.judgement.reason if self.judgement else "",
            approved_at=record.approved_at,
            abort_reason=self.cancelled or record.abort_reason,
            trouble=known.new.trouble if known.new else known.silent.get("workloads", ""),
        )

    def tell(self, action: Action) -> None:
        """Write a decision down, with what it was decided from."""
        verdict = self.judgement.verdict.value if self.judgement else None
        share = self.known.shares.get(self.new.id, 0)
        name = type(action).__name__
        log.info("%d%% %s: %s", share, name, action)
        self.site.ledger.decide(self.rollout.id, name, share, verdict, str(action))

    def shifted(self) -> None:
        """The router took a new share: what came in before does not count for it."""
        self.sample()
        self.shifted_at = self.site.clock()

    def sample(self) -> None:
        """Read shares and counters once and keep what was added since the last time."""
        with self._lock:
            known, now = self.known, self.site.clock()
            known.shares = self._ask("router", self.site.platform.router.shares, known.shares)
            before = known.counters
            counters = self._ask("metrics", self.site.platform.metrics.read, None)
            if counters is None:
                sample = Sample(now, None, None, known.shares.get(self.new.id, 0))
            else:
                known.counters = counters
                sample = Sample(
                    now,
                    self._added(self.new.id, before, counters),
                    self._added(self.rollout.stable_id, before, counters),
                    known.shares.get(self.new.id, 0),
                )
            self.samples.append(sample)
        try:
            self.site.ledger.add_sample(self.rollout.id, sample)
        except Unreachable as error:  # the judge has it in memory; only the report lacks it
            log.warning("a sample could not be written to the ledger: %s", error)

    def _added(
        self, release: str | None, before: dict[str, Counters] | None, now: dict[str, Counters]
    ) -> Counters | None:
        if release is None or before is None:
            return None
        return now.get(release, Counters()).since(before.get(release, Counters()))

    def _judge(self, share: int) -> Judgement | None:
        policy = self.new.rollout.judge
        if policy is None or share == 0:
            return None
        since, now = self.shifted_at, self.site.clock()
        first = self.rollout.stable_id in (None, self.new.id)
        judgement = judge(self.samples, policy, since=since, now=now, first=first)
        doubt = self._routing_doubt(share)
        if doubt and judgement.verdict is Verdict.PASS:
            return Judgement(Verdict.UNSURE, doubt, judgement.measurements)
        return judgement

    def _routing_doubt(self, share: int) -> str | None:
        rollout = self.new.rollout
        if rollout.cohort or rollout.sticky:
            return None  # these move requests past the shares on purpose
        since = self.shifted_at + SETTLE_SECONDS
        pairs = [(s.new, s.stable) for s in self.samples if s.at > since and s.new and s.stable]
        return routing_doubt(
            sum(new.requests for new, _ in pairs), sum(old.requests for _, old in pairs), share
        )

    def _ask(self, part: str, question: Any, last: Any) -> Any:
        try:
            answer = question()
        except Unreachable as error:
            if part not in self.known.silent:
                log.warning("%s", error)
            self.known.silent[part] = str(error)
            return last
        self.known.silent.pop(part, None)
        return answer

    def _sampling(self) -> None:
        while not self._over.wait(1.0):
            newest = self.samples[-1].at if self.samples else 0
            if self.site.clock() - newest >= 0.9:
                self.sample()
