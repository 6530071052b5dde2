"""The values that the ledger keeps: what a release is, how far a rollout got, what was intended.

A release is artifact + configuration + routing under one id and never changes: what it ran with
yesterday is what it runs with when it comes back.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from policy.backup import Backup
from policy.kubernetes import Kubernetes
from policy.pipeline import SmokeTest
from policy.rotation import Rotation
from policy.service_file import PlatformName, Rollout, Route, Run


class Release(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    id: str
    service: str
    environment: str
    version: str
    artifact: str  # digest of what went into it; names its directory
    content: str = ""  # SHA-256 of what came out, as its provenance names it
    platform: PlatformName = "local"
    run: Run
    route: Route
    rollout: Rollout
    smoke: tuple[SmokeTest, ...] = ()
    folder: str = ""  # of its service file, where commands of its judge run
    files: dict[str, bytes] = {}  # configuration: path in the working directory -> content
    created_at: float  # seconds since the epoch
    migration: Literal["expand", "contract"] | None = None
    kubernetes: Kubernetes | None = None
    cluster: str = ""  # identity of the cluster that it was made in
    image: str = ""  # repository@sha256:…, where a cluster pulls it
    workdir: str = "/"  # of the image, from which the paths of `files` go on
    manifests: tuple[dict[str, Any], ...] = ()  # more, applied with it, as the team wrote them
    backup: Backup | None = None
    rotate: dict[str, Rotation] = {}  # secrets that turn over, by name
    renewal_of: str = ""  # the release that it is once more, but for its secrets

    @property
    def origin(self) -> str:
        """The same for a release and all its renewals."""
        return self.renewal_of or self.id

    @property
    def host(self) -> str:
        """Host header of the requests that are meant for it."""
        return self.route.host or f"{self.service}.{self.environment}.localhost"


class Phase(StrEnum):
    """How far a rollout got. The last three are ends."""

    BUILDING = "building"
    STARTING = "starting"
    SHIFTING = "shifting"
    DRAINING = "draining"  # promoted: the new release is stable, the old one is on its way out
    ROLLING_BACK = "rolling back"
    FROZEN = "frozen"  # nothing moves, nobody leads it: a person decides which way it goes on
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"  # ended before the new release had any traffic


FINISHED = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.FAILED})
TERMINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})  # ends of a flow run
UNLED = FINISHED | {Phase.FROZEN}  # no process leads a rollout in these, and none must


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    UNSURE = "unsure"


@dataclass(frozen=True)
class RolloutRecord:
    """One attempt to make `release_id` the stable release, as the ledger holds it."""

    id: int
    service: str
    environment: str
    kind: str  # release | rollback
    version: str
    release_id: str | None  # None until built
    stable_id: str | None  # what served when it began
    strategy: str
    phase: Phase
    reason: str
    flow_run_id: str | None
    started_at: float
    finished_at: float | None
    approved_by: str | None
    approved_at: float | None
    abort_reason: str | None
    freeze_override: str | None = None  # why it was begun in a freeze window
    freeze_override_by: str | None = None
    unsafe_reason: str | None = None  # why it went back past a contract migration
    unsafe_by: str | None = None
    notify: dict[str, Any] | None = None  # who hears of it, as the service file said
    leader: str | None = None  # the process that began it: "pid 812 on web1"
    taken_over: str | None = None  # why somebody else had to end it
    closed_at: float | None = None  # when that was reported and told to Prefect
    left_run: str | None = None  # the flow run that died before this one, still to be told
    change_id: int | None = None  # of which change of several services it is part


@dataclass(frozen=True)
class Intent:
    """A side effect, written down before it is done; `outcome` is None until it is."""

    id: int
    rollout_id: int
    key: str  # the same act on the same thing has the same key
    act: str
    detail: dict[str, Any]
    at: float
    outcome: str | None
    outcome_at: float | None


@dataclass(frozen=True)
class Lease:
    """Two that are equal were not renewed in between, whatever any clock says."""

    service: str
    environment: str
    token: str
    rollout_id: int
    holder: str
    taken_at: float
    expires_at: float
    renewals: int | None
    machine: str | None  # where `pid` means something
    pid: int | None
    pid_started: str | None


@dataclass(frozen=True)
class Endpoints:
    """Where a release listens, as seen just now."""

    release_id: str
    wanted: int
    ready: tuple[str, ...]  # URLs of the replicas that answer their health check
    urls: tuple[str, ...]  # URLs of all replicas, in the order of their numbers
    connections: tuple[int, ...] = ()  # established connections to each of them
    trouble: str = ""  # why replicas are not ready, as far as the platform knows
    health_path: str | None = None
    fatal: bool = False  # the platform gave up on a replica
    restarts: int = 0  # how often replicas ended and were started again
    last_words: str = ""  # the last line in the log of one that ended and was started again
    health_timeout: float = 2.0  # seconds
    host: str = ""  # Host header of the requests that are meant for it
    port: int | None = None  # or the router's port for it alone

    def first(self, replicas: int) -> "Endpoints":
        """As if there were only the first so many."""
        urls = self.urls[:replicas]
        ready = tuple(url for url in self.ready if url in urls)
        return replace(
            self, wanted=len(urls), ready=ready, urls=urls, connections=self.connections[:replicas]
        )


@dataclass(frozen=True)
class MatchRules:
    """Which requests reach `release_id` whatever the shares say, and whether clients stick."""

    preview: dict[str, str]  # header -> value, reaches the release before it has traffic
    release_id: str | None = None
    cohort_header: tuple[str, str] | None = None
    cohort_cookie: tuple[str, str] | None = None
    cohort_on: bool = False  # the cohort goes to the release from the first step on
    sticky: bool = False
