"""Notifications on their way, each target with a thread of its own: one that hangs keeps neither a
rollout nor another target waiting."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import SimpleQueue

from blocks.ports import Notifier
from policy.errors import DafnckError
from policy.notice import Event, Notice

log = logging.getLogger("dafnck")

THE_LOG = ""  # the name of the target that is always there
Make = Callable[[], Notice]  # asks the ledger: in the target's thread, not in the caller's


class _Lane:
    """One target, one thread. What came in while it was sending goes out together."""

    def __init__(self, deliver: Callable[[Sequence[Notice]], None], name: str) -> None:
        self._deliver, self._name = deliver, name
        self._waiting: SimpleQueue[tuple[Callable[..., None], Event, Make] | None] = SimpleQueue()
        # A daemon: what hangs must not keep a process from ending.
        self._thread = threading.Thread(target=self._run, name=f"notify {name}", daemon=True)
        self._thread.start()

    def put(self, event: Event, make: Make) -> None:
        # In the caller's context, so that Prefect knows whose run the log lines belong to.
        self._waiting.put((copy_context().run, event, make))

    def end(self) -> None:
        self._waiting.put(None)

    def ended_by(self, deadline: float) -> bool:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        over = False
        while not over:
            items = [self._waiting.get()]
            while not self._waiting.empty():
                items.append(self._waiting.get())
            over = None in items
            if told := [item for item in items if item is not None]:
                told[-1][0](self._try, ", ".join(e for _, e, _ in told), [m for *_, m in told])

    def _try(self, events: str, makes: Sequence[Make]) -> None:
        try:
            self._deliver([make() for make in makes])
        except DafnckError as error:
            log.warning("notification of %s not sent: %s", events, error)
        except Exception as error:  # its words are not ours and may hold what must not be told
            to = self._name or "the log"
            log.warning("notification of %s to %s not sent: %s", events, to, type(error).__name__)


class Outbox:
    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._lanes: dict[str, _Lane] = {}
        self._lock = threading.Lock()

    def put(self, to: Sequence[str], event: Event, make: Make) -> None:
        """To the log and to these targets. Returns at once."""
        with self._lock:
            for name in (THE_LOG, *to):
                if name not in self._lanes:
                    self._lanes[name] = _Lane(self._way(name), name)
                self._lanes[name].put(event, make)

    def let_go(self) -> None:
        """What is on its way goes on without being waited for, as long as this process lives."""
        self._ended()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Wait for what is on its way, but no longer than this."""
        lanes = self._ended()
        deadline = time.monotonic() + timeout_seconds
        late = [name for name, lane in lanes.items() if not lane.ended_by(deadline)]
        if late:
            log.warning("notifications to %s are not waited for", ", ".join(map(str, late)))

    def _ended(self) -> dict[str, _Lane]:
        with self._lock:
            lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.end()
        return lanes

    def _way(self, name: str) -> Callable[[Sequence[Notice]], None]:
        if name == THE_LOG:
            return self._record
        return lambda notices: self._notifier.send(name, notices)

    def _record(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._notifier.record(notice)
