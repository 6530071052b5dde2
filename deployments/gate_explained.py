"""`dafnck gate --explain`: each gate with its number, its limit, its reason, and what to do."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from policy.evidence import Evidence
from policy.findings import Waived
from policy.gate_advice import advice
from policy.gate_results import GateResult
from policy.priority import by_priority, in_short

if TYPE_CHECKING:
    from tasks.evidence import Kept


def explained(kept: "Kept", environment: str) -> Iterator[str]:
    for result in kept.gates:
        yield ""
        yield from _gate(result, kept.evidence.waived, environment, kept.folder)
    yield ""
    yield from _known_by(kept.evidence)
    against = {words for result in kept.gates for words in result.against}
    others = [in_short(f) for f in by_priority(kept.evidence.waived.open)]
    if others := [words for words in others if words not in against]:
        yield "found, and against no gate:"
        yield from (f"  {words}" for words in others)


def _gate(result: GateResult, waived: Waived, environment: str, folder: str) -> Iterator[str]:
    what = advice(result, waived)
    closed = "closed" if result.blocks else "open"
    yield f"{result.gate}: {result.status}, {closed}"
    yield f"  measured  {result.number or 'nothing'}"
    yield f"  asked     {result.limit}"
    yield f"  why       {result.reason}"
    for place, words in enumerate(result.against, 1):
        yield f"  {f'against {place}':9} {words}"
    if what.file:
        yield f"  details   {folder}/{what.file}"
    yield f"  set by    {what.key}; for {environment} alone environments.{environment}.{what.key}"
    if what.next:
        yield f"  next      {what.next}"


def _known_by(evidence: Evidence) -> Iterator[str]:
    """Of when that is by which findings are known."""
    for scan in evidence.scans or ():
        of = f", database of {_day(scan.database_at)}" if scan.database_at else ""
        yield f"{scan}{of}"
    if evidence.scans:
        for one in evidence.snapshots:
            yield f"{one.name} of {_day(one.at)}" if one.at else f"{one.name}: {one.unusable}"


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
