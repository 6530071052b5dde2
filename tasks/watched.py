"""Has what runs long end at once when there is a reason: whoever waits for it looks meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from policy.errors import DafnckError, Unreachable
from tasks.site import Site

LOOK_SECONDS = 0.5


class Aborted(DafnckError):
    exit_code = 1


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[threading.Event]:
    """`look` is called now and then while the body runs. What it raises sets the event, which shall
    end the body, and is raised after it, whatever the body made of that."""
    over, done = threading.Event(), threading.Event()
    found: list[DafnckError] = []

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            try:
                look()
            except DafnckError as error:
                found.append(error)
                over.set()
                return

    thread = threading.Thread(target=watch, name="watched", daemon=True)
    thread.start()
    try:
        yield over
    finally:
        done.set()
        thread.join()
        if found:
            raise found[0]


@contextmanager
def until_aborted(site: Site, rollout_id: int | None) -> Iterator[threading.Event]:
    """The event is set when somebody aborts the rollout. Raises Aborted then."""

    def look() -> None:
        reason = None
        if rollout_id is not None:
            with suppress(Unreachable):  # asked again in a moment
                reason = site.ledger.rollout(rollout_id).abort_reason
        if reason:
            raise Aborted(f"{reason}; nothing was started, what served serves")

    with watched(look) as over:
        yield over
