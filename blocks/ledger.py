"""The memory of dafnck: releases, rollouts, intents and outcomes, leases. It decides what is true.

SQLAlchemy over SQLite (WAL) by default, PostgreSQL by URL. Every method is one transaction.
Invariant: one holder of the lease of a service in an environment at a time.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from blocks.ledger_tables import (
    decisions,
    intents,
    leases,
    meta,
    releases,
    rollouts,
    samples,
    stables,
)
from policy.canary import Counters, Sample
from policy.errors import LeaseLost, Refused, Unreachable
from policy.release import FINISHED, Intent, Lease, Phase, Release, RolloutRecord

log = logging.getLogger("dafnck")

LEASE_SECONDS = 15.0


class Ledger:
    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        """`url`: an SQLAlchemy URL, or the path of an SQLite file."""
        if "://" not in url:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{url}"
        self.url = url
        self.clock = clock
        options = {"connect_args": {"timeout": 10}} if url.startswith("sqlite") else {}
        self._engine = sa.create_engine(url, pool_pre_ping=not options, **options)
        if options:
            sa.event.listen(self._engine, "connect", _sqlite_settings)
        # Other processes may be making the same tables at the same moment.
        again = Retrying(
            retry=retry_if_exception_type(DBAPIError),
            wait=wait_random(0, 0.2),
            stop=stop_after_attempt(10),
            reraise=True,
        )
        with self._answering():
            again(meta.create_all, self._engine)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._answering(), self._engine.begin() as db:
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._answering(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # an answer, not a failure
        except SQLAlchemyError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            why = getattr(error, "orig", None) or error
            raise Unreachable(
                f"the ledger {where} cannot be used ({why}); what serves serves. Look at "
                "its disk and its server, then: dafnck status"
            ) from error

    # -- leases ------------------------------------------------------------------------------

    def take_lease(
        self, service: str, environment: str, who: str, seconds: float = LEASE_SECONDS
    ) -> str:
        """-> token. Raises Refused while somebody else holds it."""
        now, token = self.clock(), uuid4().hex
        of = (leases.c.service == service) & (leases.c.environment == environment)
        holder = f"{who} (pid {os.getpid()} on {socket.gethostname()})"
        try:
            with self._writing() as db:
                db.execute(leases.delete().where(of, leases.c.expires_at <= now))
                db.execute(
                    leases.insert().values(
                        service=service,
                        environment=environment,
                        token=token,
                        holder=holder,
                        rollout_id=0,
                        taken_at=now,
                        expires_at=now + seconds,
                    )
                )
        except IntegrityError:
            held = self.lease(service, environment)
            if held is None:
                return self.take_lease(service, environment, who, seconds)
            since = time.strftime("%H:%M:%S", time.localtime(held.taken_at))
            raise Refused(
                f"{service} in {environment} is being changed by {held.holder} since {since}; "
                "nothing was touched. Wait for it, or end it: "
                f"dafnck abort {service} --env {environment}"
            ) from None
        return token

    def renew_lease(self, token: str, seconds: float = LEASE_SECONDS) -> None:
        """Raises LeaseLost when somebody else has it by now."""
        with self._writing() as db:
            done = db.execute(
                leases.update()
                .where(leases.c.token == token)
                .values(expires_at=self.clock() + seconds)
            )
        if done.rowcount != 1:
            raise LeaseLost("the lease of this rollout lapsed and was taken over; not acting")

    def free_lease(self, token: str) -> None:
        with self._writing() as db:
            db.execute(leases.delete().where(leases.c.token == token))

    def break_lease(self, rollout_id: int) -> None:
        """For whoever knows that the process of this rollout is dead."""
        with self._writing() as db:
            db.execute(leases.delete().where(leases.c.rollout_id == rollout_id))

    def lease(self, service: str, environment: str) -> Lease | None:
        """Who holds it now; None when nobody does or it lapsed."""
        query = leases.select().where(
            leases.c.service == service,
            leases.c.environment == environment,
            leases.c.expires_at > self.clock(),
        )
        with self._reading() as db:
            row = db.execute(query).mappings().first()
        return None if row is None else Lease(**{k: v for k, v in row.items() if k != "token"})

    # -- rollouts ----------------------------------------------------------------------------

    def open_rollout(
        self,
        service: str,
        environment: str,
        *,
        token: str,
        kind: str,
        version: str,
        strategy: str,
        flow_run_id: str | None = None,
        release_id: str | None = None,
    ) -> RolloutRecord:
        """Begin an attempt, under the lease. Its stable release is the one that serves now."""
        with self._writing() as db:
            stable = db.execute(
                sa.select(stables.c.release_id).where(
                    stables.c.service == service, stables.c.environment == environment
                )
            ).scalar()
            new_id = db.execute(
                rollouts.insert()
                .values(
                    service=service,
                    environment=environment,
                    kind=kind,
                    version=version,
                    release_id=release_id,
                    stable_id=stable,
                    strategy=strategy,
                    phase=Phase.BUILDING.value,
                    reason="",
                    flow_run_id=flow_run_id,
                    started_at=self.clock(),
                )
                .returning(rollouts.c.id)
            ).scalar_one()
            held = db.execute(
                leases.update().where(leases.c.token == token).values(rollout_id=new_id)
            )
            if held.rowcount != 1:
                raise LeaseLost("the lease lapsed before the rollout began; nothing was touched")
        return self.rollout(new_id)

    def rollout(self, rollout_id: int) -> RolloutRecord:
        return self._rollouts(rollouts.c.id == rollout_id)[0]

    def rollout_of_flow_run(self, flow_run_id: str) -> RolloutRecord | None:
        found = self._rollouts(rollouts.c.flow_run_id == flow_run_id)
        return found[0] if found else None

    def history(
        self, service: str | None = None, environment: str | None = None, limit: int = 20
    ) -> list[RolloutRecord]:
        """Newest first."""
        return self._rollouts(*_of(service, environment), limit=limit)

    def unfinished(
        self, service: str | None = None, environment: str | None = None
    ) -> list[RolloutRecord]:
        open_phases = rollouts.c.phase.not_in([phase.value for phase in FINISHED])
        return self._rollouts(open_phases, *_of(service, environment))

    def _rollouts(self, *where: sa.ColumnElement[bool], limit: int = 1000) -> list[RolloutRecord]:
        query = rollouts.select().where(*where).order_by(rollouts.c.id.desc()).limit(limit)
        with self._reading() as db:
            rows = db.execute(query).mappings().all()
        return [replace(RolloutRecord(**row), phase=Phase(row["phase"])) for row in rows]

    def set_phase(self, rollout_id: int, phase: Phase, reason: str = "") -> None:
        values: dict[str, Any] = {"phase": phase.value}
        if reason:
            values["reason"] = reason
        if phase in FINISHED:
            values["finished_at"] = self.clock()
        where = [rollouts.c.id == rollout_id]
        if phase is Phase.ROLLING_BACK:
            # What was promoted or has ended is not taken back by a process that comes late.
            ends = [p.value for p in (*FINISHED, Phase.DRAINING)]
            where.append(rollouts.c.phase.not_in(ends))
        with self._writing() as db:
            db.execute(rollouts.update().where(*where).values(**values))

    def approve(self, rollout_id: int, who: str) -> None:
        with self._writing() as db:
            db.execute(
                rollouts.update()
                .where(rollouts.c.id == rollout_id)
                .values(approved_by=who, approved_at=self.clock())
            )

    def abort(self, rollout_id: int, reason: str) -> None:
        with self._writing() as db:
            db.execute(
                rollouts.update().where(rollouts.c.id == rollout_id).values(abort_reason=reason)
            )

    # -- releases ----------------------------------------------------------------------------

    def add_release(self, release: Release, rollout_id: int) -> Release:
        """Write a release down and number it: its id becomes <service>-<environment>-<number>."""
        of = (releases.c.service == release.service) & (
            releases.c.environment == release.environment
        )
        with self._writing() as db:
            last = db.execute(sa.select(sa.func.max(releases.c.number)).where(of)).scalar() or 0
            name = f"{release.service}-{release.environment}-{last + 1}"
            release = release.model_copy(update={"id": name})
            db.execute(
                releases.insert().values(
                    id=name,
                    service=release.service,
                    environment=release.environment,
                    number=last + 1,
                    version=release.version,
                    artifact=release.artifact,
                    content=release.model_dump_json(),
                    created_at=release.created_at,
                )
            )
            db.execute(rollouts.update().where(rollouts.c.id == rollout_id).values(release_id=name))
        return release

    def release(self, release_id: str) -> Release:
        query = sa.select(releases.c.content).where(releases.c.id == release_id)
        with self._reading() as db:
            content = db.execute(query).scalar()
        if content is None:
            raise Refused(f"the ledger knows no release {release_id}; see dafnck history")
        return Release.model_validate_json(content)

    def releases(self, service: str, environment: str, *, promoted: bool = False) -> list[str]:
        """Ids of the releases that are still on disk, newest first."""
        query = sa.select(releases.c.id).where(
            releases.c.service == service,
            releases.c.environment == environment,
            releases.c.removed_at.is_(None),
        )
        if promoted:
            query = query.where(releases.c.promoted_at.is_not(None))
            query = query.order_by(releases.c.promoted_at.desc())
        with self._reading() as db:
            return list(db.execute(query.order_by(releases.c.number.desc())).scalars())

    def mark_removed(self, release_id: str) -> None:
        with self._writing() as db:
            db.execute(
                releases.update().where(releases.c.id == release_id).values(removed_at=self.clock())
            )

    def artifacts_in_use(self) -> set[str]:
        query = sa.select(releases.c.artifact).where(releases.c.removed_at.is_(None))
        with self._reading() as db:
            return set(db.execute(query).scalars())

    def stable(self, service: str, environment: str) -> str | None:
        query = sa.select(stables.c.release_id).where(
            stables.c.service == service, stables.c.environment == environment
        )
        with self._reading() as db:
            return db.execute(query).scalar()

    def stables(self) -> list[tuple[str, str, str, float]]:
        """(service, environment, release id, since) of all that serves."""
        query = stables.select().order_by(stables.c.service, stables.c.environment)
        with self._reading() as db:
            return [(r.service, r.environment, r.release_id, r.since) for r in db.execute(query)]

    def promote(self, rollout_id: int, reason: str) -> None:
        """The new release is the stable one from now on; the rollout drains the old one."""
        rollout = self.rollout(rollout_id)
        now = self.clock()
        of = (stables.c.service == rollout.service) & (stables.c.environment == rollout.environment)
        with self._writing() as db:
            db.execute(stables.delete().where(of))
            db.execute(
                stables.insert().values(
                    service=rollout.service,
                    environment=rollout.environment,
                    release_id=rollout.release_id,
                    since=now,
                )
            )
            db.execute(
                releases.update().where(releases.c.id == rollout.release_id).values(promoted_at=now)
            )
            db.execute(
                rollouts.update()
                .where(rollouts.c.id == rollout_id)
                .values(phase=Phase.DRAINING.value, reason=reason)
            )

    # -- what was intended, decided, seen ----------------------------------------------------

    @contextmanager
    def act(
        self, rollout_id: int, act: str, *, even_unrecorded: bool = False, **detail: Any
    ) -> Iterator[dict[str, Any]]:
        """Write an intent, do the act in the body, write its outcome. The body may add to the
        yielded mapping; what it adds is kept with the outcome. `even_unrecorded`: the act is
        traffic going back, which a ledger that cannot be written must not stop."""
        said: dict[str, Any] = {}
        try:
            intent = self._intend(rollout_id, act, detail)
        except Unreachable as error:
            if not even_unrecorded:
                raise
            log.error("%s; acting all the same: %s", error, act)
            yield said
            return
        try:
            yield said
        except BaseException as error:
            self._outcome(intent, f"failed: {type(error).__name__}: {error}")
            raise
        self._outcome(intent, "; ".join(["done", *(f"{k} {v}" for k, v in said.items())]))

    def _intend(self, rollout_id: int, act: str, detail: dict[str, Any]) -> int:
        key = ":".join([act, *(f"{k}={v}" for k, v in sorted(detail.items()))])
        with self._writing() as db:
            return db.execute(  # type: ignore[no-any-return]
                intents.insert()
                .values(
                    rollout_id=rollout_id, key=key[:300], act=act, detail=detail, at=self.clock()
                )
                .returning(intents.c.id)
            ).scalar_one()

    def _outcome(self, intent: int, outcome: str) -> None:
        with self._writing() as db:
            db.execute(
                intents.update()
                .where(intents.c.id == intent)
                .values(outcome=outcome, outcome_at=self.clock())
            )

    def intents(self, rollout_id: int) -> list[Intent]:
        query = intents.select().where(intents.c.rollout_id == rollout_id).order_by(intents.c.id)
        with self._reading() as db:
            return [Intent(**row) for row in db.execute(query).mappings()]

    def decide(
        self, rollout_id: int, action: str, share: int, verdict: str | None, reason: str
    ) -> None:
        with self._writing() as db:
            db.execute(
                decisions.insert().values(
                    rollout_id=rollout_id,
                    at=self.clock(),
                    action=action,
                    share=share,
                    verdict=verdict,
                    reason=reason,
                )
            )

    def decisions(self, rollout_id: int) -> list[Mapping[str, Any]]:
        query = (
            decisions.select().where(decisions.c.rollout_id == rollout_id).order_by(decisions.c.id)
        )
        with self._reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def add_sample(self, rollout_id: int, sample: Sample) -> None:
        with self._writing() as db:
            db.execute(
                samples.insert().values(
                    rollout_id=rollout_id,
                    at=sample.at,
                    share=sample.share,
                    new=_packed(sample.new),
                    stable=_packed(sample.stable),
                )
            )

    def samples(self, rollout_id: int) -> list[Sample]:
        query = samples.select().where(samples.c.rollout_id == rollout_id).order_by(samples.c.id)
        with self._reading() as db:
            return [
                Sample(row["at"], _unpacked(row["new"]), _unpacked(row["stable"]), row["share"])
                for row in db.execute(query).mappings()
            ]


def _of(service: str | None, environment: str | None) -> list[sa.ColumnElement[bool]]:
    where: list[sa.ColumnElement[bool]] = []
    if service:
        where.append(rollouts.c.service == service)
    if environment:
        where.append(rollouts.c.environment == environment)
    return where


def _packed(counters: Counters | None) -> dict[str, Any] | None:
    if counters is None:
        return None
    buckets = {str(bound): count for bound, count in counters.buckets.items()}
    return {"requests": counters.requests, "errors": counters.errors, "buckets": buckets}


def _unpacked(packed: Mapping[str, Any] | None) -> Counters | None:
    if packed is None:
        return None
    buckets = {float(bound): count for bound, count in packed["buckets"].items()}
    return Counters(packed["requests"], packed["errors"], buckets)


def _sqlite_settings(connection: Any, _record: Any) -> None:
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
