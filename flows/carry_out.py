"""A rollout from its first action to its last: decide from what is seen, do it, look again."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals

from prefect.exceptions import TerminationSignal

from policy.errors import DafnckError, LeaseLost, NotAllowed, Unreachable
from policy.notice import Event
from policy.release import UNLED, Phase, Release, RolloutRecord
from policy.rollout import (
    AskApproval,
    CleanUp,
    Finish,
    Freeze,
    Plan,
    Promote,
    RollBack,
    Shift,
    ShrinkStable,
    StartNew,
    Stop,
    Wait,
    next_action,
)
from tasks import put_back, traffic, workloads
from tasks.lease import Held
from tasks.look import Eyes
from tasks.notify import decided, tell
from tasks.prefect_run import OwnRun
from tasks.publish import Publisher
from tasks.signals import ending_signals
from tasks.site import Site
from tasks.smoke import smoke_test

log = logging.getLogger("dafnck")
log.setLevel(logging.INFO)  # these lines are the story that Prefect's UI shows


class TurnBack(DafnckError):
    """In the middle of a long wait, going back became due."""

    exit_code = 1


@dataclass
class Progress:
    """What must be known about a rollout even when the ledger cannot be asked."""

    promoted: bool = False
    no_way_back: bool = False  # its migration forbids to give traffic back


def carry_out(
    site: Site,
    rollout: RolloutRecord,
    new: Release,
    plan: Plan,
    lease: Held,
    publisher: Publisher,
    progress: Progress,
) -> Phase:
    """Run the plan to its end. -> the phase it ended in."""
    eyes = Eyes(site, rollout, new, lease.check)
    progress.no_way_back = progress.no_way_back or plan.no_way_back(eyes.peak)

    def cancelled() -> None:
        eyes.cancelled = "cancelled in Prefect"
        eyes.interrupted.set()

    def told_to_end(number: Signals) -> None:
        """Heard of here when the exception that it raises goes nowhere."""
        eyes.cancelled = f"its process was told to end ({number.name})"
        eyes.interrupted.set()

    def resumed() -> None:
        site.ledger.approve(rollout.id, "somebody in the Prefect UI")
        eyes.interrupted.set()

    looked_at = 0.0

    def still_good() -> None:
        """Long waits look up once a second: what is due then may be the way back."""
        nonlocal looked_at
        if time.monotonic() - looked_at > 1:
            looked_at = time.monotonic()
            if isinstance(due := next_action(plan, eyes.look()), RollBack | Freeze):
                eyes.tell(due)
                raise TurnBack(due.reason)

    with eyes, ending_signals(told_to_end), OwnRun(cancelled, resumed) as own_run:
        while not isinstance(action := next_action(plan, eyes.look()), Stop):
            if not isinstance(action, Wait | AskApproval):
                eyes.tell(action)
                publisher.table("steps", _steps(site, rollout), f"Release of {new.version}")
            match action:
                case StartNew(replicas):
                    ready = workloads.start_replicas(site, rollout.id, new, replicas, still_good)
                    on = eyes.known.shares.get(new.id, 0) > 0
                    traffic.preview(site, rollout, new, ready, cohort_on=on)
                    if not on:
                        smoke_test(site, rollout, new, still_good, preview=True)
                case Shift(share):
                    progress.no_way_back = plan.no_way_back(max(share, eyes.peak))
                    traffic.shift_traffic(site, rollout, new, share, eyes)
                case Wait() | AskApproval():
                    traffic.watch(site, rollout, plan, eyes, own_run)
                case ShrinkStable(replicas):
                    workloads.shrink_stable(site, rollout, replicas, still_good)
                case Promote(reason):
                    # While the old release still runs: failing, all goes back to it at once.
                    smoke_test(site, rollout, new, still_good, preview=False)
                    progress.promoted = True  # or about to be: nobody can say when this is cut off
                    traffic.promote(site, rollout, new, reason)
                case Finish():
                    traffic.finish(site, rollout)
                case RollBack(reason):
                    traffic.roll_back(site, rollout, reason)
                    decided(site, rollout, action)
                case Freeze(reason):
                    decided(site, rollout, action)
                    put_back.put_back(site, rollout.id, reason)
                case CleanUp():
                    traffic.clean_up(site, rollout)
        eyes.sample()
        publisher.table("steps", _steps(site, rollout), f"Release of {new.version}")
    return site.ledger.rollout(rollout.id).phase


def _steps(site: Site, rollout: RolloutRecord) -> list[dict[str, object]]:
    return [
        {
            "after": f"{row['at'] - rollout.started_at:.1f} s",
            "decision": row["action"],
            "share": f"{row['share']}%",
            "verdict": row["verdict"] or "",
            "why": row["reason"],
        }
        for row in site.ledger.decisions(rollout.id)
    ]


@contextmanager
def whole_or_nothing(site: Site, rollout: RolloutRecord) -> Iterator[Progress]:
    """However the body is left, the rollout is ended: an exception, a signal, a cancellation gives
    the traffic back to the stable release first, in this process, before anything else."""
    progress = Progress()
    try:
        yield progress
    except LeaseLost:
        raise  # somebody else acts for this rollout now
    except BaseException as error:
        words = in_words(error)
        log.warning("%s", words.splitlines()[0])
        try:
            ended = site.ledger.rollout(rollout.id).phase in UNLED
        except Unreachable as silent:
            # Nothing can be written down; traffic goes back all the same. What is left is ended by
            # whoever takes the lease next.
            log.error("%s", silent)
            if not progress.promoted and not progress.no_way_back:
                put_back.traffic_to_stable(site, rollout, words)
            raise error from None
        if not ended:
            tell(site, rollout, Event.FAIL, words)
            try:
                put_back.put_back(site, rollout.id, words)
            except NotAllowed as locked_out:
                raise Unreachable(
                    f"{words}; its traffic stays as it is until we are let in: {locked_out}"
                ) from error
        raise


def in_words(error: BaseException) -> str:
    """Why the rollout ended, for the ledger and people."""
    if isinstance(error, DafnckError):
        return str(error)
    if isinstance(error, TerminationSignal):
        return "its process was told to stop (SIGTERM), as a cancellation does"
    if isinstance(error, SystemExit):
        return "its process was told to end, as when its worker dies"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return f"{type(error).__name__}: {error}"
