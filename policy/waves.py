"""What to do next in a change of several services, decided from what is seen alone.

`next_change_action` has no memory: interrupted anywhere and asked again, it goes on. Invariants:
- a service begins when all that it comes after has been promoted and still serves, not before;
- once anything is held against the change nothing more begins;
- a service is taken back only when none that needs it still has its new release: the reverse of
  the order in which they came;
- where one cannot be taken back, what it needs stays with it, and a person is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from policy.change import ChangeVerdict

ATTEMPTS = 3  # to take a service back


class Standing(StrEnum):
    """How far one service of the change got."""

    WAITING = "waiting"
    UNDER_WAY = "under way"  # its release was asked for and has not ended
    PROMOTED = "promoted"  # its new release serves
    UNDONE = "not promoted"  # its release has ended, and what served before serves
    FROZEN = "frozen"  # its release waits for a person, past its contract migration
    GOING_BACK = "going back"
    BACK = "taken back"
    KEPT = "kept"  # its new release serves and is not taken back


@dataclass(frozen=True)
class Seen:
    """One look at one service of the change."""

    standing: Standing
    why: str = ""
    promoted_at: float = 0.0  # seconds since the epoch
    first: bool = False  # nothing served before it
    one_way: bool = False  # it brought a contract migration
    superseded: str = ""  # what serves instead by now, by somebody else
    overdue: str = ""  # why it counts as lost, though it is under way
    abortable: bool = False  # under way, and may still go back
    aborted: bool = False  # that was asked for
    failed_attempts: int = 0  # to take it back


@dataclass(frozen=True)
class ChangePlan:
    after: Mapping[str, tuple[str, ...]]  # service -> what it comes after, in the file's order
    at_once: int

    def needed_by(self, service: str) -> set[str]:
        """All that it comes after, directly or not."""
        found: set[str] = set()
        todo = [*self.after[service]]
        while todo:
            if (name := todo.pop()) not in found:
                found.add(name)
                todo += self.after[name]
        return found


@dataclass(frozen=True)
class Begin:
    """Release this service."""

    service: str


@dataclass(frozen=True)
class Abort:
    """End the rollout of these services: their traffic goes back."""

    services: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class TakeBack:
    """Have this service serve what it served before."""

    service: str
    reason: str


@dataclass(frozen=True)
class Keep:
    """Leave this service at its new release, and why, though the change goes back."""

    service: str
    why: str
    reason: str


@dataclass(frozen=True)
class Wait:
    pass


@dataclass(frozen=True)
class Close:
    """It is over."""

    verdict: ChangeVerdict
    reason: str


ChangeAction = Begin | Abort | TakeBack | Keep | Wait | Close


def next_change_action(
    plan: ChangePlan, seen: Mapping[str, Seen], trouble: str = ""
) -> ChangeAction:
    """`trouble`: why it must not be carried through, besides what its services show."""
    held_against = _held_against(seen)
    if not held_against and all(one.standing is Standing.PROMOTED for one in seen.values()):
        number = "it serves" if len(seen) == 1 else f"all {len(seen)} serve"
        return Close(ChangeVerdict.PROMOTED, number)
    if not trouble and not held_against:
        return _forward(plan, seen)
    reason = trouble or held_against
    abortable = (s for s, one in seen.items() if one.abortable and not one.aborted)
    if names := tuple(abortable):
        return Abort(names, reason)
    if _any(seen, Standing.UNDER_WAY, Standing.GOING_BACK):
        return Wait()
    promoted = [s for s, one in seen.items() if one.standing is Standing.PROMOTED]
    if promoted:
        return _back(plan, seen, promoted, reason)
    if any(_stays_new(one) for one in seen.values()):
        return Close(ChangeVerdict.INCONSISTENT, reason)
    return Close(ChangeVerdict.ROLLED_BACK, reason)


def _forward(plan: ChangePlan, seen: Mapping[str, Seen]) -> ChangeAction:
    under_way = sum(one.standing is Standing.UNDER_WAY for one in seen.values())
    for service, after in plan.after.items():
        ready = all(seen[name].standing is Standing.PROMOTED for name in after)
        if seen[service].standing is Standing.WAITING and ready and under_way < plan.at_once:
            return Begin(service)
    return Wait()


def _held_against(seen: Mapping[str, Seen]) -> str:
    """What the services themselves show."""
    fine = (Standing.WAITING, Standing.UNDER_WAY, Standing.PROMOTED)
    for service, one in seen.items():
        if one.standing is Standing.PROMOTED and one.superseded:
            return f"{service}: {one.superseded} serves instead"
        if one.overdue:
            return f"{service} {one.overdue}"
        if one.standing not in fine:
            return f"{service} is {one.standing}" + (f": {one.why}" if one.why else "")
    return ""


def _back(
    plan: ChangePlan, seen: Mapping[str, Seen], promoted: Sequence[str], reason: str
) -> ChangeAction:
    needed = {name for service in promoted for name in plan.needed_by(service)}
    free = [service for service in promoted if service not in needed]
    last = max(free, key=lambda service: seen[service].promoted_at)
    if why := _stays(plan, seen, last):
        return Keep(last, why, reason)
    return TakeBack(last, reason)


def _stays(plan: ChangePlan, seen: Mapping[str, Seen], service: str) -> str:
    """Why it is not taken back; '' when it is."""
    one = seen[service]
    if one.first:
        return "its first release: there is nothing to go back to"
    if one.superseded:
        return f"{one.superseded} serves instead by now"
    if one.one_way:
        return "its contract migration lets nobody go back by themselves"
    for other, it in seen.items():
        stays = it.standing in (Standing.FROZEN, Standing.KEPT)
        if stays and service in plan.needed_by(other):
            return f"{other}, which needs it, is {it.standing}"
    if one.failed_attempts >= ATTEMPTS:
        return f"it could not be taken back ({ATTEMPTS} attempts): {one.why}"
    return ""


def _stays_new(one: Seen) -> bool:
    """Does its new release have requests of people whom an old one served before?"""
    return one.standing is Standing.FROZEN or (one.standing is Standing.KEPT and not one.first)


def _any(seen: Mapping[str, Seen], *standings: Standing) -> bool:
    return any(one.standing in standings for one in seen.values())


def waves(after: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The services by how many steps must come before them. Raises ValueError for a circle, which
    it names, and for a service that is not there."""
    for service, needed in after.items():
        for name in needed:
            if name not in after:
                raise ValueError(f"{service}: there is no service {name}")
    left, found = dict(after), list[list[str]]()
    while left:
        ready = [service for service, needed in left.items() if not any(n in left for n in needed)]
        if not ready:
            raise ValueError(" → ".join(_circle(left)))
        found.append(ready)
        for service in ready:
            del left[service]
    return found


def _circle(left: Mapping[str, Sequence[str]]) -> list[str]:
    path = [next(iter(left))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in left[path[-1]] if name in left))
    return path[path.index(path[-1]) :]
