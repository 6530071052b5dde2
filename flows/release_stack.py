"""Releases several services as one change: in their order, all of them, or all go back."""

from functools import partial
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from blocks.checkouts import version_of
from blocks.ledger import Ledger
from blocks.prefect_api import stack_api
from blocks.stack import Stack, open_stack
from flows import hooks
from flows.carry_out import in_words
from flows.ended import failed
from flows.release import SHORT, release
from flows.rollback import rollback
from policy.change import ChangeRecord, ChangeVerdict, MemberRecord
from policy.errors import DafnckError, Inconsistent, LeaseLost, RolledBack
from tasks.change import Change, end_under, held_change, left_unfinished
from tasks.change_report import rows, what_is_true
from tasks.change_rules import may_begin
from tasks.change_runs import Runs, WorkerRuns
from tasks.lease import Held
from tasks.prefect_run import OwnRun, flow_run_id
from tasks.publish import Publisher, published
from tasks.read_stack import WantedStack, is_stack_file, read_stack, stack_name
from tasks.site import site_of
from tasks.source import source_file

LEFT = "its process died before it could end the change"


def run_name() -> str:
    """'checkout 1.4.2 → prod'; the file's name when it cannot be read, which the flow then says."""
    given = flow_run.parameters
    file, commit = Path(given["stack_file"]), (given.get("commit") or "")[:SHORT]
    if given.get("git") and given.get("content") is not None and given.get("environment"):
        # Not here yet; whoever triggers a release looks for this name among what came since.
        if stack := stack_name(file, given["content"]):
            return f"{stack} {given.get('version') or commit} → {given['environment']}"
    if given.get("git") or not is_stack_file(file):
        return f"release of {file}" + (f" at {commit}" if commit else "")
    try:
        wanted = read_stack(file, given.get("environment"))
    except DafnckError:
        return f"release of {file}"
    version = given.get("version") or version_of(file.parent)
    return f"{wanted.stack.stack} {version} → {wanted.environment}"


@flow(
    name="release_stack",
    flow_run_name=run_name,
    validate_parameters=True,
    on_failure=[hooks.end_change],
    on_crashed=[hooks.end_change],
    on_cancellation=[hooks.end_change],
)
def release_stack(
    stack_file: str,
    environment: str | None = None,
    version: str | None = None,
    freeze_override: str | None = None,
    by: str = "somebody in the Prefect UI",
    git: str | None = None,
    commit: str | None = None,
    content: str | None = None,
    here: bool = False,
) -> State[Any]:
    """Release several services as their stack file says: each by a run of `release`, in their
    order. When one of them is not promoted, those that were are taken back, last one first.

    Args:
        stack_file: its path on the machine of the worker, or within the repository
        environment: which of their environments; may be left out when there is only one
        version: what people call all of these releases; default: what git calls the source
        freeze_override: why it may begin although a freeze window of one of them is open
        by: who says so, for the record
        git: URL of a repository, of which a clean checkout is released; without a password
        commit: the whole id of the commit, with git
        content: what the stack file says, when it says something else than in that commit
        here: release them in this process, one after the other, and not by workers
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        file = source_file(stack, stack_file, git, commit, content)
        wanted = read_stack(file, environment)
        version = version or (commit or "")[:SHORT] or version_of(file.parent)
        parameters = {
            "environment": wanted.environment,
            "version": version,
            "freeze_override": (freeze_override or "").strip() or None,
            "by": by,
            "git": git,
            "commit": commit,
        }
        with stack_api(stack) as api:
            runs = HereRuns() if here else WorkerRuns(api)
            change = _release_all(stack, ledger, wanted, stack_file, parameters, runs)
        words = what_is_true(ledger, change)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if change.verdict == ChangeVerdict.PROMOTED:
        return Completed(message=words)
    back = change.verdict == ChangeVerdict.ROLLED_BACK
    return failed(RolledBack(words) if back else Inconsistent(words))


def _release_all(
    stack: Stack,
    ledger: Ledger,
    wanted: WantedStack,
    file: str,
    parameters: dict[str, Any],
    runs: Runs,
) -> ChangeRecord:
    name, environment, version = wanted.stack.stack, wanted.environment, parameters["version"]
    sites = partial(site_of, stack, ledger)
    with (
        published(f"{name}-{environment}-change") as publisher,
        held_change(ledger, name, environment, f"change {version}") as held,
    ):
        for left in left_unfinished(ledger, name, environment):
            end_under(held, ledger, Change(ledger, left, runs, sites), LEFT)
        may_begin(stack, ledger, wanted, ledger.clock(), parameters)
        record = ledger.open_change(
            name,
            environment,
            _members(wanted, file, parameters),
            token=held.token,
            version=version,
            file=file,
            at_once=wanted.stack.at_once,
            by=parameters["by"],
            flow_run_id=flow_run_id(),
        )
        show = partial(_show, ledger, record, publisher)
        change = Change(ledger, record, runs, sites, lambda action: show())
        try:
            return _led(change, held, runs)
        finally:
            show()


def _members(wanted: WantedStack, file: str, parameters: dict[str, Any]) -> list[MemberRecord]:
    """Their files lie where the stack file lies: on this machine, or within the repository."""
    here = Path(file) if parameters["git"] else wanted.file
    return [
        MemberRecord(
            change_id=0,
            service=name,
            position=position,
            after=tuple(member.after),
            parameters={**parameters, "service_file": _within(here.parent, member.file)},
        )
        for position, (name, member) in enumerate(wanted.stack.services.items())
    ]


def _within(folder: Path, file: str) -> str:
    from os.path import normpath

    return normpath(folder / file)


def _led(change: Change, held: Held, runs: Runs) -> ChangeRecord:
    """However it is left, what rolls out goes back: an exception, a signal, a cancellation. That
    is looked for here, as no worker may be there who stops this process: then it takes back all."""
    try:
        with OwnRun(lambda: change.abandon("cancelled in Prefect"), lambda: None):
            return change.lead(held)
    except LeaseLost:
        raise  # somebody else leads it now
    except BaseException as error:
        change.abandon(in_words(error))
        if isinstance(runs, HereRuns):  # nobody else may be there who takes the others back
            change.lead(held)
        raise


def _show(ledger: Ledger, record: ChangeRecord, publisher: Publisher) -> None:
    now = ledger.change(record.id)
    title = f"{now.stack} {now.version} → {now.environment}: {now.verdict or 'under way'}"
    publisher.table("services", rows(ledger, now), title)


class HereRuns:
    """Releases and rollbacks in this process, each to its end before the next one begins."""

    def __init__(self) -> None:
        self._ended: dict[str, str] = {}

    def begin(self, flow: str, parameters: dict[str, Any], name: str, key: str) -> str:
        run = {"release": release, "rollback": rollback}[flow]
        state: Any = run(**parameters, return_state=True)  # type: ignore[operator]
        self._ended[key] = str(state.message or state.name)
        return key

    def find(self, key: str) -> str | None:
        return key if key in self._ended else None

    def ended(self, run_id: str) -> str | None:
        return self._ended.get(run_id, "its process is gone")

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        """What runs here has the same signals as we."""
