"""Where a source comes from: a folder of this machine, or git at a commit."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.checkouts import Checkouts
from blocks.stack import Stack
from policy.errors import BadInput
from policy.service_file import ServiceFile
from tasks.retrying import when_unreachable
from tasks.site import Site


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=2, retry_condition_fn=when_unreachable)
def check_out(
    checkouts: Checkouts, git: str, commit: str, service_file: str, content: str | None
) -> Path:
    """A clean checkout of this commit. -> the service file in it, which says `content` if that is
    given. Raises as `Checkouts.checkout` does."""
    return checkouts.service_file(git, commit, service_file, content)


def source_file(
    stack: Stack, service_file: str, git: str | None, commit: str | None, content: str | None
) -> Path:
    """The service file on this machine: as it lies there, or in a checkout."""
    if git is None and commit is None and content is None:
        return Path(service_file).absolute()
    if git is None or commit is None:
        raise BadInput("git, the URL, and commit go together; nothing was changed")
    return check_out(Checkouts(stack.checkouts), git, commit, service_file, content)


def source_folder(site: Site, wanted: ServiceFile, file: Path) -> Path:
    """Where `build.source` begins: beside the service file, or in a checkout of its own."""
    if wanted.build.git is None:
        return file.parent
    return site.checkouts.checkout(wanted.build.git.url, wanted.build.git.commit)
