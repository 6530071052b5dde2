"""The gate over the size of an artifact."""

from pydantic import Field, model_validator

from policy.evidence import Evidence
from policy.gate_results import Gate, GateResult, Status, measured
from policy.quantities import Bytes, Percentage


class SizeGate(Gate):
    """Of all files of the artifact."""

    at_most: Bytes | None = Field(None, description="of the artifact")
    growth_at_most: Percentage | None = Field(None, description="over the release that serves")

    @model_validator(mode="after")
    def _asks_something(self) -> "SizeGate":
        if self.at_most is None and self.growth_at_most is None:
            raise ValueError("needs at_most or growth_at_most")
        return self


def judge_size(gate: SizeGate, evidence: Evidence) -> list[GateResult]:
    results, has = [], evidence.size_bytes
    mib = None if has is None else has / 2**20
    if gate.at_most is not None:
        limit = f"at most {gate.at_most / 2**20:g} MiB"
        kept = has is not None and has <= gate.at_most
        results.append(
            measured("size", gate.level, mib, limit, " MiB", kept, "the artifact's size is unknown")
        )
    if gate.growth_at_most is not None:
        limit = f"at most {gate.growth_at_most:g}% more than what serves"
        had = evidence.serves.size_bytes if evidence.serves else None
        if not had:
            why = "of what serves no size is known"
            results.append(GateResult("growth", Status.NOT_APPLICABLE, gate.level, "", limit, why))
        else:
            growth = None if has is None else (has / had - 1) * 100
            kept = growth is not None and growth <= gate.growth_at_most
            results.append(
                measured("growth", gate.level, growth, limit, "%", kept, "its size is unknown")
            )
    return results
