"""The guard: a small process of the local stack that ends what died. Supervisord keeps it alive.

It looks once a second and remembers nothing but which leases it saw unrenewed, and for how long:
killed anywhere, the next one goes on from the ledger. It loads no Prefect; what needs memory, such
as the charts of a report, runs in a process of its own.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed

from blocks.ledger import Ledger
from blocks.processes import marked
from blocks.stack import Stack, open_stack
from policy.change import PLACE, is_place
from policy.errors import DafnckError, NotApplied, Unreachable
from policy.release import RolloutRecord
from tasks import reconcile
from tasks.change import end_change
from tasks.change_runs import RunsApi, WorkerRuns
from tasks.reconcile import LOOK_SECONDS, Unled, Watch
from tasks.site import Site, site_of

log = logging.getLogger("dafnck")

AT_ONCE = 8  # places: one that drains for a minute keeps no other's traffic waiting
AGAIN_SECONDS = 3.0  # after a failure to end something
LOOKED = "guard-looked"  # a file of the home; when it was touched tells whether it hangs
LATEST_AGAIN_SECONDS = 60.0  # and, in growing steps, when only a repair or time can help

Key = tuple[str, str] | int


class Guard:
    def __init__(
        self,
        ledger: Ledger,
        site_of: Callable[[str, str], Site],
        runs: Callable[[], RunsApi],
        report: Callable[[Site, int], object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._site_of, self._runs, self._report = ledger, site_of, runs, report
        self._monotonic = monotonic
        self._watch = Watch(monotonic)
        self._ending = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="end")
        self._changing = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="change")  # these take long
        self._telling = ThreadPoolExecutor(1, thread_name_prefix="tell")  # never in traffic's way
        # By place to be put right, and by rollout to be told of.
        self._busy: set[Key] = set()
        self._not_before: dict[Key, float] = {}
        self._pauses: dict[Key, float] = {}
        self._silent = ""  # what was said of a ledger that does not answer

    def look(self) -> None:
        """One round. Returns at once; what is to be done is done by threads."""
        try:
            unled, unclosed = self._watch.look(self._ledger), self._ledger.unclosed()
        except Unreachable as error:
            if str(error) != self._silent:
                log.error("%s", error)
            self._silent = str(error)
            return
        self._silent = ""
        for found in unled:
            place = found.service, found.environment
            if is_place(found.service):
                self._later(self._changing, place, partial(self._end_change, found))
            else:
                self._later(self._ending, place, partial(self._end, found))
        for rollout in unclosed:
            self._later(self._telling, rollout.id, partial(self._close, rollout))

    def wait(self) -> None:
        """Until what was begun is done."""
        self._ending.shutdown()
        self._changing.shutdown()
        self._telling.shutdown()

    def _end(self, unled: Unled) -> bool:
        site = self._site_of(unled.service, unled.environment)
        log.info("%s: %s", site, unled.why)
        for phase in reconcile.end(site, unled, "the guard", stays=True):
            log.info("%s: ended as %s", site, phase)
        return True

    def _end_change(self, unled: Unled) -> bool:
        """Take back what a dead leader's change promoted. That is done by rollbacks of the usual
        kind, which workers run."""
        place, api = (unled.service.removeprefix(PLACE), unled.environment), self._runs()
        log.info("the change of %s in %s: %s", *place, unled.why)
        runs = WorkerRuns(api)
        for change in end_change(
            self._ledger, runs, self._site_of, place, unled.why, "the guard", unled.lease
        ):
            log.info("the change %d of %s: %s", change.id, change.stack, change.verdict)
            if change.flow_run_id:
                reconcile.show_as_crashed(api, change.flow_run_id, change.trouble or unled.why)
        return True

    def _close(self, rollout: RolloutRecord) -> bool:
        site = self._site_of(rollout.service, rollout.environment)
        runs = self._runs() if rollout.flow_run_id or rollout.left_run else None
        return reconcile.close(site, rollout, runs, self._report)

    def _later(self, pool: ThreadPoolExecutor, key: Key, act: Callable[[], bool]) -> None:
        if key in self._busy or self._monotonic() < self._not_before.get(key, 0.0):
            return
        self._busy.add(key)
        pool.submit(self._trying, key, act)

    def _trying(self, key: Key, act: Callable[[], bool]) -> None:
        done, patient = False, isinstance(key, int)
        try:
            done = act()
        except NotApplied as error:  # no replica gets ready: each try may take its start time
            patient = True
            log.error("%s", error)
        except DafnckError as error:
            log.error("%s", error)
        except Exception:
            log.exception("a fault in the guard; it tries again")
        finally:
            if done:
                self._pauses.pop(key, None)
                self._not_before.pop(key, None)
            else:
                pause = AGAIN_SECONDS
                if patient:
                    pause = min(self._pauses.get(key, pause / 2) * 2, LATEST_AGAIN_SECONDS)
                    self._pauses[key] = pause
                self._not_before[key] = self._monotonic() + pause
            self._busy.discard(key)


def report_elsewhere(site: Site, rollout_id: int) -> None:
    """In another process: drawing takes memory that the guard shall not keep. Raises DafnckError
    when it was not written."""
    words = ["report", site.service, "--env", site.environment, "--rollout", str(rollout_id)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.cli", *words],
            env=marked(os.environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DafnckError(f"the report of rollout {rollout_id} was not written: {error}") from error
    if done.returncode != 0:
        raise DafnckError(f"the report of rollout {rollout_id} was not written: {done.stderr}")


@cache
def _flow_runs() -> RunsApi:
    """One client for ever: `dafnck up` starts the guard anew when the server is another one."""
    from blocks.prefect_api import stack_api  # only when something died: memory

    return stack_api(open_stack())


def _ledger(stack: Stack) -> Ledger:
    """A ledger that does not answer yet is waited for, here and not by ending again and again."""

    def waits(tried: RetryCallState) -> None:
        _looked(stack)
        log.error("%s", tried.outcome and tried.outcome.exception())

    _looked(stack)
    again = Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_fixed(LOOK_SECONDS),
        before_sleep=waits,
    )
    return again(Ledger, stack.ledger_url)


def _looked(stack: Stack) -> None:
    (stack.home / LOOKED).touch()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stack = open_stack()
    ledger = _ledger(stack)
    guard = Guard(
        ledger,
        lambda *place: site_of(stack, ledger, *place),
        _flow_runs,
        report_elsewhere,
    )
    log.info("watching the rollouts in %s", stack.home)
    while True:
        guard.look()
        _looked(stack)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
