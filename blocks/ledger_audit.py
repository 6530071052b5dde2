"""The audit as the ledger holds it: appended to in the transaction of what it tells of."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from blocks.ledger_store import LedgerStore
from blocks.ledger_tables import audit, audit_head
from policy.audit import FIRST, Entry, first_break, sealed

OURSELVES = "dafnck"
AT_ONCE = 1000  # entries
ACTOR, SUBJECT = 200, 300  # characters that their columns hold


class Audit(LedgerStore):
    def record(self, actor: str, action: str, subject: str, **detail: Any) -> None:
        """Of what no other method of the ledger writes down. `detail`: texts, whole numbers, None;
        no secret."""
        with self._writing() as db:
            self._entry(db, actor, action, subject, detail)

    def audit_head(self) -> tuple[int, str]:
        """Number and hash of the newest entry."""
        with self._reading() as db:
            row = db.execute(sa.select(audit_head.c.number, audit_head.c.hash)).one()
        return row.number, row.hash

    def audit(
        self, subject: str | None = None, since: float | None = None, actor: str | None = None
    ) -> Iterator[Entry]:
        """Oldest first. `subject`: it, or how it begins."""
        query = audit.select().order_by(audit.c.number)
        if subject is not None:
            query = query.where(audit.c.subject.startswith(subject, autoescape=True))
        if since is not None:
            query = query.where(audit.c.at >= since)
        if actor is not None:
            query = query.where(audit.c.actor == actor)
        number = 0
        while True:
            page = query.where(audit.c.number > number).limit(AT_ONCE)
            with self._reading() as db:
                rows = db.execute(page).mappings().all()
            for row in rows:
                yield Entry(**row)
            if len(rows) < AT_ONCE:
                return
            number = rows[-1]["number"]

    def audit_break(self, head: tuple[int, str] | None = None) -> str:
        """Why the chain is not whole; empty when it is. `head`: as somebody kept it; entries that
        came after it are looked at as well."""
        number, digest = self.audit_head()  # first: others append meanwhile
        found = list(self.audit())
        newest = (found[-1].number, found[-1].hash) if found else (0, FIRST)
        if broken := first_break(found, head=newest if len(found) > number else (number, digest)):
            return broken
        for at, kept in ((number, digest), head or (0, FIRST)):
            if at > len(found) or (at and found[at - 1].hash != kept):
                return f"entry {at} is not the one that was kept: the chain was written anew"
        return ""

    def _entry(
        self, db: sa.Connection, actor: str, action: str, subject: str, detail: dict[str, Any]
    ) -> None:
        """A write first: from there on nobody else appends before this transaction ends."""
        step = audit_head.update().values(number=audit_head.c.number + 1)
        row = db.execute(step.returning(audit_head.c.number, audit_head.c.hash)).one()
        told = {name: value for name, value in detail.items() if value is not None}
        who, what = (actor or OURSELVES)[:ACTOR], subject[:SUBJECT]
        entry = sealed(row.number, self.clock(), who, action, what, told, row.hash)
        db.execute(audit.insert().values(**vars(entry)))
        db.execute(audit_head.update().values(hash=entry.hash))
