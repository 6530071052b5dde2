"""Turns one secret over, step by step; whoever comes after a crash goes on from what is true."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.ledger import Ledger
from blocks.pg_logins import PostgresLoginPair
from blocks.ports import Rotator
from blocks.release_secrets import ReleaseSecrets
from blocks.secret_files import SecretFiles
from blocks.secret_sources import SecretSources
from blocks.stack import Stack
from policy.errors import DafnckError, NotApplied, Refused
from policy.rotation import (
    Create,
    Disable,
    Done,
    Renew,
    Rotation,
    Seen,
    SetTestFinish,
    Step,
    WaitFor,
    next_step,
)
from policy.secrets import Version, read_reference

log = logging.getLogger("dafnck")


class Rotating:
    """One secret of the stack, and whoever runs with it. `rotator`: other than the rotation says,
    for tests. `by`: who asks, for the record. No dataclass: Prefect would copy it, and its values
    with it."""

    def __init__(
        self,
        stack: Stack,
        ledger: Ledger,
        name: str,
        rotation: Rotation,
        *,
        rotator: Rotator | None = None,
        by: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.rotation, self.clock = name, rotation, clock
        self.files = SecretFiles(stack, clock)
        self._stack, self._ledger = stack, ledger
        self._sources, self._rotator, self._by = SecretSources(stack), rotator, by

    def __str__(self) -> str:
        return self.name

    def rotator(self) -> Rotator:
        if self._rotator is None:
            wanted = self.rotation.postgres
            _, admin = self._sources.read(read_reference(wanted.admin))
            self._rotator = PostgresLoginPair(wanted, admin, lambda: dict(self._others()))
        return self._rotator

    def _others(self) -> Iterator[tuple[str, str]]:
        mine = (f"secret://{self.name}", self.rotation.postgres.admin)
        for name in self.files.names():
            if f"secret://{name}" not in mine:
                with suppress(DafnckError):  # what cannot be read is used by nobody
                    yield name, self.files.read(name)[1]

    def seen(self, asked_for: bool) -> Seen:
        versions = self.files.versions(self.name)
        users = users_of(self._stack, self._ledger, self.name)
        behind = [one for one, held in users.items() if held != [str(versions.current)]]
        return Seen(self.clock(), versions, tuple(sorted(behind)), asked_for)

    def record(self, what: str, number: int, **detail: str) -> None:
        """In the audit."""
        self._ledger.record(self._by, what, f"secret {self.name}", version=number, **detail)

    def on_their_way(self, version: Version) -> list[str]:
        """Releases that were given this version and may serve with it soon, in words."""
        rollouts = [*self._ledger.unfinished(), *self._ledger.frozen()]
        ids = {
            one for rollout in rollouts for one in (rollout.release_id, rollout.stable_id) if one
        }
        held = {one: versions_held(self._stack, one, self.name) for one in sorted(ids)}
        return [
            f"{one}, whose rollout is not over"
            for one, numbers in held.items()
            if str(version.number) in numbers
        ]


def users_of(stack: Stack, ledger: Ledger, name: str) -> dict[str, list[str]]:
    """Release that serves -> the versions of this secret that it runs with, sorted."""
    stables = [release_id for _, _, release_id, _ in ledger.stables()]
    held = {one: versions_held(stack, one, name) for one in stables}
    return {one: numbers for one, numbers in held.items() if numbers}


def versions_held(stack: Stack, release_id: str, name: str) -> list[str]:
    """Which versions of this secret a release runs with, or would when it is started again."""
    held = ReleaseSecrets(stack).versions(release_id).values()
    return sorted({one["version"] for one in held if one["reference"] == f"secret://{name}"})


def turn_over(
    rotating: Rotating,
    renew: Callable[[str], str],
    *,
    asked_for: bool = False,
    patience_seconds: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """As far as it goes now: a grace time that is longer than the patience is for the next run.
    `renew`: rolls what serves as this release; -> why that must wait, or nothing. -> what was
    closed and what is true in the end, in words. Raises what its steps raise, and Refused while
    somebody still uses what would be closed."""
    with rotating.files.alone(rotating.name) as free:
        if not free:
            return "another process turns it over now"
        return _turn_over(rotating, renew, asked_for, patience_seconds, sleep)


def _turn_over(
    rotating: Rotating,
    renew: Callable[[str], str],
    asked_for: bool,
    patience_seconds: float,
    sleep: Callable[[float], None],
) -> str:
    closed = ""
    while True:
        seen = rotating.seen(asked_for)
        if seen.versions.superseded and not seen.behind and seen.versions.moved_at is None:
            rotating.files.moved(rotating.name, rotating.clock())
            continue
        step = next_step(rotating.rotation, seen)
        log.info("%s: %s", rotating, step)
        if isinstance(step, Done):
            return closed + step.why
        if isinstance(step, WaitFor):
            if step.seconds > patience_seconds:
                return f"{closed}{step}; the next run closes it"
            sleep(step.seconds)
            continue
        if isinstance(step, Create):
            asked_for = False
        if isinstance(step, Renew):
            rotating.files.moved(rotating.name, None)
            if later := renew_all(step.releases, renew):
                return closed + later
            if still := set(step.releases) & set(rotating.seen(asked_for).behind):
                raise NotApplied(f"{', '.join(sorted(still))} still serves with an older value")
        elif said := carry_out_step(rotating, step):
            closed += f"{said}; "


def renew_all(releases: Sequence[str], renew: Callable[[str], str]) -> str:
    """Each has its turn. -> why some must wait; empty when none must. Raises NotApplied, with all
    that failed."""
    later, failed = [], []
    for release_id in releases:
        try:
            if why := renew(release_id):
                later.append(why)
        except DafnckError as error:
            failed.append(str(error))
    if failed:
        raise NotApplied("; ".join(failed))
    return "; ".join(later)


@task(task_run_name="{rotating}: {step}", cache_policy=NO_CACHE)
def carry_out_step(rotating: Rotating, step: Step) -> str:
    """-> what people should hear of it."""
    files, name, rotator = rotating.files, rotating.name, rotating.rotator()
    match step:
        case Create():
            number = files.propose(name, rotator.make(files.read(name)[1]))
            rotating.record("create", number, why=step.why)
        case SetTestFinish(number):
            current, value = files.read(name)[1], files.read(name, number)[1]
            rotator.set(value, current)
            rotator.test(value)
            rotating.record("promote", number)  # first: twice is better than never
            files.promote(name, number)
        case Disable(version):
            current, value = files.read(name)[1], files.read(name, version.number)[1]
            if used := [*rotating.on_their_way(version), *rotator.in_use(value, current)]:
                raise Refused(
                    f"version {version.number} of {name} is still in use: {'; '.join(used[:5])}. "
                    "It stays good, the new one is current; the next run closes it when they are "
                    "gone"
                )
            said = rotator.close(value, current)
            rotating.record("close", version.number, seen=said)
            files.disable(name, version.number)
            return f"version {version.number}: {said}"
    return ""
