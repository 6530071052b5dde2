"""Judges an artifact by its evidence, and keeps both with the release."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from policy.errors import Refused, Unreachable
from policy.evidence import Evidence
from policy.gate_results import GateResult, Status
from policy.gates import Gates, judge
from policy.release import RolloutRecord
from tasks.evidence import keep, of_what_serves
from tasks.publish import Publisher
from tasks.retrying import when_unreachable
from tasks.site import Site

log = logging.getLogger("dafnck")


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=1, retry_condition_fn=when_unreachable)
def pass_gates(
    site: Site,
    rollout: RolloutRecord | None,
    gates: Gates,
    evidence: Evidence,
    folder: Path,
    publisher: Publisher,
) -> None:
    """Raises Refused, with the reasons, when a gate that blocks fails."""
    with site.act(rollout.id if rollout else None, "gate") as said:
        results = judge(gates, replace(evidence, serves=of_what_serves(site, rollout)))
        keep(site, rollout, evidence, results, folder)
        publisher.table("gates", [_row(result) for result in results], "May it be released?")
        for result in results:
            if result.status is Status.FAIL:
                said[result.gate] = f"{'blocks' if result.blocks else 'warns'}: {result.reason}"
        refused = [result for result in results if result.blocks]
        closed = ", ".join(result.gate for result in refused)
        tell_step(site, rollout, "Gate", f"closed: {closed}" if closed else "nothing is in the way")
        if refused:
            words = "; ".join(f"{result.gate}: {result.reason}" for result in refused)
            see = f"dafnck gate {site.service} --env {site.environment}" if rollout else folder
            raise Refused(
                f"{len(refused)} of {len(results)} gates are closed: {words}; nothing was started, "
                f"what served serves. See {see}"
            )


def tell_step(site: Site, rollout: RolloutRecord | None, step: str, words: str) -> None:
    """Into the story of the rollout, which people follow; it is no part of the evidence."""
    log.info("%s: %s", step, words)
    if rollout is None:
        return
    try:
        site.ledger.decide(rollout.id, step, 0, None, words)
    except Unreachable as error:
        log.warning("a step could not be written to the ledger: %s", error)


def _row(result: GateResult) -> dict[str, Any]:
    answer = result.status if result.level == "block" else f"{result.status} (warns)"
    return {
        "gate": result.gate,
        "answer": str(answer),
        "measured": result.number,
        "asked": result.limit,
        "why": result.reason,
    }
