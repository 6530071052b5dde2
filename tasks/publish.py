"""Progress for people: Prefect artifacts, written beside the rollout and never in its way."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.report import summary, title, write_report
from tasks.site import Site

log = logging.getLogger("dafnck")


class Publisher:
    """One thread that talks to Prefect's server; a server that hangs keeps nobody waiting."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.rollout_id: int | None = None  # set: the rollout whose report is due at the end
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._waiting: list[Future[Any]] = []

    def table(self, name: str, rows: list[dict[str, Any]], description: str) -> None:
        self._later(
            create_table_artifact, key=f"{self._key}-{name}", table=rows, description=description
        )

    def markdown(self, name: str, text: str, description: str) -> None:
        self._later(
            create_markdown_artifact,
            key=f"{self._key}-{name}",
            markdown=text,
            description=description,
        )

    def close(self, timeout_seconds: float = 5.0) -> None:
        wait(self._waiting, timeout=timeout_seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _later(self, create: Any, **arguments: Any) -> None:
        def publish() -> None:
            try:
                create(**arguments)
            except Exception as error:
                log.warning("Prefect did not take the artifact %s: %s", arguments["key"], error)

        self._waiting.append(self._pool.submit(copy_context().run, publish))


@task(cache_policy=NO_CACHE)
def publish_report(site: Site, rollout_id: int, publisher: Publisher) -> None:
    """Write the HTML report, and its facts as an artifact of the run."""
    path = write_report(site, rollout_id)
    rollout = site.ledger.rollout(rollout_id)
    publisher.markdown("summary", summary(site, rollout, path), title(rollout))


@contextmanager
def published(key: str) -> Iterator[Publisher]:
    """A publisher for a run that is no rollout."""
    publisher = Publisher(key)
    try:
        yield publisher
    finally:
        publisher.close()


@contextmanager
def reported(site: Site) -> Iterator[Publisher]:
    """A publisher; however the body ends, the report of its rollout is written afterwards. It can
    undo nothing: a failure is told in Prefect, no more."""
    publisher = Publisher(f"{site.service}-{site.environment}")
    try:
        yield publisher
    finally:
        if publisher.rollout_id is not None:
            publish_report(site, publisher.rollout_id, publisher, return_state=True)
        publisher.close()
        site.outbox.close()
