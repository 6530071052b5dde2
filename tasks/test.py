"""Runs the team's test suites on what was built."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from blocks.suites import run_suite
from policy.evidence import SuiteResult
from policy.pipeline import Suite
from tasks.site import Site

_result = TypeAdapter(SuiteResult)


@task(cache_policy=NO_CACHE)
def run_suites(
    site: Site,
    rollout_id: int | None,
    suites: Sequence[Suite],
    digest: str,
    evidence: Path,
    over: threading.Event,
) -> tuple[SuiteResult, ...] | None:
    """-> what each suite ended in, in the order of the file; None when there is none. What fails is
    judged by the gates: an answer is not asked for twice. What this very artifact passed before is
    not run again, unless the suite says `rerun`. `over`: when it is set, what runs is ended."""
    if not suites:
        return None
    artifact = site.builder.folder(digest)

    site.attestations.verify(digest)  # what is tested, and then said to have passed, is what ships

    def run(suite: Suite) -> SuiteResult:
        asked = suite.model_dump(mode="json", exclude={"rerun", "parallel", "within"})
        if not suite.rerun and (ended := site.attestations.passed_tests(digest, suite.name, asked)):
            return _result.validate_python(ended)
        result = run_suite(suite, artifact, evidence / "tests", site.builder.scratch, over)
        if result.passed:
            site.attestations.verify(digest)
            kept = replace(result, before=evidence.name)
            site.attestations.attest_tests(digest, suite.name, asked, _result.dump_python(kept))
        return result

    with site.act(rollout_id, "test") as said:
        results: dict[str, SuiteResult] = {}
        together = [suite for suite in suites if suite.parallel]
        with ThreadPoolExecutor(max(1, len(together))) as pool:
            try:
                for suite, result in zip(together, pool.map(run, together), strict=True):
                    results[suite.name] = result
                for suite in suites:
                    if not suite.parallel:
                        results[suite.name] = pool.submit(run, suite).result()
            finally:
                over.set()  # when the run is cancelled, so is what it runs
        ended = tuple(results[suite.name] for suite in suites)
        said["ended"] = "; ".join(map(str, ended))
    return ended
