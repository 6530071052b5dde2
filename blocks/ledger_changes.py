"""Changes of several services as the ledger holds them: what was wanted, asked for and decided.

How far each service got is told by its rollouts; here is only what they do not tell.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from blocks.ledger_leases import TAKEN_OVER, whereabouts
from blocks.ledger_store import LedgerStore
from blocks.ledger_tables import change_members, changes, leases
from policy.change import ChangeRecord, ChangeVerdict, MemberRecord
from policy.errors import LeaseLost


class Changes(LedgerStore):
    def open_change(
        self,
        stack: str,
        environment: str,
        members: Sequence[MemberRecord],
        *,
        token: str,
        version: str,
        file: str,
        at_once: int,
        by: str,
        flow_run_id: str | None = None,
    ) -> ChangeRecord:
        """Begin a change, under its lease; nothing is asked for yet."""
        with self._writing() as db:
            new_id = db.execute(
                changes.insert()
                .values(
                    stack=stack,
                    environment=environment,
                    version=version,
                    file=file,
                    at_once=at_once,
                    by=by,
                    flow_run_id=flow_run_id,
                    leader=whereabouts(),
                    started_at=self.clock(),
                    reason="",
                )
                .returning(changes.c.id)
            ).scalar_one()
            for member in members:
                row = asdict(member) | {"change_id": new_id, "after": list(member.after)}
                db.execute(change_members.insert().values(**row))
            # A write, so that nobody takes the lease over before this transaction ends.
            mine = leases.update().where(leases.c.token == token)
            if db.execute(mine.values(rollout_id=0)).rowcount != 1:
                raise LeaseLost(TAKEN_OVER)
        return self.change(new_id)

    def change(self, change_id: int) -> ChangeRecord:
        return self._changes(changes.c.id == change_id)[0]

    def change_of_flow_run(self, flow_run_id: str) -> ChangeRecord | None:
        found = self._changes(changes.c.flow_run_id == flow_run_id)
        return found[0] if found else None

    def unfinished_changes(self) -> list[ChangeRecord]:
        return self._changes(changes.c.verdict.is_(None))

    def changes(self, stack: str | None = None, limit: int = 20) -> list[ChangeRecord]:
        """Newest first."""
        return self._changes(*([changes.c.stack == stack] if stack else []), limit=limit)

    def last_changes(self) -> list[ChangeRecord]:
        """The newest of each stack in each environment."""
        newest = sa.select(sa.func.max(changes.c.id)).group_by(
            changes.c.stack, changes.c.environment
        )
        return self._changes(changes.c.id.in_(newest))

    def _changes(self, *where: sa.ColumnElement[bool], limit: int = 1000) -> list[ChangeRecord]:
        query = changes.select().where(*where).order_by(changes.c.id.desc()).limit(limit)
        with self._reading() as db:
            return [ChangeRecord(**row) for row in db.execute(query).mappings()]

    def members(self, change_id: int) -> list[MemberRecord]:
        """In the order of the file."""
        query = (
            change_members.select()
            .where(change_members.c.change_id == change_id)
            .order_by(change_members.c.position)
        )
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [MemberRecord(**row | {"after": tuple(row["after"])}) for row in rows]

    def trouble_change(self, change_id: int, why: str) -> None:
        """It is not carried through; the first reason stays. One that is over stays as it is."""
        open_still = changes.c.verdict.is_(None) & changes.c.trouble.is_(None)
        with self._writing() as db:
            db.execute(
                changes.update()
                .where(changes.c.id == change_id, open_still)
                .values(trouble=why or "its leader gave no reason")
            )

    def close_change(self, change_id: int, verdict: ChangeVerdict, reason: str) -> None:
        with self._writing() as db:
            db.execute(
                changes.update()
                .where(changes.c.id == change_id, changes.c.verdict.is_(None))
                .values(verdict=verdict.value, reason=reason, finished_at=self.clock())
            )

    # -- what is asked for its services: each written down before it is done --------------------

    def ask_member(self, change_id: int, service: str) -> None:
        self._member(change_id, service, asked_at=self.clock())

    def run_of_member(self, change_id: int, service: str, run_id: str) -> None:
        self._member(change_id, service, run_id=run_id)

    def cancel_member(self, change_id: int, service: str) -> None:
        self._member(change_id, service, cancelled=True)

    def ask_back(self, change_id: int, service: str) -> None:
        attempts = change_members.c.back_attempts + 1
        self._member(change_id, service, back_attempts=attempts, back_run_id=None)

    def run_of_back(self, change_id: int, service: str, run_id: str) -> None:
        self._member(change_id, service, back_run_id=run_id)

    def keep_member(self, change_id: int, service: str, why: str) -> None:
        self._member(change_id, service, kept=why)

    def _member(self, change_id: int, service: str, **values: Any) -> None:
        of = (change_members.c.change_id == change_id) & (change_members.c.service == service)
        with self._writing() as db:
            db.execute(change_members.update().where(of).values(**values))
