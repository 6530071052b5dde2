"""A release, a rollback or a guard as a real process that SIGKILLs itself at one chosen boundary.

A boundary lies before and after each write to the ledger that says what is intended, what came out
of it and how far a rollout got. The driver wraps the ledger's methods in its own process: there is
no hook for it in the product.

    python tests/killed_process.py    is the guard of the stack in DAFNCK_HOME, driven by files:
    <home>/kill/<service> holds at which boundary of that service it kills itself, once
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = (
    "_insert_lease",
    "open_rollout",
    "add_release",
    "set_phase",
    "_intend",
    "_outcome",
    "promote",
    "take_over",
    "free_lease",
    "close_rollout",
)


def at_boundaries(reached: Callable[[str], None]) -> None:
    """Call this before and after each of those writes of this process, with its name."""
    from blocks.ledger import Ledger

    def wrap(name: str) -> None:
        real = getattr(Ledger, name)

        @functools.wraps(real)
        def around(*arguments: Any, **named: Any) -> Any:
            what = next((a for a in arguments[1:] if isinstance(a, str) and len(a) < 40), "")
            reached(f"before {name} {what}")
            answer = real(*arguments, **named)
            reached(f"after {name} {what}")
            return answer

        setattr(Ledger, name, around)

    for name in WRITES:
        wrap(name)


class Count:
    """Kills this process at the n-th boundary, or when an act has its outcome; writes down what it
    passed."""

    def __init__(self, at: int | str, passed: Path) -> None:
        self._at, self._passed, self._count = at, passed, 0
        self._intended = False
        self._lock = threading.Lock()

    def __call__(self, boundary: str) -> None:
        with self._lock:
            self._count += 1
            with self._passed.open("a") as file:
                file.write(f"{boundary}\n")
            done = self._intended and boundary.startswith("after _outcome")
            self._intended = self._intended or boundary == f"after _intend {self._at}"
            if done or self._count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


def flow(
    kind: str,
    parameters: dict[str, Any],
    at: int | str,
    passed: str,
    abort_at_shift: bool,
    kubeconfig: str | None,
) -> None:
    """Run a flow in this process, which dies at boundary `at` (0: never), or after that act.

    `kubeconfig` is given by value: a forked process has the environment in which the fork server
    began, maybe of an earlier test.
    """
    os.setsid()
    os.environ.pop("KUBECONFIG", None)
    if kubeconfig:
        os.environ["KUBECONFIG"] = kubeconfig
    quiet = os.open(f"{passed}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    at_boundaries(Count(at, Path(passed)))
    if abort_at_shift:
        _abort_after_the_first_shift()
    from flows.release import release
    from flows.rollback import rollback

    (release if kind == "release" else rollback)(**parameters, return_state=True)


def _abort_after_the_first_shift() -> None:
    """As if a person said so: the rollout is then rolled back by its own process."""
    from blocks.ledger import Ledger

    intend: Any = Ledger._intend

    def aborting(self: Ledger, rollout_id: int, act: str, *others: Any, **named: Any) -> Any:
        if act == "shift":
            self.abort(rollout_id, "aborted by the test")
        return intend(self, rollout_id, act, *others, **named)

    Ledger._intend = aborting  # type: ignore[method-assign]


def guard() -> None:
    """The real guard, which looks before each boundary whether it is to die there."""
    from blocks.stack import open_stack
    from deployments.guard import main
    from tasks import reconcile

    orders = open_stack().home / "kill"
    of_thread = threading.local()

    def reached(boundary: str) -> None:
        service = getattr(of_thread, "service", None)
        order = orders / str(service)
        if service is None or not order.exists():
            return
        left = int(order.read_text()) - 1
        with (orders / f"{service}.passed").open("a") as file:
            file.write(f"{boundary}\n")
        if left == 0:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        order.write_text(str(left))

    def told(name: str) -> None:
        real: Any = getattr(reconcile, name)

        def around(site: Any, *arguments: Any, **named: Any) -> Any:
            of_thread.service = site.service
            return real(site, *arguments, **named)

        setattr(reconcile, name, around)

    told("end")
    told("close")
    at_boundaries(reached)
    main()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    guard()
