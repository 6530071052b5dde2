"""Judges an artifact by its evidence, and keeps both with the release."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from policy.errors import Refused
from policy.gates import Evidence, GateResult, Gates, Status, judge
from policy.release import RolloutRecord
from tasks.evidence import keep, of_what_serves
from tasks.publish import Publisher
from tasks.retrying import when_unreachable
from tasks.site import Site


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def pass_gates(
    site: Site,
    rollout: RolloutRecord,
    gates: Gates,
    evidence: Evidence,
    folder: Path,
    publisher: Publisher,
) -> None:
    """Raises Refused, with the reasons, when a gate that blocks fails."""
    with site.ledger.act(rollout.id, "gate") as said:
        results = judge(gates, replace(evidence, serves=of_what_serves(site, rollout)))
        keep(site, rollout, evidence, results, folder)
        publisher.table("gates", [_row(result) for result in results], "May it be released?")
        for result in results:
            if result.status is Status.FAIL:
                said[result.gate] = f"{'blocks' if result.blocks else 'warns'}: {result.reason}"
        if refused := [result for result in results if result.blocks]:
            words = "\n".join(f"{result.gate}: {result.reason}" for result in refused)
            raise Refused(
                f"not released, {len(refused)} of {len(results)} gates are closed; what served "
                f"still serves. See dafnck gate {site.service} --env {site.environment}\n{words}"
            )


def _row(result: GateResult) -> dict[str, Any]:
    answer = result.status if result.level == "block" else f"{result.status} (warns)"
    return {
        "gate": result.gate,
        "answer": str(answer),
        "measured": result.number,
        "asked": result.limit,
        "why": result.reason,
    }
