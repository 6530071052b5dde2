"""Builds, tests, scans and judges a change, and starts nothing: for pull requests."""

import time
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed

from blocks.ledger import Ledger
from blocks.stack import open_stack
from flows.ended import failed
from flows.prove import prove
from flows.release import run_name
from policy.errors import DafnckError
from policy.service_file import ServiceFile
from tasks.build import build_artifact, store_attestations
from tasks.prefect_run import flow_run_id
from tasks.publish import published
from tasks.read import read_service
from tasks.site import Site, site_of
from tasks.source import source_file


@flow(name="pipeline", flow_run_name=run_name, validate_parameters=True)
def pipeline(
    service_file: str,
    environment: str | None = None,
    version: str | None = None,
    by: str = "somebody in the Prefect UI",
    git: str | None = None,
    commit: str | None = None,
    content: str | None = None,
) -> State[Any]:
    """Build, test, scan and judge a change as a release of it would be, and start nothing.

    It waits for no release and no release waits for it. What was built is not built again when it
    is released.

    Args:
        service_file: path of `dafnck.yaml` on the machine of the worker, or within the repository
        environment: whose gates; may be left out when there is only one
        version: what people call this change; it is told, no more
        by: who asks, for the record
        git: URL of a repository, of which a clean checkout is built; without a password
        commit: the whole id of the commit, with git
        content: what the service file says, when it says something else than in that commit
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        file = source_file(stack, service_file, git, commit, content)
        wanted, environment = read_service(file, environment)
        site = site_of(stack, ledger, wanted.service, environment)
        digest, found = _pipeline(site, wanted, file)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    asked = (
        f"nothing closes a gate; see {found}" if found.exists() else "the file asks for no proof"
    )
    return Completed(message=f"artifact {digest}: {asked}")


def _pipeline(site: Site, wanted: ServiceFile, file: Path) -> tuple[str, Path]:
    name = flow_run_id() or f"{time.time_ns()}"
    found = site.evidence / f"{site.service}-{site.environment}-pipeline-{name}"
    with published(f"{site.service}-{site.environment}") as publisher:
        digest = build_artifact(site, None, wanted, file)
        prove(site, None, wanted, file, digest, publisher, found)
        store_attestations(site, digest, return_state=True)
    return digest, found
