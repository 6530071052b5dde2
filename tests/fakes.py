"""Small real platforms in memory, held to the same contract tests as the true ones."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from blocks.attestations import Attestations
from blocks.builder import Builder
from blocks.checkouts import Checkouts
from blocks.ledger import Ledger
from blocks.object_store import FolderStore
from blocks.platforms import Platform
from blocks.signing import Keys
from blocks.trivy import Trivy
from policy.errors import NotApplied, Refused, Unreachable
from policy.notice import Notice
from policy.provenance import Made, Revision
from policy.release import Endpoints, MatchRules, Phase, Release
from policy.samples import Counters
from policy.service_file import Rollout, Route, Run
from tasks.site import Site


class FakeWorkloads:
    def __init__(self) -> None:
        self.wanted: dict[str, int] = {}
        self.sick: dict[str, str] = {}  # release -> why none of its replicas gets ready
        self.connections: dict[str, int] = {}
        self.removed: list[str] = []

    def start(self, release: Release, replicas: int) -> None:
        self.wanted[release.id] = replicas

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        wanted = self.wanted.get(release_id, 0)
        urls = tuple(f"http://{release_id}:{8000 + n}" for n in range(wanted))
        trouble = self.sick.get(release_id, "")
        open_now = self.connections.get(release_id, 0)
        return Endpoints(
            release_id,
            wanted,
            ready=() if trouble else urls,
            urls=urls,
            connections=tuple(open_now for _ in urls),
            trouble=trouble,
            health_path="/healthz",
            fatal=trouble.startswith("fatal"),
        )

    def stop(self, release_id: str, grace_seconds: float) -> None:
        self.wanted.pop(release_id, None)

    def running(self) -> list[str]:
        return sorted(self.wanted)

    def remove(self, release_id: str) -> None:
        if release_id in self.wanted:
            raise Refused(f"{release_id} still runs")
        self.removed.append(release_id)


class FakeRouter:
    def __init__(self) -> None:
        self.attached: dict[str, Endpoints] = {}
        self.held: dict[str, int] = {}
        self.rules: MatchRules | None = None
        self.down = False
        self.moves: list[dict[str, int]] = []

    def _answer(self) -> None:
        if self.down:
            raise Unreachable("the router does not answer")

    def attach(self, endpoints: Endpoints) -> None:
        self.attached[endpoints.release_id] = endpoints
        self._answer()

    def detach(self, release_id: str) -> None:
        if self.held.get(release_id):
            raise NotApplied(f"{release_id} has traffic")
        self.attached.pop(release_id, None)
        self._answer()

    def shares(self) -> dict[str, int]:
        self._answer()
        return dict.fromkeys(self.attached, 0) | self.held

    def set_shares(self, shares: dict[str, int]) -> None:
        wanted = {release: share for release, share in shares.items() if share}
        if unknown := set(wanted) - set(self.attached):
            raise NotApplied(f"{unknown} not attached")
        self.held = wanted
        self.moves.append(wanted)
        self._answer()

    def match(self, rules: MatchRules | None) -> None:
        self.rules = rules
        self._answer()


class FakeMetrics:
    """Counts that grow by a rate a second of the test's own clock, at the router's shares."""

    def __init__(self, router: FakeRouter, clock: Callable[[], float], rate: float = 100) -> None:
        self._router, self._clock, self._rate = router, clock, rate
        self._at = clock()
        self._totals: dict[str, Counters] = {}
        self.error_rates: dict[str, float] = {}
        self.down = False

    def read(self) -> dict[str, Counters]:
        if self.down:
            raise Unreachable("the metrics source does not answer")
        now = self._clock()
        for release, share in self._router.held.items():
            requests = (now - self._at) * self._rate * share / 100
            errors = requests * self.error_rates.get(release, 0)
            added = Counters(requests, errors, {0.1: requests, float("inf"): requests})
            self._totals[release] = self._totals.get(release, Counters()).plus(added)
        self._at = now
        return dict(self._totals)


class FakeNotifier:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Notice]] = []
        self.recorded: list[Notice] = []
        self.down = False

    def send(self, to: str, notices: Sequence[Notice]) -> None:
        if self.down:
            raise NotApplied(f"{to} did not take it")
        self.sent += [(to, notice) for notice in notices]

    def record(self, notice: Notice) -> None:
        self.recorded.append(notice)


class Clock:
    """Time that a test moves; every reading costs a moment."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        self.at += 0.001
        return self.at

    monotonic = __call__

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def a_release(number: int = 0, **changes: object) -> Release:
    release = Release(
        id=f"shop-prod-{number}",
        service="shop",
        environment="prod",
        version=f"1.{number}",
        artifact="abc",
        run=Run(
            command="serve {port}", health="/healthz", replicas=2, drain=0.2, grace=0.2, start=1
        ),  # type: ignore[arg-type]
        route=Route(),
        rollout=Rollout(),
        created_at=1_800_000_000.0,
    )
    return release.model_copy(update=changes)


def an_artifact(folder: Path, name: str = "abc") -> Attestations:
    """Have the artifact of `a_release` lie there, built and signed. -> what was said of it"""
    keys = Keys(folder / "secrets", folder / "keys")
    if not keys.there():
        keys.make()
    artifact = folder / "artifacts" / name
    if not artifact.exists():
        (artifact / "app").mkdir(parents=True)
        (artifact / "app" / "shop.py").write_text("print('shop')\n")
        made = Made(name, {"command": "make"}, Revision(), 1.0, 2.0, "test")
        Attestations(folder / "artifacts", keys).attest(artifact, made, sbom=None)
    return Attestations(folder / "artifacts", keys)


def _nowhere(release: Release) -> str:
    return "http://127.0.0.1:1"


def a_site(
    folder: Path,
    clock: Callable[[], float] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Site:
    clock = clock or Clock()
    router = FakeRouter()
    platform = Platform(FakeWorkloads(), router, FakeMetrics(router, clock), _nowhere, _nowhere)
    attestations = an_artifact(folder)
    return Site(
        "shop",
        "prod",
        ledger=Ledger(str(folder / "ledger.db"), clock, monotonic, sleep),
        platform=platform,
        builder=Builder(folder / "artifacts"),
        checkouts=Checkouts(folder / "checkouts"),
        attestations=attestations,
        store=FolderStore(folder / "store"),
        reports=folder / "reports",
        evidence=folder / "evidence",
        trivy=Trivy(folder / "trivy"),
        notifier=FakeNotifier(),
        clock=clock,
    )


def serving(site: Site, release: Release | None = None) -> Release:
    """Have a release serve with 100%, as after a promotion. -> it, with its id."""
    ledger, platform = site.ledger, site.platform
    token = ledger.take_lease(site.service, site.environment, "test")
    rollout = ledger.open_rollout(
        site.service,
        site.environment,
        token=token,
        kind="release",
        version="1",
        strategy="blue-green",
    )
    release = ledger.add_release(release or a_release(), rollout.id)
    platform.workloads.start(release, release.run.replicas)
    platform.router.attach(platform.workloads.endpoints(release.id))
    platform.router.set_shares({release.id: 100})
    ledger.promote(rollout.id, "test")
    ledger.set_phase(rollout.id, Phase.PROMOTED)
    ledger.free_lease(token)
    return release
