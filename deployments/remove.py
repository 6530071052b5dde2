"""`dafnck down SERVICE`: be rid of a service, and see before what goes."""

from collections.abc import Iterator
from getpass import getuser

import typer

from blocks.ledger import Ledger
from blocks.stack import Stack
from tasks.site import Site, site_of
from tasks.take_down import take_down


def remove(stack: Stack, ledger: Ledger, service: str, environment: str, *, yes: bool) -> None:
    """Ask, then remove everything of a service in an environment."""
    site = site_of(stack, ledger, service, environment)
    for words in _what_goes(site):
        print(f"  {words}")
    if not yes and not typer.confirm(f"Remove {service} from {environment}, with all of these?"):
        print("nothing was changed")
        raise typer.Exit(1)
    removed = take_down(site, getuser())
    print(f"{service} is gone from {environment}: {', '.join(removed) or 'no release was left'}")


def _what_goes(site: Site) -> Iterator[str]:
    for release_id in site.ledger.releases(site.service, site.environment):
        yield f"release {release_id}"
    if site.platform.cluster is not None:
        for one in site.platform.cluster.objects():
            yield f"{one['kind']} {one['metadata']['name']}"
