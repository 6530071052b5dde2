"""Looks at the world once a second during a rollout and keeps what it saw.

A part that does not answer is no verdict about the release: the last known value stays, and the
reason is told.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blocks.custom_metrics import ask
from blocks.synthetic import SyntheticRequests
from policy.canary import NOTHING_LEARNED, CanaryJudge, judge_of, learned_from
from policy.errors import NotAllowed, NotApplied, Unreachable
from policy.judge import CustomMetric, read_requests
from policy.release import Endpoints, Release, RolloutRecord, Verdict
from policy.rollout import Action, Seen
from policy.routing import routing_doubt
from policy.samples import Counters, Judgement, Sample
from tasks.put_back import peak_share
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
        self,
        site: Site,
        rollout: RolloutRecord,
        new: Release,
        still_ours: Callable[[], None],
    ) -> None:
        """`still_ours` raises when another process took the rollout over."""
        self.site, self.rollout, self.new = site, rollout, new
        self._still_ours = still_ours
        self._misses = 0
        self._unseen: list[Sample] = []  # by the judge
        self._newest_at = 0.0
        self._arrived = [0.0, 0.0]  # requests since the shift, to the new release and to stable
        self.shifted_at = site.clock()
        self.judgement: Judgement | None = None
        self._judge = self._the_judge()
        self._values: dict[str, float | None] = {}  # custom metrics that no sample has taken yet
        self._folder = Path(new.folder)
        self._synthetic: SyntheticRequests | None = None
        self._open = ExitStack()
        self.known = Known()
        self.peak = peak_share(site, rollout)
        self.interrupted = threading.Event()  # set: look again now
        self.cancelled: str | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sampling, name="samples", daemon=True)

    def __enter__(self) -> "Eyes":
        self._thread.start()
        policy = self.new.rollout.judge
        for metric in policy.metrics if policy else ():
            asking = threading.Thread(
                target=self._asking, args=(metric,), name=metric.name, daemon=True
            )
            asking.start()
        if policy and policy.synthetic:
            wanted = policy.synthetic
            self._synthetic = SyntheticRequests(
                self.site.platform.url_of(self.new),
                self.new.host,
                read_requests((self._folder / wanted.file).read_text()),
                per_second=wanted.per_second,
                below=wanted.below,
                seen=self._counted,
            )
            self._open.enter_context(self._synthetic)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._open.close()
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
        self.peak = max(self.peak, share)
        self.judgement = self._judgement(share)
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
            early=self.judgement.early if self.judgement else False,
            approved_at=record.approved_at,
            abort_reason=self.cancelled or record.abort_reason,
            trouble=self._trouble(),
            peak=self.peak,
            unsafe=record.unsafe_reason is not None,
        )

    def tell(self, action: Action) -> None:
        """Write a decision down, with what it was decided from."""
        verdict = self.judgement.verdict.value if self.judgement else None
        share = self.known.shares.get(self.new.id, 0)
        name = type(action).__name__
        log.info("%d%% %s: %s", share, name, action)
        try:
            self.site.ledger.decide(self.rollout.id, name, share, verdict, str(action))
        except Unreachable as error:  # what it leads to is written down before it is done, or not
            log.warning("a decision could not be written to the ledger: %s", error)

    def shifted(self) -> None:
        """The router took a new share: what came in before does not count for it."""
        self.sample()
        self.shifted_at = self.site.clock()
        if self._judge is not None:
            self._feed()
            self._judge.shifted(self.shifted_at)
            self._arrived = [0.0, 0.0]

    def sample(self) -> None:
        """Read shares and counters once and keep what was added since the last time."""
        with self._lock:
            known, now = self.known, self.site.clock()
            known.shares = self._ask("router", self.site.platform.router.shares, known.shares)
            before = known.counters
            counters = self._ask("metrics", self.site.platform.metrics.read, None)
            if counters is None:
                sample = Sample(now, None, None, known.shares.get(self.new.id, 0), self._taken())
            else:
                known.counters = counters
                sample = Sample(
                    now,
                    self._added(self.new.id, before, counters),
                    self._added(self.rollout.stable_id, before, counters),
                    known.shares.get(self.new.id, 0),
                    self._taken(),
                )
            self._unseen.append(sample)
            self._newest_at = now
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

    def _the_judge(self) -> CanaryJudge | None:
        policy = self.new.rollout.judge
        if policy is None:
            return None
        first = self.rollout.stable_id in (None, self.new.id)
        learned = NOTHING_LEARNED
        if policy.method == "sequential" and not first:
            past = self.site.ledger.past_samples(self.site.service, self.site.environment)
            learned = learned_from(past)
        return judge_of(policy, at=self.site.clock(), first=first, learned=learned)

    def _feed(self) -> None:
        assert self._judge is not None
        with self._lock:
            unseen, self._unseen = self._unseen, []
        for sample in unseen:
            self._judge.add(sample)
            if sample.at > self._settled_at() and sample.new and sample.stable:
                self._arrived[0] += sample.new.requests
                self._arrived[1] += sample.stable.requests

    def _settled_at(self) -> float:
        """From when on requests were routed by the present share: what is scraped tells of the time
        before, too."""
        behind = getattr(self.site.platform.metrics, "behind_seconds", 0.0)
        return self.shifted_at + SETTLE_SECONDS + behind

    def _judgement(self, share: int) -> Judgement | None:
        if self._judge is None:
            return None
        self._feed()
        if share == 0:
            return None
        judgement = self._judge.judgement(self.site.clock())
        if self._synthetic is not None and self._synthetic.sent:
            words = f"{judgement.reason} ({self._synthetic.sent} requests were synthetic)"
            judgement = replace(judgement, reason=words)
        doubt = self._routing_doubt(share)
        if doubt and judgement.verdict is not Verdict.FAIL:
            return Judgement(Verdict.UNSURE, doubt, judgement.measurements)
        return judgement

    def _trouble(self) -> str:
        new = self.known.new
        if new is None:
            return self.known.silent.get("workloads", "")
        words = new.last_words and f"the last words of one: {new.last_words}"
        return "; ".join(part for part in (new.trouble, words) if part)

    def _routing_doubt(self, share: int) -> str | None:
        rollout = self.new.rollout
        if rollout.cohort or rollout.sticky:
            return None  # these move requests past the shares on purpose
        new, stable = self._arrived
        return routing_doubt(new, stable, share)

    def _ask(self, part: str, question: Any, last: Any) -> Any:
        try:
            answer = question()
        except (Unreachable, NotAllowed, NotApplied) as error:
            if part not in self.known.silent:
                log.warning("%s", error)
            self.known.silent[part] = str(error)
            return last
        self.known.silent.pop(part, None)
        return answer

    def _sampling(self) -> None:
        while not self._over.wait(1.0):
            if abs(self.site.clock() - self._newest_at) >= 0.9:  # clocks are also set back
                self.sample()

    def _asking(self, metric: CustomMetric) -> None:
        """Ask for one number of the team's own, again and again."""
        while not self._over.wait(metric.interval):
            value: float | None = None
            try:
                value = ask(
                    metric,
                    release=self.new.id,
                    stable=self.rollout.stable_id,
                    url=self.site.platform.url_of(self.new),
                    folder=self._folder,
                )
            except (Unreachable, NotAllowed, NotApplied) as error:
                log.warning("%s", error)
            if self.known.shares.get(self.new.id, 0):  # before it has traffic it says nothing
                with self._lock:
                    self._values[metric.name] = value

    def _taken(self) -> dict[str, float | None]:
        taken, self._values = self._values, {}
        return taken

    def _counted(self) -> float:
        """Requests that the router has counted for both releases so far."""
        counters = self.known.counters or {}
        of = (self.new.id, self.rollout.stable_id or "")
        return sum(counters[release].requests for release in of if release in counters)
