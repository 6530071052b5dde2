"""This flow run as Prefect's server sees it: cancelled by somebody, paused for a person, resumed.

A server that does not answer changes nothing: the rollout goes on, the ledger decides.
"""

import logging
import threading
from collections.abc import Callable

from prefect.context import FlowRunContext

from blocks.prefect_api import own_api
from policy.errors import Refused, Unreachable

log = logging.getLogger("dafnck")


def flow_run_id() -> str | None:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


class OwnRun:
    """Watches the state of the flow run that this code is part of; nothing outside of a flow."""

    def __init__(self, on_cancel: Callable[[], None], on_resume: Callable[[], None]) -> None:
        self._id = flow_run_id()
        self._api = own_api() if self._id else None
        self._on_cancel, self._on_resume = on_cancel, on_resume
        self._paused = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watching, name="own-run", daemon=True)

    def __enter__(self) -> "OwnRun":
        if self._api is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._api is not None:
            self._thread.join()
            self._api.__exit__()

    def pause(self, until: str) -> None:
        """Show the run as paused; the UI then offers to resume it, which is the approval.
        `until`: ISO time at which Prefect gives up waiting."""
        if self._paused or not self._set("PAUSED", pause_timeout=until, pause_key="approval"):
            return
        self._paused = True

    def go_on(self) -> None:
        """Show the run as running again, after the ledger or the judge brought the answer."""
        if self._paused:
            self._paused = False
            self._set("RUNNING")

    def _set(self, kind: str, **details: str) -> bool:
        if self._id is None or self._api is None:
            return False
        try:
            self._api.set_state(self._id, kind, force=True, **details)
        except (Unreachable, Refused) as error:
            log.warning("the run cannot be shown as %s: %s", kind.lower(), error)
            return False
        return True

    def _watching(self) -> None:
        assert self._id
        assert self._api
        while not self._over.wait(0.5):
            waiting = self._paused  # before asking: what is read may be older than a pause
            try:
                kind = self._api.state(self._id).get("type")
                if kind in ("CANCELLING", "CANCELLED"):
                    self._on_cancel()
                    return
                if waiting and self._paused and kind == "RUNNING":
                    self._paused = False
                    self._on_resume()
            except (Unreachable, Refused):
                continue  # the next look is half a second away
