"""The gate over the age of the secrets that a release is given."""

from pydantic import Field, model_validator

from policy.evidence import Evidence
from policy.gate_results import GateResult, Status, failed_by
from policy.part import Part
from policy.quantities import LongSeconds
from policy.rotation import DAY


class SecretAgeGate(Part):
    """Of each value that `run.secrets` names, since it was changed."""

    warn: LongSeconds | None = Field(None, gt=0, description="older ones are told: 60d")
    block: LongSeconds | None = Field(None, gt=0, description="older ones stop the release: 90d")

    @model_validator(mode="after")
    def _rises(self) -> "SecretAgeGate":
        if self.warn is None and self.block is None:
            raise ValueError("needs warn or block")
        if self.warn is not None and self.block is not None and self.warn >= self.block:
            raise ValueError("warn: must be shorter than block")
        return self


def judge_secret_age(gate: SecretAgeGate, evidence: Evidence) -> GateResult:
    """A value whose age nobody knows is told and stops nothing: some sources know none."""
    limits = {"warn": gate.warn, "block": gate.block}
    limit = ", ".join(f"{name} after {at / DAY:g} d" for name, at in limits.items() if at)
    ages = evidence.secret_ages
    if not ages:
        why = "it is given none" if ages is not None else "nobody asked for them"
        return GateResult("secret age", Status.NOT_APPLICABLE, "warn", "", limit, why)
    known = sorted(((age, name) for name, age in ages.items() if age is not None), reverse=True)
    unknown = [f"{name}: its age is not known" for name, age in sorted(ages.items()) if age is None]
    number = f"{known[0][0] / DAY:.1f} d" if known else "not known"
    told = [(age, f"{name} is {age / DAY:.1f} days old") for age, name in known]
    if gate.block is not None and (old := [words for age, words in told if age > gate.block]):
        return failed_by("secret age", "block", number, limit, old)
    old = [words for age, words in told if gate.warn is not None and age > gate.warn]
    if old or unknown:
        return failed_by("secret age", "warn", number, limit, old + unknown)
    return GateResult("secret age", Status.PASS, "warn", number, limit, f"{told[0][1]}, the oldest")
