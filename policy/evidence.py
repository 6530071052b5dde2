"""What is known of an artifact before it is released: what its tests and its scanners said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policy.findings import Scan, Waived
from policy.priority import Snapshot


@dataclass(frozen=True)
class SuiteResult:
    """What one suite of tests ended in."""

    name: str
    ran: int
    failed: tuple[str, ...] = ()  # names of the tests
    skipped: int = 0
    flaky: tuple[str, ...] = ()  # failed first and passed when run again
    broken: str = ""  # why it has no result at all: timed out, no report, crashed
    coverage: float | None = None  # percent of the lines
    benchmarks: Mapping[str, Sequence[float]] = field(default_factory=dict)  # seconds of each round
    before: str = ""  # where this artifact passed it, when it was not run again

    @property
    def passed(self) -> bool:
        """Without any doubt: nothing failed, broke or had to be tried twice."""
        return self.ran > 0 and not (self.failed or self.broken or self.flaky)

    def __str__(self) -> str:
        if self.broken:
            return f"{self.name}: {self.broken.splitlines()[0]}"
        flaky = f", {len(self.flaky)} flaky" if self.flaky else ""
        before = f", as in {self.before}" if self.before else ""
        return f"{self.name}: {self.ran} ran, {len(self.failed)} failed{flaky}{before}"


@dataclass(frozen=True)
class Evidence:
    """Of the new artifact, and of the one that serves."""

    suites: tuple[SuiteResult, ...] | None = None  # None: the file names none
    scans: tuple[Scan, ...] | None = None
    waived: Waived = field(default_factory=lambda: Waived(()))
    size_bytes: int | None = None
    serves: "Evidence | None" = None
    snapshots: tuple[Snapshot, ...] = ()  # of EPSS and KEV, by which findings were ordered
    # Of each secret that the release is given: seconds since its value changed; None: not known.
    secret_ages: Mapping[str, float | None] | None = None

    @property
    def coverage(self) -> float | None:
        known = [s.coverage for s in self.suites or () if s.coverage is not None]
        return max(known) if known else None

    @property
    def benchmarks(self) -> dict[str, Sequence[float]]:
        return {name: rounds for s in self.suites or () for name, rounds in s.benchmarks.items()}
