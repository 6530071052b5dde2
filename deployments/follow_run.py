"""Follows a flow run by Prefect's API: every state and every line of its log, once, to the end."""

import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from blocks.remote_prefect import RemotePrefect
from deployments.interrupts import Interrupts
from deployments.tell import Teller
from policy.errors import DafnckError, NotAllowed, Refused, Unreachable
from policy.release import TERMINAL

LOOK_SECONDS = 1.0
LATE_SECONDS = 10.0  # processes send their lines in batches, each at its own pace
LAST_LINES_SECONDS = 4.0  # so long without a new one: a batch leaves every two seconds
LAST_LINES_AT_MOST = 20.0
NO_WORKER_SECONDS = 20.0
AWAY_SECONDS = 300.0
CANCEL_SECONDS = 600.0
BEFORE_IT_RUNS = ("SCHEDULED", "PENDING")


@dataclass(frozen=True)
class Manner:
    """How a run is followed."""

    cancel_on_interrupt: bool = False
    timeout_seconds: float | None = None
    away_seconds: float = AWAY_SECONDS


class Left(DafnckError):
    """Nobody follows the run any more; it goes on."""

    def __init__(self, words: str, exit_code: int) -> None:
        super().__init__(words)
        self.exit_code = exit_code


class Follower:
    def __init__(
        self,
        api: RemotePrefect,
        flow_run_id: str,
        pool: str | None,
        teller: Teller,
        interrupts: Interrupts,
        manner: Manner,
    ) -> None:
        """`pool`: the work pool that the run waits in."""
        self._api, self._id, self._pool, self._teller = api, flow_run_id, pool, teller
        self._interrupts, self._manner = interrupts, manner
        self._lines = Lines(api, flow_run_id, teller)
        self._began = time.monotonic()
        self._states_told: set[str] = set()
        self._away_since: float | None = None
        self._no_worker_told = False
        self._cancelled_at: float | None = None  # when it was wanted
        self._cancel_sent = False

    def to_the_end(self) -> dict[str, Any]:
        """-> the end state: type, name, message. Raises Left for an interrupt or the time limit,
        Unreachable when the server stays away."""
        while True:
            state: dict[str, Any] = {}
            try:
                state = self._look()
            except NotAllowed as error:
                raise Unreachable(f"{error}. The run goes on: {self._link}") from None
            except Refused as error:
                raise Unreachable(f"the run is not there any more: {error}") from None
            except Unreachable as error:
                self._away(error)
            if state.get("type") in TERMINAL:
                return state
            self._turn_to_interrupts()
            if self._cancelled_at is None or self._cancel_sent or self._away_since is not None:
                # Otherwise cancel at once: a CI system does not let us live for long.
                self._interrupts.wait(LOOK_SECONDS)

    @property
    def _link(self) -> str:
        return self._api.link(self._id)

    def _look(self) -> dict[str, Any]:
        state: dict[str, Any] = self._api.run(self._id)["state"] or {}
        ended = state.get("type") in TERMINAL
        if not ended:
            self._cancel_if_wanted()
        self._tell_states(state, with_it=not ended)  # before the lines that they bring
        self._lines.more()
        if self._away_since is not None:
            self._away_since = None
            self._teller.line("Prefect's API answers again")
        self._tell_who_waits(state)
        if ended:
            self._lines.last()
            self._tell_state(state)
        return state

    def _tell_states(self, now: dict[str, Any], *, with_it: bool) -> None:
        """Also those that came and went between two looks."""
        if now and now["id"] not in self._states_told:
            for state in self._api.states(self._id):
                # One that came since is told at the next look, after the lines that it ends.
                if state["timestamp"] < now["timestamp"]:
                    self._tell_state(state)
            if with_it:
                self._tell_state(now)

    def _tell_state(self, state: dict[str, Any]) -> None:
        if state["id"] in self._states_told:
            return
        self._states_told.add(state["id"])
        message = state.get("message") or ""
        text = f"state: {state['name']}" + (f": {message}" if message else "")
        if state["type"] == "PAUSED":
            text += f"\nwaits for a person: resume (approve) or cancel it at {self._link}"
        at = datetime.fromisoformat(state["timestamp"]).timestamp()
        bad = state["type"] in ("FAILED", "CRASHED")
        self._teller.line(text, at=at, level=40 if bad else 20)
        self._teller.now(state["name"])

    def _tell_who_waits(self, state: dict[str, Any]) -> None:
        waits = state.get("type") in BEFORE_IT_RUNS
        late = time.monotonic() - self._began > NO_WORKER_SECONDS
        if waits and late and not self._no_worker_told:
            self._no_worker_told = True
            try:
                why = self._api.waits_for(self._pool)
            except Refused as error:  # the pool was removed
                why = str(error)
            self._teller.line(f"still {state['name']}: {why}", level=30)

    def _away(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            minutes = self._manner.away_seconds / 60
            words = f"{error}\nthe run goes on without it; tries again for {minutes:g} minutes"
            self._teller.line(words, level=30)
        if now - self._away_since > self._manner.away_seconds:
            raise Unreachable(f"{error}; how the run went on is not known here: {self._link}")

    def _turn_to_interrupts(self) -> None:
        now, limit = time.monotonic(), self._manner.timeout_seconds
        out_of_time = limit is not None and now - self._began > limit
        if self._cancelled_at is not None:
            if now - self._cancelled_at > CANCEL_SECONDS:
                raise Unreachable(
                    f"the run was told to cancel {CANCEL_SECONDS:g} s ago and has not ended; does "
                    f"its worker run? {self._link}"
                )
            return
        if self._interrupts.number is None and not out_of_time:
            return
        why = f"not ended within {limit:g} s" if out_of_time else "interrupted"
        if not self._manner.cancel_on_interrupt:
            code = 3 if out_of_time else self._interrupts.exit_code
            raise Left(f"{why}; the run goes on. To see or cancel it: {self._link}", code)
        self._cancelled_at = now
        self._teller.line(f"{why}: cancels the run; once more to leave at once", level=30)

    def _cancel_if_wanted(self) -> None:
        if self._cancelled_at is not None and not self._cancel_sent:
            self._api.set_state(self._id, "CANCELLING", "cancelled by dafnck trigger")
            self._cancel_sent = True


class Lines:
    """The log of a run. Lines of one time may come in any order, and late: each is known by its id,
    looks overlap, and after the end everything is read once more from the start."""

    def __init__(self, api: RemotePrefect, flow_run_id: str, teller: Teller) -> None:
        self._api, self._id, self._teller = api, flow_run_id, teller
        self._told: set[str] = set()
        self._newest: datetime | None = None
        self._names: dict[str, str] = {}

    def more(self, everything: bool = False) -> bool:
        """-> whether there were any."""
        newest = None if everything else self._newest
        after = (newest - timedelta(seconds=LATE_SECONDS)).isoformat() if newest else None
        offset, longest, before = 0, 0, len(self._told)
        while page := self._api.logs(self._id, after, offset):
            new = [line for line in page if line["id"] not in self._told]
            self._tell(new)
            # By time and not by number: a line that comes in between shifts the numbers.
            if page[-1]["timestamp"] != after:
                after, offset = page[-1]["timestamp"], 0
            elif new or len(page) >= longest:  # more of this one time may follow
                offset += len(page)
            else:
                break
            longest = max(longest, len(page))
        return len(self._told) > before

    def last(self) -> None:
        """Those that were still on their way when the run ended."""
        began = new_at = time.monotonic()
        while (now := time.monotonic()) - new_at < LAST_LINES_SECONDS:
            if self.more(everything=True):
                new_at = now
            if now - began > LAST_LINES_AT_MOST:
                return
            time.sleep(LOOK_SECONDS / 2)

    def _tell(self, lines: list[dict[str, Any]]) -> None:
        self._learn_names(lines)
        for line in lines:
            self._told.add(line["id"])
            at = datetime.fromisoformat(line["timestamp"])
            self._newest = max(at, self._newest or at)
            if _says_the_end_again(line["message"]):
                continue
            name = self._names.get(line.get("task_run_id") or "")
            text = f"{name}: {line['message']}" if name else line["message"]
            self._teller.line(text, at=at.timestamp(), level=line["level"])

    def _learn_names(self, lines: list[dict[str, Any]]) -> None:
        tasks = {line["task_run_id"] for line in lines if line.get("task_run_id")}
        if unknown := sorted(tasks - set(self._names)):
            for task_run_id, name in self._api.task_names(unknown).items():
                self._names[task_run_id] = re.sub(r"-[0-9a-f]{3}$", "", name)


def _says_the_end_again(message: str) -> bool:
    """Prefect's engine logs every failed state that a flow returns once more, as a traceback of
    its own inside. What a flow raised has a line of its own."""
    last = message.rstrip().rpartition("\n")[2]
    return message.startswith("Engine execution exited") and last.startswith(
        "prefect.exceptions.FailedRun:"
    )
