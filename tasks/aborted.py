"""Has what runs long end at once when somebody aborts the rollout: nobody looks at it meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from policy.errors import DafnckError, Unreachable
from tasks.site import Site

LOOK_SECONDS = 0.5


class Aborted(DafnckError):
    exit_code = 1


@contextmanager
def until_aborted(site: Site, rollout_id: int | None) -> Iterator[threading.Event]:
    """The event is set when the body shall end. Raises Aborted after it then, whatever the body
    itself made of it."""
    over, done, why = threading.Event(), threading.Event(), ""

    def watch() -> None:
        nonlocal why
        while rollout_id is not None and not done.wait(LOOK_SECONDS):
            with suppress(Unreachable):  # asked again in a moment
                if reason := site.ledger.rollout(rollout_id).abort_reason:
                    why = reason
                    over.set()
                    return

    thread = threading.Thread(target=watch, name="until-aborted", daemon=True)
    thread.start()
    try:
        yield over
    finally:
        done.set()
        thread.join()
        if why:
            raise Aborted(f"{why}; nothing was started, what served serves")
