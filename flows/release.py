"""Releases a service: build, prove, start, preview, roll out, promote; or all is as it was."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from blocks.checkouts import version_of
from blocks.ledger import Ledger
from blocks.stack import open_stack
from flows import hooks
from flows.carry_out import carry_out, whole_or_nothing
from flows.ended import failed, not_promoted
from flows.prove import prove
from policy.errors import DafnckError
from policy.notice import Event
from policy.release import Phase, RolloutRecord
from policy.rollout import plan
from policy.service_file import ServiceFile
from tasks.build import build_artifact, store_artifact, store_attestations, write_release
from tasks.change import goes_on
from tasks.frozen import none_frozen, outside_freeze
from tasks.lease import held_lease
from tasks.notify import tell, wanted_by
from tasks.prefect_run import flow_run_id
from tasks.publish import reported
from tasks.put_back import unfinished_first
from tasks.read import read_service, with_image
from tasks.site import Site, site_of_file
from tasks.source import source_file
from tasks.workloads import prune, replicas_of

SHORT = 12  # digits of a commit, as a version


def _name() -> str:
    given = flow_run.parameters
    file = Path(given["service_file"])
    commit = given.get("commit") or ""
    if given.get("git") and given.get("content") is None:
        return f"{file} of {given['git']} at {commit[:SHORT]}"  # not here yet
    version = given.get("version") or commit[:SHORT] or version_of(file.parent)
    wanted, environment = read_service(file, given.get("environment"), given.get("content"))
    return f"{wanted.service} {version} → {environment}"


def run_name() -> str:
    """'shop 1.4.2 → prod'; the file's name when it cannot be read, which the flow then says."""
    try:
        return _name()
    except DafnckError:
        return f"release of {flow_run.parameters['service_file']}"


@flow(
    name="release",
    flow_run_name=run_name,
    validate_parameters=True,
    on_failure=[hooks.give_traffic_back],
    on_crashed=[hooks.give_traffic_back],
    on_cancellation=[hooks.give_traffic_back],
)
def release(
    service_file: str,
    environment: str | None = None,
    version: str | None = None,
    freeze_override: str | None = None,
    by: str = "somebody in the Prefect UI",
    git: str | None = None,
    commit: str | None = None,
    content: str | None = None,
    image: str | None = None,
    change: int | None = None,
) -> State[Any]:
    """Release a service as its file says.

    Args:
        service_file: path of `dafnck.yaml` on the machine of the worker, or within the repository
        environment: which of its environments; may be left out when there is only one
        version: what people call this release; default: what git calls the source
        freeze_override: why it may begin although a freeze window is open
        by: who says so, for the record
        git: URL of a repository, of which a clean checkout is released; without a password
        commit: the whole id of the commit, with git
        content: what the service file says, when it says something else than in that commit
        image: repository@sha256:… to release instead of what the file builds
        change: of which change of several services it is part
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        file = source_file(stack, service_file, git, commit, content)
        wanted, environment = read_service(file, environment)
        wanted = with_image(wanted, image)
        site = site_of_file(stack, ledger, wanted, environment, file)
        version = version or (commit or "")[:SHORT] or version_of(file.parent)
        override = (freeze_override or "").strip()
        rollout = _release(site, wanted, file, version, override, by, change)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if rollout.phase is Phase.PROMOTED:
        return Completed(message=f"{rollout.release_id} serves: {rollout.reason}")
    return not_promoted(rollout)


def _release(
    site: Site,
    wanted: ServiceFile,
    file: Path,
    version: str,
    freeze_override: str,
    by: str,
    change: int | None,
) -> RolloutRecord:
    with reported(site) as publisher, held_lease(site, f"release {version}") as (site, lease):
        override = outside_freeze(wanted.rollout, str(site), site.clock(), freeze_override)
        unfinished_first(site, before_a_new_one=True)
        none_frozen(site)
        goes_on(site.ledger, change)
        rollout = site.ledger.open_rollout(
            site.service,
            site.environment,
            token=lease.token,
            kind="release",
            version=version,
            strategy=wanted.rollout.strategy,
            flow_run_id=flow_run_id(),
            by=by,
            freeze_override=override,
            freeze_override_by=override and by,
            notify=wanted_by(wanted.notify),
            change_id=change,
        )
        tell(site, rollout, Event.START, f"{wanted.rollout.strategy}, asked for by {by}")
        publisher.rollout_id = rollout.id
        with whole_or_nothing(site, rollout) as progress:
            digest = build_artifact(site, rollout.id, wanted, file)
            new = write_release(site, rollout.id, wanted, file, digest, version)
            found = site.evidence / f"{site.service}-{site.environment}-rollout-{rollout.id}"
            prove(site, rollout, wanted, file, digest, publisher, found)
            store_attestations(site, digest, return_state=True)  # `dafnck verify` tells if not
            site.ledger.set_phase(rollout.id, Phase.STARTING)
            stable = rollout.stable_id and site.ledger.release(rollout.stable_id)
            replicas, stable_replicas = replicas_of(site, wanted.run.replicas, stable or None)
            steps = plan(
                wanted.rollout,
                replicas=replicas,
                stable_replicas=stable_replicas,
                now=site.clock(),
                migration=wanted.migration,
                by_replicas=site.platform.by_replicas,
            )
            carry_out(site, rollout, new, steps, lease, publisher, progress)
        # What serves now is decided: a failure to tidy up is told in Prefect, no more.
        if site.ledger.rollout(rollout.id).phase is Phase.PROMOTED:
            store_artifact(site, digest, return_state=True)
        prune(site, wanted.rollout.keep, return_state=True)
    return site.ledger.rollout(rollout.id)
