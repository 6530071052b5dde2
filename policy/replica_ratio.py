"""Which shares of requests a Service alone can give: it splits by ready replicas.

Invariant: no step gives the new release more requests than was asked for, but the least that one
replica gets; and never more replicas than the release has.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    share: int  # of the requests, in percent, that reach the new release
    new: int  # replicas of the new release that give this share


def share_of(new: int, stable: int) -> int:
    """Percent of the requests that `new` replicas get beside `stable` others."""
    if not new or not stable:
        return 100 if new else 0
    return min(99, max(1, round(100 * new / (new + stable))))


def attainable(shares: Sequence[int], replicas: int, stable: int) -> list[Ratio]:
    """The steps nearest to the wanted ones. `replicas`: of the new release, when it has all
    requests; `stable`: of the old one, which stay. Steps that come out alike are one."""
    steps: list[Ratio] = []
    for wanted in shares:
        if wanted >= 100 or not stable:
            continue
        # new / (new + stable) <= wanted / 100, solved for `new`.
        new = max(1, min(replicas, wanted * stable // (100 - wanted)))
        share = share_of(new, stable)
        if not steps or share > steps[-1].share:
            steps.append(Ratio(share, new))
    return [*steps, Ratio(100, replicas)]


def granularity(replicas: int, stable: int) -> str:
    """For people: what they can have without a gateway."""
    least, most = share_of(1, stable), share_of(replicas, stable)
    others = "1 stable replica" if stable == 1 else f"{stable} stable replicas"
    then = "the next step is 100%" if most == least else f"then up to {most}%, then 100%"
    return (
        f"a Service alone splits by replicas: beside {others}, {least}% is the least, {then}; "
        "a gateway (kubernetes.gateway) gives any share"
    )


def far_off(shares: dict[str, int], ready: dict[str, int], *, tolerance: int = 2) -> str | None:
    """How the split by ready replicas differs from the wanted shares; None when it does not.
    `tolerance`: percent."""
    total = sum(ready.values())
    got = {release: 100 * count / total for release, count in ready.items()} if total else {}
    if all(abs(got.get(release, 0) - share) <= tolerance for release, share in shares.items()):
        return None
    said = ", ".join(
        f"{release} {share}% was asked, {got.get(release, 0):.0f}% is given"
        for release, share in shares.items()
    )
    return f"a Service alone splits by ready replicas: {said}"
