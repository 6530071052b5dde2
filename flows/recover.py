"""Takes over: what one environment had, in another one beside it, in a minute rather than a day.

The day on which dafnck itself is lost is another one: `dafnck recover` without a service does that
alone, by the steps of tasks/recover.py.
"""

import platform
from typing import Any

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from blocks.ledger import Ledger
from blocks.secret_files import SecretFiles
from blocks.stack import Stack, open_stack
from flows import hooks
from flows.carry_out import carry_out, whole_or_nothing
from flows.ended import failed, not_promoted
from policy.errors import BadInput, DafnckError, Refused
from policy.recovery import Came, Recovery, Served, held_back
from policy.release import Phase, Release, RolloutRecord
from policy.rollout import plan
from policy.service_file import Rollout
from tasks.frozen import none_frozen
from tasks.lease import held_lease
from tasks.prefect_run import flow_run_id
from tasks.publish import Publisher, reported
from tasks.put_back import unfinished_first
from tasks.recover_data import Job, bring_back, missing_for
from tasks.recover_page import data_rows, summed_up, write_page
from tasks.site import Site, site_of
from tasks.standby import Other, in_its_place, last_good, make_way, not_the_same, other
from tasks.standby import stand_in as released_there
from tasks.workloads import replicas_of


@flow(
    name="recover",
    flow_run_name="{service}: {environment} takes over from {of}",
    validate_parameters=True,
    on_failure=[hooks.give_traffic_back],
    on_crashed=[hooks.give_traffic_back],
    on_cancellation=[hooks.give_traffic_back],
)
def recover(
    service: str,
    environment: str,
    of: str,
    confirm: str,
    to_time: float | None = None,
    store: str | None = None,
    key_file: str | None = None,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Have an environment take over from another one: its data by the newest backups, its last good
    version. What it held is kept aside. Back again is the same the other way round.

    Args:
        service: which
        environment: that takes over; the service was released there before
        of: from which
        confirm: `<service>/<environment>`: what is replaced
        to_time: not later than this, in seconds since the epoch
        store: with the backups; default: what its file says, or the store of the stack
        key_file: that opens them, on this machine; default: the stack's own
        by: who says so, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        if confirm != f"{service}/{environment}" or environment == of:
            raise BadInput(
                f"what {service} holds in {environment} would be replaced by what it was in {of}; "
                f"say so: --confirm {service}/{environment}. Nothing was changed"
            )
        site = site_of(stack, ledger, service, environment)
        there = other(stack, service, of, store=store, key_file=key_file, to_time=to_time)
        told, rollout = _recover(site, stack, there, by)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if rollout.phase is not Phase.PROMOTED:
        return not_promoted(rollout)
    return Completed(message=f"{rollout.release_id} serves. {summed_up(told)}")


def _recover(site: Site, stack: Stack, there: Other, by: str) -> tuple[Recovery, RolloutRecord]:
    began = site.clock()
    with (
        reported(site) as publisher,
        held_lease(site, f"takes over from {there.environment}") as (site, lease),
    ):
        unfinished_first(site, before_a_new_one=True)
        none_frozen(site)
        mine = released_there(site)
        found = last_good(there, site.ledger)
        not_the_same(mine, found)
        jobs = _ready(there, mine)
        told = Recovery(
            store=there.store or "by its file",
            host=platform.node(),
            began_at=began,
            to_time=there.to_time,
            lost_at=found.seen_at,
        )
        new = in_its_place(mine, found.release, site.clock())
        # First of all: what dies from here on leaves nothing that starts on half of the data.
        site.ledger.retire(site.service, site.environment, by)
        rollout = site.ledger.open_rollout(
            site.service,
            site.environment,
            token=lease.token,
            kind="release",
            version=new.version,
            strategy="blue-green",
            flow_run_id=flow_run_id(),
            by=by,
        )
        publisher.rollout_id = rollout.id
        with whole_or_nothing(site, rollout) as progress:
            make_way(site, rollout.id)
            for job in jobs:
                told = told.has(_data(site, rollout.id, job))
            if lost := held_back(told, frozenset()):
                raise Refused(
                    f"not all data is there, so nothing was started: {_words(lost)}. What was "
                    "there is kept aside; mend it and run the same again"
                )
            new = site.ledger.add_release(new, rollout.id)
            rollout = site.ledger.rollout(rollout.id)
            site.ledger.set_phase(rollout.id, Phase.STARTING)
            # No judge and no steps: there is nothing to compare with.
            way = Rollout(strategy="blue-green", sticky=new.rollout.sticky)
            replicas, _ = replicas_of(site, new.run.replicas, None)
            steps = plan(way, replicas=replicas, stable_replicas=None, now=site.clock())
            at_once = new.model_copy(update={"rollout": way})
            carry_out(site, rollout, at_once, steps, lease, publisher, progress)
        told = _report(site, stack, publisher, told, new)
    return told, site.ledger.rollout(rollout.id)


def _ready(there: Other, mine: Release) -> list[Job]:
    """Raises BadInput for what is missing, before anything is changed."""
    jobs = there.jobs(mine)
    if whole := [job.wanted.key for job in jobs if job.wanted.target.is_physical]:
        raise BadInput(
            f"{', '.join(whole)} is a whole server (method: physical), which no environment takes "
            "over in place of what runs; nothing was changed. Restore it beside, dafnck restore "
            "--to-folder, or keep a streaming standby of PostgreSQL"
        )
    secrets = SecretFiles(there.stack)
    if missing := [words for job in jobs for words in missing_for(job.wanted, None, secrets)]:
        raise BadInput(f"{'; '.join(missing)}. Nothing was changed")
    for job in jobs:
        if next(job.newest_first(), None) is None:
            raise Refused(f"no backup of {job.wanted.key} counts; nothing was changed")
    return jobs


@task(task_run_name="recover {job}", cache_policy=NO_CACHE)
def _data(site: Site, rollout_id: int, job: Job) -> Came:
    """One target, from its newest backup that counts."""
    with site.ledger.act(rollout_id, "recover", target=job.wanted.key) as said:
        came = bring_back(job)
        said["result"] = came.trouble or f"as {came.backup_id} says"
    return came


def _words(lost: list[Came]) -> str:
    return "; ".join(f"{one.key}: {one.trouble}" for one in lost)


def _report(
    site: Site, stack: Stack, publisher: Publisher, told: Recovery, new: Release
) -> Recovery:
    rollout = site.ledger.rollout(publisher.rollout_id or 0)
    served = Served(
        service=site.service,
        environment=site.environment,
        release=new.id,
        version=new.version,
        trouble="" if rollout.phase is Phase.PROMOTED else rollout.reason,
    )
    told = told.model_copy(update={"served": (served,), "finished_at": site.clock()})
    write_page(told, stack.reports)
    publisher.table("recovered", list(data_rows(told)), "What was recovered, and what was lost")
    return told
