"""The memory of dafnck: releases, rollouts, intents and outcomes. It decides what is true.

Every method is one transaction. How it is opened: ledger_store.py; who may change what:
ledger_leases.py.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from blocks.ledger_audit import OURSELVES, Audit
from blocks.ledger_changes import Changes
from blocks.ledger_leases import TAKEN_OVER, Leases, whereabouts
from blocks.ledger_tables import (
    decisions,
    evidence,
    intents,
    leases,
    releases,
    rollouts,
    samples,
    stables,
)
from policy.errors import LeaseLost, Refused, Unreachable
from policy.release import FINISHED, UNLED, Intent, Phase, Release, RolloutRecord
from policy.samples import Counters, Sample

log = logging.getLogger("dafnck")

AUDITED = ("freeze_override", "freeze_override_by", "unsafe_reason", "unsafe_by", "change_id")


class Ledger(Leases, Changes, Audit):
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
        by: str = "",
        **told: Any,
    ) -> RolloutRecord:
        """Begin an attempt, under the lease. Its stable release is the one that serves now. `by`:
        who asked for it.
        `told`: what a person said (`freeze_override`, `unsafe_reason`, who), `notify`, and the
        `change_id` of which it is part."""
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
                    leader=whereabouts(),
                    started_at=self.clock(),
                    **told,
                )
                .returning(rollouts.c.id)
            ).scalar_one()
            held = db.execute(
                leases.update().where(leases.c.token == token).values(rollout_id=new_id)
            )
            if held.rowcount != 1:
                raise LeaseLost("the lease lapsed before the rollout began; nothing was touched")
            detail = {
                "rollout": new_id,
                "version": version,
                "release": release_id,
                "instead_of": stable,
                **{name: told.get(name) for name in AUDITED},
            }
            self._entry(db, by, kind, f"{service} in {environment}", detail)
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
        """Those that a process leads, or must end. A frozen one waits for a person."""
        open_phases = rollouts.c.phase.not_in([phase.value for phase in UNLED])
        return self._rollouts(open_phases, *_of(service, environment))

    def frozen(
        self, service: str | None = None, environment: str | None = None
    ) -> list[RolloutRecord]:
        return self._rollouts(rollouts.c.phase == Phase.FROZEN.value, *_of(service, environment))

    def rollouts_of_change(self, change_id: int) -> list[RolloutRecord]:
        """Releases and rollbacks of its services, newest first."""
        return self._rollouts(rollouts.c.change_id == change_id)

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
        # What has ended stays as it ended, and what was promoted is not taken back, whatever a
        # process does that comes late.
        stays = {*FINISHED} if phase in FINISHED else {*FINISHED, Phase.DRAINING}
        where = [rollouts.c.id == rollout_id, rollouts.c.phase.not_in([p.value for p in stays])]
        if phase is Phase.FROZEN:
            where.append(rollouts.c.phase == Phase.SHIFTING.value)
        elif phase not in FINISHED:  # a person alone thaws it: `go_on`, `take_back`
            where.append(rollouts.c.phase != Phase.FROZEN.value)
        with self._writing() as db:
            done = db.execute(rollouts.update().where(*where).values(**values))
            if done.rowcount == 1 and phase in UNLED:
                self._entry_of(db, rollout_id, OURSELVES, phase.value, reason=reason or None)

    def _entry_of(
        self, db: sa.Connection, rollout_id: int, actor: str, action: str, **detail: Any
    ) -> None:
        row = db.execute(
            sa.select(
                rollouts.c.service,
                rollouts.c.environment,
                rollouts.c.release_id,
                rollouts.c.reason,
            ).where(rollouts.c.id == rollout_id)
        ).one()
        told = {"rollout": rollout_id, "release": row.release_id, "reason": row.reason or None}
        self._entry(db, actor, action, f"{row.service} in {row.environment}", told | detail)

    def take_over(self, rollout_id: int, why: str) -> bool:
        """Somebody else than its leader ends it; that is still to be told (`unclosed`). -> whether
        nobody had begun that before."""
        with self._writing() as db:
            done = db.execute(
                rollouts.update()
                .where(rollouts.c.id == rollout_id, rollouts.c.taken_over.is_(None))
                .values(taken_over=why)
            )
        return done.rowcount == 1

    def unclosed(self) -> list[RolloutRecord]:
        """Rollouts that somebody else ended, or that a dead flow run led before the one of now, and
        nobody told of it yet."""
        ended = sa.and_(
            rollouts.c.taken_over.is_not(None),
            rollouts.c.closed_at.is_(None),
            rollouts.c.phase.in_([phase.value for phase in UNLED]),
        )
        return self._rollouts(ended | rollouts.c.left_run.is_not(None))

    def close_rollout(self, rollout_id: int) -> None:
        with self._writing() as db:
            db.execute(
                rollouts.update().where(rollouts.c.id == rollout_id).values(closed_at=self.clock())
            )

    def told_of_left_run(self, rollout_id: int) -> None:
        with self._writing() as db:
            db.execute(rollouts.update().where(rollouts.c.id == rollout_id).values(left_run=None))

    def approve(self, rollout_id: int, who: str) -> None:
        with self._writing() as db:
            db.execute(
                rollouts.update()
                .where(rollouts.c.id == rollout_id)
                .values(approved_by=who, approved_at=self.clock())
            )
            self._entry_of(db, rollout_id, who, "approve", reason=None)

    def abort(self, rollout_id: int, reason: str, by: str = "", **unsafe: str) -> None:
        """`unsafe`: `unsafe_reason` and `unsafe_by`, when it may go back past a migration."""
        with self._writing() as db:
            db.execute(
                rollouts.update()
                .where(rollouts.c.id == rollout_id)
                .values(abort_reason=reason, **unsafe)
            )
            self._entry_of(db, rollout_id, by, "abort", reason=reason, **unsafe)

    def go_on(self, rollout_id: int, *, token: str, who: str, flow_run_id: str | None) -> None:
        """A person lets a frozen rollout go on: it is led again, under this lease, and nothing of
        how it came to be frozen is held against it. Raises Refused when it is not frozen any more.
        """
        untold = rollouts.c.taken_over.is_not(None) & rollouts.c.closed_at.is_(None)
        self._thaw(
            rollout_id,
            token,
            phase=Phase.SHIFTING.value,
            approved_by=who,
            approved_at=self.clock(),
            reason="",
            abort_reason=None,
            unsafe_reason=None,
            unsafe_by=None,
            left_run=sa.case((untold, rollouts.c.flow_run_id), else_=rollouts.c.left_run),
            flow_run_id=flow_run_id,
            leader=whereabouts(),
            taken_over=None,
            closed_at=None,
        )

    def take_back(
        self, rollout_id: int, reason: str, *, token: str, unsafe_reason: str, unsafe_by: str
    ) -> None:
        """A person takes a frozen rollout back in spite of its migration: whoever leads it from now
        on, or finds it left, gives its traffic back. Raises Refused when it is not frozen any more.
        """
        self._thaw(
            rollout_id,
            token,
            phase=Phase.ROLLING_BACK.value,
            reason=reason,
            abort_reason=reason,
            unsafe_reason=unsafe_reason,
            unsafe_by=unsafe_by,
            closed_at=None,  # its report says frozen
        )

    def _thaw(self, rollout_id: int, token: str, **values: Any) -> None:
        of = (rollouts.c.id == rollout_id) & (rollouts.c.phase == Phase.FROZEN.value)
        with self._writing() as db:
            held = db.execute(
                leases.update().where(leases.c.token == token).values(rollout_id=rollout_id)
            )
            if held.rowcount != 1:
                raise LeaseLost("the lease lapsed before the rollout went on; nothing was touched")
            if db.execute(rollouts.update().where(of).values(**values)).rowcount != 1:
                raise Refused(f"rollout {rollout_id} is not frozen any more; see dafnck status")
            person = values.get("approved_by") or values.get("unsafe_by") or ""
            action = "resume" if values.get("approved_by") else "take back"
            why = {name: values.get(name) for name in ("reason", "unsafe_reason")}
            self._entry_of(db, rollout_id, person, action, **why)

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

    def contracts_after(self, release: Release) -> list[str]:
        """Ids of the younger releases that took away what this one needs of the database: they
        were promoted, or had traffic and were taken back in spite of it."""
        number = sa.select(releases.c.number).where(releases.c.id == release.id).scalar_subquery()
        unsafe = sa.select(rollouts.c.release_id).where(
            rollouts.c.kind == "release",
            rollouts.c.unsafe_reason.is_not(None),
            rollouts.c.release_id.is_not(None),
            rollouts.c.phase != Phase.FAILED.value,  # that one had no traffic
        )
        query = (
            sa.select(releases.c.id, releases.c.content)
            .where(
                releases.c.service == release.service,
                releases.c.environment == release.environment,
                releases.c.number > number,
                releases.c.promoted_at.is_not(None) | releases.c.id.in_(unsafe),
            )
            .order_by(releases.c.number)
        )
        with self._reading() as db:
            rows = db.execute(query).all()
        return [
            name
            for name, content in rows
            if Release.model_validate_json(content).migration == "contract"
        ]

    def mark_removed(self, release_id: str) -> None:
        with self._writing() as db:
            db.execute(
                releases.update().where(releases.c.id == release_id).values(removed_at=self.clock())
            )

    def artifacts_in_use(self) -> set[str]:
        query = sa.select(releases.c.artifact).where(releases.c.removed_at.is_(None))
        with self._reading() as db:
            return set(db.execute(query).scalars())

    def folders_in_use(self) -> set[str]:
        """Where the service files of the releases lie that may run again."""
        query = sa.select(releases.c.content).where(releases.c.removed_at.is_(None))
        with self._reading() as db:
            contents = db.execute(query).scalars().all()
        return {str(json.loads(content).get("folder", "")) for content in contents} - {""}

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

    def promote(self, rollout_id: int, reason: str, *, token: str | None = None) -> None:
        """The new release is the stable one from now on; the rollout drains the old one. Older ones
        that nobody could put right are over: their releases have no share any more. Raises
        LeaseLost, and changes nothing, when the lease of this token is no longer held."""
        rollout = self.rollout(rollout_id)
        now = self.clock()
        of = (stables.c.service == rollout.service) & (stables.c.environment == rollout.environment)
        with self._writing() as db:
            if token is not None:
                # A write, so that nobody takes the lease over before this transaction ends.
                mine = leases.update().where(leases.c.token == token)
                if db.execute(mine.values(rollout_id=rollout_id)).rowcount != 1:
                    raise LeaseLost(TAKEN_OVER)
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
            passed_over = rollouts.update().where(
                *_of(rollout.service, rollout.environment),
                rollouts.c.id < rollout_id,
                rollouts.c.phase.not_in([phase.value for phase in UNLED]),
            )
            died = sa.func.coalesce(
                sa.func.nullif(rollouts.c.reason, ""), rollouts.c.taken_over, ""
            )
            over = db.execute(
                passed_over.values(
                    phase=Phase.ROLLED_BACK.value,
                    finished_at=now,
                    reason=died + f"; {rollout.version} took its traffic",
                ).returning(rollouts.c.id)
            ).scalars()
            # After all rows of rollouts, as everywhere: whoever appends holds the head.
            for passed in over.all():
                self._entry_of(db, passed, OURSELVES, Phase.ROLLED_BACK.value)
            self._entry_of(db, rollout_id, OURSELVES, "promote", reason=reason)

    def retire(self, service: str, environment: str, by: str = "") -> None:
        """No release is the stable one any more: nobody brings one back by itself."""
        with self._writing() as db:
            db.execute(
                stables.delete().where(
                    stables.c.service == service, stables.c.environment == environment
                )
            )
            self._entry(db, by, "take down", f"{service} in {environment}", {})

    # -- what was intended, decided, seen ----------------------------------------------------

    @contextmanager
    def act(
        self, rollout_id: int, act: str, *, even_unrecorded: bool = False, **detail: Any
    ) -> Iterator[dict[str, Any]]:
        """Write an intent, do the act in the body, write its outcome. The body may add to the
        yielded mapping; what it adds is kept with the outcome. `even_unrecorded`: the act is
        traffic going back, which a ledger that cannot be written must neither stop nor delay."""
        said: dict[str, Any] = {}
        try:
            intent = self._intend(rollout_id, act, detail, briefly=even_unrecorded)
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

    def _intend(
        self, rollout_id: int, act: str, detail: dict[str, Any], *, briefly: bool = False
    ) -> int:
        key = ":".join([act, *(f"{k}={v}" for k, v in sorted(detail.items()))])
        with self._writing_briefly() if briefly else self._writing() as db:
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

    def add_evidence(self, rollout_id: int, content: Mapping[str, Any]) -> None:
        """What tests, scans and gates said; a second time replaces the first."""
        with self._writing() as db:
            db.execute(evidence.delete().where(evidence.c.rollout_id == rollout_id))
            db.execute(evidence.insert().values(rollout_id=rollout_id, content=dict(content)))

    def evidence(self, rollout_id: int) -> dict[str, Any] | None:
        query = sa.select(evidence.c.content).where(evidence.c.rollout_id == rollout_id)
        with self._reading() as db:
            return db.execute(query).scalar()

    def evidence_of_release(self, release_id: str) -> dict[str, Any] | None:
        """Of the rollout that released it first."""
        query = (
            sa.select(evidence.c.content)
            .join(rollouts, rollouts.c.id == evidence.c.rollout_id)
            .where(rollouts.c.release_id == release_id, rollouts.c.kind == "release")
        )
        with self._reading() as db:
            return db.execute(query).scalar()

    def decide(
        self, rollout_id: int, action: str, share: int, verdict: str | None, reason: str
    ) -> None:
        with self._writing_briefly() as db:
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
        with self._writing_briefly() as db:
            db.execute(
                samples.insert().values(
                    rollout_id=rollout_id,
                    at=sample.at,
                    share=sample.share,
                    new=_packed(sample.new),
                    stable=_packed(sample.stable),
                    values=sample.values or None,
                )
            )

    def samples(self, rollout_id: int) -> list[Sample]:
        query = samples.select().where(samples.c.rollout_id == rollout_id).order_by(samples.c.id)
        with self._reading() as db:
            return [
                Sample(
                    row["at"],
                    _unpacked(row["new"]),
                    _unpacked(row["stable"]),
                    row["share"],
                    row["values"] or {},
                )
                for row in db.execute(query).mappings()
            ]

    def past_samples(
        self, service: str, environment: str, rollouts_back: int = 10, most: int = 7200
    ) -> list[Sample]:
        """Of the newest releases that were promoted, oldest first."""
        promoted = rollouts.c.phase == Phase.PROMOTED.value
        kind = rollouts.c.kind == "release"
        newest = self._rollouts(promoted, kind, *_of(service, environment), limit=rollouts_back)
        past: list[Sample] = []
        for rollout in newest:
            if len(past) < most:
                past = [*self.samples(rollout.id), *past]
        return past[-most:]


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
