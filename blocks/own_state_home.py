"""Makes of a restored home one that may be brought up.

Invariant: nothing that was under way, or waited for its turn, when the backup was taken goes on by
itself: its machine is gone, and what it was to do may have been done by others since.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from blocks.files import write_atomically
from blocks.ledger import Ledger
from blocks.own_state import LEDGER, PREFECT
from blocks.own_state_ledger import load_ledger, sqlite_file
from blocks.stack import LEDGER_URL
from policy.errors import NotApplied

# What one of these states means for a run whose machine is gone.
WAITING = "DELETE FROM flow_run WHERE state_type IN ('SCHEDULED', 'PENDING')"
UNDER_WAY = (
    "UPDATE flow_run_state SET type = 'CRASHED', name = 'Crashed', message = "
    "'its machine was lost' WHERE id IN (SELECT state_id FROM flow_run WHERE state_type IN "
    "('RUNNING', 'PAUSED', 'CANCELLING'))",
    "UPDATE flow_run SET state_type = 'CRASHED', state_name = 'Crashed' WHERE state_type IN "
    "('RUNNING', 'PAUSED', 'CANCELLING')",
)


def settle(home: Path, ledger_url: str) -> list[str]:
    """Have the ledger where it shall lie, without leases; Prefect's history without runs that wait
    for a worker. A second time changes nothing. -> what was done, in words. Raises Refused for a
    ledger that holds something else already."""
    done = []
    copy = home / LEDGER
    if copy.exists() and sqlite_file(ledger_url) != copy:
        load_ledger(copy, ledger_url)
        # Remembered first: whoever comes next must not begin an empty one.
        write_atomically(home / LEDGER_URL, ledger_url + "\n", 0o600)
        copy.unlink()
        done.append("the ledger was moved to the database of DAFNCK_LEDGER_URL")
    ledger = Ledger(ledger_url)
    try:
        for lease in ledger.leases():
            ledger.remove_lease(lease)
            done.append(f"the lease of {lease.holder} on {lease.service} was removed")
    finally:
        ledger.close()
    if (prefect := home / PREFECT).exists():
        done += _end_runs(prefect)
    return done


def _end_runs(file: Path) -> list[str]:
    """By SQL: once Prefect's server runs, a worker could take one before we do."""
    try:
        with closing(sqlite3.connect(file)) as db, db:
            db.execute("PRAGMA foreign_keys = ON")
            waiting = db.execute(WAITING).rowcount
            dead = [db.execute(statement).rowcount for statement in UNDER_WAY][-1]
    except sqlite3.DatabaseError as error:
        raise NotApplied(
            f"runs that wait in {file} cannot be removed ({error}): a worker would start them. "
            "Nothing was started. To go on without Prefect's history: remove that file, then run "
            "the same command again"
        ) from None
    told = ((waiting, "waited: removed"), (dead, "were under way: crashed"))
    return [f"{count} runs of Prefect {words}" for count, words in told if count]
