"""What a restore drill looked at, and whether it proves the backup."""

from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from policy.backup import Target
from policy.backup_manifest import Manifest
from policy.quantities import in_words
from policy.release import Verdict

TREND_OF = 3  # earlier backups that a trend needs at least
TREND_LAST = 7  # and at most


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One question and its answer. UNSURE fails nothing, and proves nothing."""

    name: str  # "content", "recovery point objective", "expectations", …
    verdict: Verdict
    reason: str


class Drill(_Frozen):
    """The evidence of one drill; signed, beside the backup."""

    backup_id: str
    service: str
    environment: str
    target: str
    at: float  # seconds since the epoch
    verdict: Verdict
    checks: tuple[Check, ...]
    rpo_seconds: float | None  # what would be lost if the disaster were now
    rto_seconds: float | None  # from the first byte read to the last check of content
    durations: dict[str, float] = {}  # step -> seconds
    restored_bytes: int = 0
    host: str = ""

    @property
    def reasons(self) -> list[str]:
        return [f"{one.name}: {one.reason}" for one in self.checks if one.verdict is Verdict.FAIL]

    @property
    def blames_the_backup(self) -> bool:
        """Whether it says something of this backup, not of how old or how slow all is."""
        return any(c.verdict is Verdict.FAIL and c.name not in OBJECTIVES for c in self.checks)


RPO, RTO = "recovery point objective", "recovery time objective"
OBJECTIVES = (RPO, RTO)


def verdict(checks: Sequence[Check]) -> Verdict:
    """FAIL when one fails; PASS when the content was compared and all that was asked is true."""
    if any(check.verdict is Verdict.FAIL for check in checks):
        return Verdict.FAIL
    if any(check.name == "content" and check.verdict is Verdict.PASS for check in checks):
        return Verdict.PASS
    return Verdict.UNSURE


def recovery_point(newest_at: float, now: float, target: Target) -> Check:
    """`newest_at`: up to when the newest good backup, with its log, goes. Seconds since the
    epoch."""
    age = now - newest_at
    words = f"the newest is {in_words(max(0.0, age))} old, asked for: {in_words(target.rpo)}"
    return Check(name=RPO, verdict=Verdict.FAIL if age > target.rpo else Verdict.PASS, reason=words)


def recovery_time(seconds: float, target: Target) -> Check:
    words = f"took {in_words(seconds)}, asked for: {in_words(target.rto)}"
    late = seconds > target.rto
    return Check(name=RTO, verdict=Verdict.FAIL if late else Verdict.PASS, reason=words)


def trend(manifest: Manifest, earlier: Sequence[Manifest], smaller_by: float) -> Check:
    """Is it suspiciously smaller than the last ones? `earlier`: newest first."""
    name, before = "size", [one.plain_bytes for one in earlier[:TREND_LAST]]
    if len(before) < TREND_OF:
        words = f"{len(before)} earlier ones are too few to compare with"
        return Check(name=name, verdict=Verdict.UNSURE, reason=words)
    usual = median(before)
    share = 1 - manifest.plain_bytes / usual if usual else 0.0
    words = f"{manifest.plain_bytes:,} bytes; median of the last {len(before)}: {usual:,.0f}"
    if share > smaller_by:
        words = f"{share:.0%} smaller than usual: {words}"
        return Check(name=name, verdict=Verdict.FAIL, reason=words)
    return Check(name=name, verdict=Verdict.PASS, reason=words)
