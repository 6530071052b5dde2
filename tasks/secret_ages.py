"""How old the values are that a release would be given."""

from collections.abc import Mapping

from policy.errors import DafnckError
from policy.secrets import read_reference
from policy.service_file import ServiceFile
from tasks.site import Site


def secret_ages(site: Site, wanted: ServiceFile) -> Mapping[str, float | None]:
    """Reference -> seconds since its value changed; None where that cannot be known: it has no
    such source, or the source does not answer."""
    ages: dict[str, float | None] = {}
    for text in wanted.run.secrets.values():
        ages[text] = None
        if wanted.platform != "kubernetes" and site.secrets is not None:
            try:
                changed = site.secrets.changed_at(read_reference(text))
            except DafnckError:
                continue  # the start says so, if it is needed then
            ages[text] = None if changed is None else max(0.0, site.clock() - changed)
    return ages
