"""Starts a flow by Prefect's API alone, once for the same commit, and follows it to its end.

For CI jobs: neither a local stack nor the ledger is needed here, nor a checkout at the worker.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from getpass import getuser
from pathlib import Path
from typing import Any

from blocks.git_source import GitSource, git_source
from blocks.remote_prefect import RemotePrefect, remote_prefect
from deployments.follow_run import Follower, Left, Manner
from deployments.interrupts import Interrupts
from deployments.tell import Teller, plain
from policy.errors import BadInput, DafnckError, NotAllowed, Refused, Unreachable, exit_code_of
from policy.release import TERMINAL
from tasks.read import configuration, read_service, with_image
from tasks.read_stack import is_stack_file, read_stack

STACK_FLOW = "release_stack"
PEOPLE = ("GITHUB_ACTOR", "GITLAB_USER_LOGIN", "BUILD_USER_ID")  # who started the CI job


@dataclass(frozen=True)
class Wish:
    """What is to be done, whoever asks for it and however often."""

    flow: str
    deployment: str
    service: str
    environment: str
    version: str
    source: GitSource
    content: str
    freeze_override: str | None = None
    image: str | None = None

    @property
    def name(self) -> str:
        return f"{self.service} {self.version} → {self.environment}"

    @property
    def key(self) -> str:
        """The same for the same wish: Prefect makes one run of it. Its keys are a flow's, so the
        deployment is part of it."""
        parts = [
            self.deployment,
            self.service,
            self.environment,
            self.version,
            self.source.url,
            self.source.commit,
            self.source.path,
            self.content,
            self.freeze_override,
            *([self.image] if self.image else []),
        ]
        return "dafnck-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def tags(self) -> list[str]:
        return [f"{self.service}/{self.environment}"]

    def parameters(self, by: str) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "stack_file" if self.flow == STACK_FLOW else "service_file": self.source.path,
            "environment": self.environment,
            "version": self.version,
            "by": by,
            "git": self.source.url,
            "commit": self.source.commit,
            "content": self.content,
        }
        if self.flow != "pipeline":  # which releases nothing
            parameters["freeze_override"] = self.freeze_override
        if self.flow == "release":
            parameters["image"] = self.image
        return parameters


@dataclass(frozen=True)
class Outcome:
    """What `--json` prints."""

    flow_run_id: str | None = None
    url: str | None = None
    joined: bool = False  # the run was there before
    state: str | None = None
    message: str = ""
    exit_code: int = 3
    service: str | None = None
    environment: str | None = None
    version: str | None = None
    commit: str | None = None


def wish_of(
    file: Path,
    environment: str | None,
    version: str | None,
    *,
    git: str | None,
    commit: str | None,
    flow: str,
    deployment: str,
    freeze_override: str | None,
    image: str | None = None,
) -> Wish:
    """Raises BadInput, with line and key for a mistake in the file. The wish of a stack file goes
    by the name of its stack."""
    if is_stack_file(file):
        if flow != "release":
            raise BadInput(f"{file} is of several services: a {flow} takes the file of one")
        if image is not None:
            raise BadInput(f"{file} is of several services: --image is of one; nothing was started")
        stack = read_stack(file, environment)
        flow, name, chosen = STACK_FLOW, stack.stack.stack, stack.environment
        source = git_source(file, git, commit)
    else:
        wanted, chosen = read_service(file, environment)
        wanted = with_image(wanted, image)
        name = wanted.service
        source = git_source(file, git, commit)
        if source.here:
            configuration(wanted, chosen, file)
    return Wish(
        flow=flow,
        deployment=deployment,
        service=name,
        environment=chosen,
        version=version or source.commit[:12],
        source=source,
        content=file.read_text(encoding="utf-8"),
        freeze_override=freeze_override,
        image=image,
    )


def run(
    asked: Callable[[], Wish], manner: Manner, *, wait: bool, again: bool, as_json: bool
) -> int:
    """-> exit code. With `as_json` one object on stdout, also when an error is raised."""
    with _told_as_json(as_json) as told, Teller(as_json) as teller:
        wish = asked()
        told.last = replace(
            told.last,
            service=wish.service,
            environment=wish.environment,
            version=wish.version,
            commit=wish.source.commit,
        )
        for doubt in wish.source.doubts:
            teller.line(doubt, level=30)
        with remote_prefect(os.environ) as api, Interrupts() as interrupts:
            try:
                begun = _begin(api, wish, again, teller, interrupts)
                told.last = replace(
                    told.last,
                    flow_run_id=begun.run["id"],
                    url=api.link(begun.run["id"]),
                    joined=not begun.new,
                    state=begun.run["state"]["name"],
                )
                if not wait:
                    told.last = replace(told.last, exit_code=0, message="not waited for")
                    return 0
                follower = Follower(api, begun.run["id"], begun.pool, teller, interrupts, manner)
                state = follower.to_the_end()
            except NotAllowed as error:
                raise Unreachable(str(error)) from None  # the machine's move, not the release's
            except KeyboardInterrupt:
                where = told.last.url or "a run may have begun; a re-run would join it"
                where = where if interrupts.patient else "nothing was started"
                raise Left(f"left at once; {where}", interrupts.exit_code) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                where = told.last.url or "see Prefect's UI"
                raise Left(f"nobody reads the log any more; {where}", 3) from None
        message = str(state.get("message") or "")
        code = exit_code_of(state["type"], state["name"])
        told.last = replace(told.last, state=state["name"], message=message, exit_code=code)
    if code:
        said = f"{wish.name}: {state['name']}: {message or 'no message'}\n{told.last.url}"
        print(f"dafnck: {plain(said)}", file=sys.stderr)
        print("A re-run joins this run; a new one for the same commit: --again", file=sys.stderr)
    return code


@dataclass(frozen=True)
class Begun:
    run: dict[str, Any]
    new: bool
    pool: str | None


def _begin(
    api: RemotePrefect, wish: Wish, again: bool, teller: Teller, interrupts: Interrupts
) -> Begun:
    deployment = api.deployment(wish.flow, wish.deployment)
    runs = api.runs(deployment["id"], wish.tags)
    attempts = {_attempt(run, wish.key): run for run in runs if _attempt(run, wish.key)}
    attempt = max(attempts, default=1)
    if again and attempts and attempts[attempt]["state"]["type"] in TERMINAL:
        attempt += 1
    body = {
        "name": wish.name,
        "parameters": wish.parameters(_who()),
        "tags": wish.tags,
        "state": {"type": "SCHEDULED"},
        "idempotency_key": wish.key if attempt == 1 else f"{wish.key}:{attempt}",
    }
    interrupts.patient = True
    run, new = api.create_run(deployment["id"], body)
    ended = not new and run["state"]["type"] in TERMINAL
    if ended and run["state"]["type"] == "COMPLETED" and wish.flow in ("release", STACK_FLOW):
        _refuse_if_superseded(api, wish, run)
    teller.line(wish.name if new else f"{wish.name}: joins the run that was begun for it before")
    if ended:
        teller.line("it has ended; a new run for the same commit: --again")
    teller.line(api.link(run["id"]))
    return Begun(run, new, deployment.get("work_pool_name"))


def _attempt(run: dict[str, Any], key: str) -> int:
    """Which attempt of this wish a run is, from 1 on; 0 for a run of another wish."""
    first, _, number = (run.get("idempotency_key") or "").partition(":")
    return int(number or 1) if first == key else 0


def _refuse_if_superseded(api: RemotePrefect, wish: Wish, run: dict[str, Any]) -> None:
    """An old job that is run again must not say that its commit serves, when another one does, be
    it by a release or a rollback, whoever asked for it."""
    service, environment = re.escape(wish.service), re.escape(wish.environment)
    place = re.compile(rf"{service} ((.+ )?→|←) {environment}(, resumed)?")
    flows = [STACK_FLOW] if wish.flow == STACK_FLOW else ["release", "rollback", "resume"]
    for other in api.completed_since(flows, f"{wish.service} ", run["created"]):
        if other["id"] != run["id"] and place.fullmatch(other["name"]):
            raise Refused(
                f"{wish.name} was released before, and then came {other['name']}; nothing was "
                f"started. To release it again: --again. Then: {api.link(run['id'])}, "
                f"since: {api.link(other['id'])}"
            )


def _who() -> str:
    for name in PEOPLE:
        if who := os.environ.get(name, "").strip():
            return who
    try:
        return getuser()
    except (KeyError, OSError):
        return "a CI job"  # in a container whose user has no name


@dataclass
class Told:
    last: Outcome


@contextmanager
def _told_as_json(as_json: bool) -> Iterator[Told]:
    """Print what is known when the body is left; an error completes it."""
    told = Told(Outcome())
    try:
        yield told
    except DafnckError as error:
        told.last = replace(told.last, message=str(error), exit_code=error.exit_code)
        raise
    except KeyboardInterrupt:
        told.last = replace(told.last, message="interrupted", exit_code=130)
        raise
    finally:
        if as_json:
            print(json.dumps(asdict(told.last), indent=1), flush=True)
