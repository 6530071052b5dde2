"""Does what was released last serve again? Looked at from outside, once everything was started."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from blocks import smoke
from blocks.ledger import Ledger
from blocks.stack import Stack
from policy.errors import DafnckError
from policy.recovery import Served
from policy.release import Endpoints, Release
from tasks.site import Site, site_of

READY_SECONDS = 30.0  # beyond its start time: `dafnck up` waited for that already


def serve_again(stack: Stack) -> Iterator[Served]:
    """Every service that had a stable release, or stands frozen between two."""
    ledger = Ledger(stack.ledger_url)
    try:
        frozen = {(one.service, one.environment) for one in ledger.frozen()}
        for service, environment, release_id, _ in ledger.stables():
            release = ledger.release(release_id)
            try:
                site = site_of(stack, ledger, service, environment)
                trouble = _trouble(site, release, (service, environment) in frozen)
            except DafnckError as error:
                trouble = str(error)
            yield Served(
                service=service,
                environment=environment,
                release=release_id,
                version=release.version,
                trouble=trouble,
            )
    finally:
        ledger.close()


def _trouble(site: Site, release: Release, frozen: bool) -> str:
    """Why it does not serve; empty when it does."""
    if frozen:
        return (
            "stands frozen in the middle of a rollout: a person decides, as before. dafnck status"
        )
    endpoints = _ready(site, release)
    if len(endpoints.ready) < release.run.replicas:
        words = endpoints.trouble or "no reason is known"
        return f"{len(endpoints.ready)} of {release.run.replicas} replicas are ready ({words})"
    held = {name: share for name, share in site.platform.router.shares().items() if share}
    if held != {release.id: 100}:
        return f"the router sends the requests elsewhere: {held or 'to nobody'}"
    failed = [f"{test}: {why}" for test, why in _smoke(site, release, endpoints)]
    return f"smoke tests: {'; '.join(failed)}" if failed else ""


def _ready(site: Site, release: Release) -> Endpoints:
    give_up = time.monotonic() + READY_SECONDS
    while True:
        endpoints = site.platform.workloads.endpoints(release.id)
        if len(endpoints.ready) >= release.run.replicas or endpoints.fatal:
            return endpoints
        if time.monotonic() > give_up:
            return endpoints
        time.sleep(0.2)


def _smoke(site: Site, release: Release, endpoints: Endpoints) -> Iterator[tuple[str, str]]:
    """(test, why it failed) of those that fail, through the router, as everybody."""
    url, headers = site.platform.url_of(release), {"Host": release.host}
    environment = {
        "URL": next(iter(endpoints.ready), ""),
        "ROUTER_URL": url,
        "HOST": release.host,
        "ROUTER_HEADER": "",
    }
    for test in release.smoke:
        if test.get is not None:
            why = smoke.ask(test, url, headers)
        else:
            folder = Path(release.folder)
            if not folder.is_dir():
                why = f"the folder of its service file, {folder}, is not here: not run"
            else:
                never = threading.Event()
                why = smoke.run(test, site.builder.scratch, folder, environment, never)
        if why:
            yield str(test), why
