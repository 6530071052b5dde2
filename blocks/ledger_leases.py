"""Leases: one holder for a service in an environment at a time."""

import os
import socket
import time
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from blocks.ledger_store import LedgerStore
from blocks.ledger_tables import leases
from blocks.processes import Process, machine, own
from policy.errors import LeaseLost, Refused
from policy.release import Lease, RolloutRecord

LEASE_SECONDS = 15.0
RENEW_SECONDS = LEASE_SECONDS / 3
WATCH_SECONDS = RENEW_SECONDS * 1.3  # of a lease that looks lapsed: a renewal must fall into it
TAKEN_OVER = "the lease of this rollout lapsed and was taken over; not acting"


class Leases(LedgerStore):
    def take_lease(
        self,
        service: str,
        environment: str,
        who: str,
        seconds: float = LEASE_SECONDS,
        *,
        over: Lease | None = None,
    ) -> str:
        """-> token. Raises Refused while somebody else holds it.

        A lease whose holder died on this machine is taken over at once. One that looks lapsed is
        watched first, for longer than its holder needs to renew it: clocks jump, and no jump may
        take a lease from a process that renews it. `over`: the caller has watched this one itself;
        it is taken over unless it was renewed since."""
        watched = over
        while True:
            if token := self._insert_lease(service, environment, who, seconds, over):
                return token
            held = self.lease_row(service, environment)
            if held is None:
                if watched is not None:
                    raise Refused(f"{watched.holder} has given its lease back meanwhile")
                over = None  # what we found dead is gone: there is nothing to take over
            elif held != over and (holder_died(held) or self._lapsed(held)):
                over = held
            else:
                since = time.strftime("%H:%M:%S", time.localtime(held.taken_at))
                raise Refused(
                    f"{service} in {environment} is being changed by {held.holder} since {since}; "
                    "nothing was touched. Wait for it, or end it: "
                    f"dafnck abort {service} --env {environment}"
                )

    def _insert_lease(
        self, service: str, environment: str, who: str, seconds: float, over: Lease | None
    ) -> str | None:
        """-> token; None while there is another lease than `over`, or no longer that one."""
        now, token, me = self.clock(), uuid4().hex, own()
        try:
            with self._writing() as db:
                if over is not None and db.execute(_same(leases.delete(), over)).rowcount != 1:
                    return None
                db.execute(
                    leases.insert().values(
                        service=service,
                        environment=environment,
                        token=token,
                        holder=f"{who} ({whereabouts()})",
                        rollout_id=0,
                        taken_at=now,
                        expires_at=now + seconds,
                        renewals=0,
                        machine=machine(),
                        pid=me.pid,
                        pid_started=me.started,
                    )
                )
        except IntegrityError:
            return None
        return token

    def _lapsed(self, held: Lease) -> bool:
        """Does it look lapsed, and is it not renewed while we watch? One that expires later than
        any lease may was taken before the clock was set back: it must not live for ever."""
        if 0 < held.expires_at - self.clock() <= LEASE_SECONDS + 1:
            return False
        give_up = self.monotonic() + WATCH_SECONDS
        while self.monotonic() < give_up:
            self.sleep(0.2)
            if self.lease_row(held.service, held.environment) != held:
                return False
        return True

    def renew_lease(self, token: str, seconds: float = LEASE_SECONDS) -> None:
        """Raises LeaseLost when somebody else has it by now."""
        with self._writing() as db:
            done = db.execute(
                leases.update()
                .where(leases.c.token == token)
                .values(
                    expires_at=self.clock() + seconds,
                    renewals=sa.func.coalesce(leases.c.renewals, 0) + 1,
                )
            )
        if done.rowcount != 1:
            raise LeaseLost(TAKEN_OVER)

    def check_lease(self, token: str) -> None:
        """Raises LeaseLost when somebody else has it by now."""
        with self._reading() as db:
            if db.execute(sa.select(leases.c.token).where(leases.c.token == token)).first() is None:
                raise LeaseLost(TAKEN_OVER)

    def free_lease(self, token: str) -> None:
        with self._writing() as db:
            db.execute(leases.delete().where(leases.c.token == token))

    def remove_lease(self, lapsed: Lease) -> None:
        """For whoever knows that nobody holds it; it stays when it was renewed since."""
        with self._writing() as db:
            db.execute(_same(leases.delete(), lapsed))

    def lease(self, service: str, environment: str) -> Lease | None:
        """Who holds it now; None when nobody does, its holder died or it looks lapsed."""
        row = self.lease_row(service, environment)
        if row is None or row.expires_at <= self.clock() or holder_died(row):
            return None
        return row

    def leads(self, rollout: RolloutRecord) -> bool:
        """Does somebody hold the lease for this rollout? Until it is free, others are refused."""
        lease = self.lease(rollout.service, rollout.environment)
        return lease is not None and lease.rollout_id == rollout.id

    def lease_row(self, service: str, environment: str) -> Lease | None:
        """As it is written down, whether or not anybody holds it."""
        found = self._leases(leases.c.service == service, leases.c.environment == environment)
        return found[0] if found else None

    def leases(self) -> list[Lease]:
        """As they are written down, whether or not anybody holds them."""
        return self._leases()

    def _leases(self, *where: sa.ColumnElement[bool]) -> list[Lease]:
        with self._reading() as db:
            return [Lease(**row) for row in db.execute(leases.select().where(*where)).mappings()]


def holder_died(lease: Lease) -> bool:
    """Is it known that nobody renews this lease? Only of a process of this machine it can be."""
    if lease.pid is None or lease.pid_started is None or lease.machine != machine():
        return False
    return not Process(lease.pid, lease.pid_started).alive()


def whereabouts() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _same(statement: Any, lease: Lease) -> Any:
    """Of this lease, unless it was renewed or changed hands since it was read."""
    return statement.where(
        leases.c.token == lease.token,
        leases.c.renewals.is_not_distinct_from(lease.renewals),
        leases.c.expires_at == lease.expires_at,
    )
