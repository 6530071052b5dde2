"""Holds the lease of a service in an environment while a rollout acts on it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from blocks.ledger import LEASE_SECONDS, Ledger
from policy.errors import LeaseLost

log = logging.getLogger("dafnck")


class Held:
    """The lease and whether it is still ours."""

    def __init__(self, ledger: Ledger, token: str) -> None:
        self.token = token
        self._ledger = ledger
        self._lost = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost when another process took over: it acts now, we must not."""
        if self._lost:
            raise LeaseLost(self._lost)

    def free(self) -> None:
        self._over.set()
        self._thread.join()
        self._ledger.free_lease(self.token)

    def _renew(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 3):
            try:
                self._ledger.renew_lease(self.token)
            except LeaseLost as lost:
                self._lost = str(lost)
                return
            except Exception as error:  # the next try may do; the lease outlasts two failures
                log.warning("the lease could not be renewed: %s", error)


@contextmanager
def held_lease(ledger: Ledger, service: str, environment: str, who: str) -> Iterator[Held]:
    held = Held(ledger, ledger.take_lease(service, environment, who))
    try:
        yield held
    finally:
        held.free()
