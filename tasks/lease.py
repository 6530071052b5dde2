"""Holds the lease of a service in an environment while a rollout acts on it."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from blocks.ledger import LEASE_SECONDS, Ledger
from policy.errors import LeaseLost, Unreachable

log = logging.getLogger("dafnck")


class Held:
    """The lease and whether it is still ours."""

    def __init__(self, ledger: Ledger, token: str) -> None:
        self.token = token
        self._ledger = ledger
        self._lost = ""
        self._renewed_at = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost when another process took over: it acts now, we must not. Raises
        Unreachable when the ledger was silent for so long that another one might."""
        if self._lost:
            raise LeaseLost(self._lost)
        if (stale := time.monotonic() - self._renewed_at) > LEASE_SECONDS:
            raise Unreachable(f"the lease could not be renewed for {stale:.0f}s; giving up")

    def free(self) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._ledger.free_lease(self.token)
        except Unreachable as error:
            log.warning("the lease was not given back and will lapse: %s", error)

    def _renew(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 3):
            try:
                self._ledger.renew_lease(self.token)
                self._renewed_at = time.monotonic()
            except LeaseLost as lost:
                self._lost = str(lost)
                return
            except Unreachable as error:  # the next try may do; the lease outlasts two failures
                log.warning("the lease was not renewed: %s", error)


@contextmanager
def held_lease(ledger: Ledger, service: str, environment: str, who: str) -> Iterator[Held]:
    held = Held(ledger, ledger.take_lease(service, environment, who))
    try:
        yield held
    finally:
        held.free()
