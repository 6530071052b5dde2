"""What the tables of the audit need beside their columns: the row that holds its head, and what
keeps people from changing an entry by a slip.

Whoever may change these definitions as well is found by the hashes.
"""

from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from blocks.ledger_tables import audit, audit_head
from policy.audit import FIRST

KEEPERS = {
    "sqlite": (
        "SELECT name FROM sqlite_master WHERE tbl_name = 'audit' AND type = 'trigger'",
        "CREATE TRIGGER IF NOT EXISTS audit_no_{0} BEFORE {0} ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit is appended to only'); END",
    ),
    "postgresql": (
        "SELECT rulename FROM pg_rules WHERE tablename = 'audit' AND schemaname = current_schema()",
        "CREATE OR REPLACE RULE audit_no_{0} AS ON {0} TO audit DO INSTEAD NOTHING",
    ),
}


def have_audit(engine: sa.Engine) -> None:
    """Make what is missing of them; next to free when nothing is."""
    look, make = KEEPERS[engine.dialect.name]
    with engine.connect() as db:
        begun = db.execute(sa.select(audit_head.c.id)).first() is not None
        kept = {row[0] for row in db.execute(sa.text(look))}
    if not begun:
        newest = sa.select(audit.c.number, audit.c.hash).order_by(audit.c.number.desc()).limit(1)
        # Who made it at the same moment did the same.
        with suppress(IntegrityError), engine.begin() as db:
            row = db.execute(newest).first()
            number, digest = (row.number, row.hash) if row else (0, FIRST)
            db.execute(audit_head.insert().values(id=1, number=number, hash=digest))
    for act in ("update", "delete"):
        if f"audit_no_{act}" not in kept:
            with engine.begin() as db:
                db.execute(sa.text(make.format(act)))
