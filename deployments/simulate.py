"""`dafnck simulate`: what a policy would do, before it is switched on."""

import json
import os
import sys
import time
from pathlib import Path

from policy.canary import NOTHING_LEARNED, Learned, learned_from
from policy.errors import BadInput, Refused
from policy.quantities import in_words
from policy.samples import Counters, Sample
from policy.service_file import Rollout
from policy.simulation import SHAPES, NewRelease, Traffic
from tasks.read import read_service
from tasks.simulate import Ends, Result, simulate, write_page


def run(
    file: Path,
    env: str | None,
    traffic: Traffic,
    bad: NewRelease,
    *,
    recorded: bool,
    releases: int,
    seed: int,
    as_json: bool,
    page: Path | None,
) -> None:
    if traffic.shape not in SHAPES:
        raise BadInput(f"--shape {traffic.shape}: there is {', '.join(SHAPES)}")
    wanted, env = read_service(file, env)
    rollout = wanted.rollout
    if rollout.judge is None or not rollout.judge.limits():
        raise BadInput(f"{file}: rollout.judge has no limit to simulate; write one, such as errors")
    if rollout.strategy == "recreate":
        raise BadInput(f"{file}: recreate compares nothing; simulate another strategy")
    if page and not page.parent.is_dir():
        raise BadInput(f"--html {page}: there is no directory {page.parent}")
    learned = NOTHING_LEARNED
    if recorded:
        history = _recorded(wanted.service, env)
        learned = learned_from(history)
        stable = [s.stable for s in history if s.stable and s.stable.requests]
        traffic = Traffic(0, 0, recorded=tuple(_a_second_each(stable)))
    began = time.monotonic()
    result = _with_progress(rollout, traffic, bad, releases, seed, learned)
    title = f"{wanted.service} in {env}: {releases} good and {releases} bad releases, simulated"
    facts = _facts(rollout, traffic, bad, seed)
    if page:
        write_page(result, title, facts, page)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
        return
    print(title)
    for name, value in facts:
        print(f"  {name}: {value}")
    print(_table(result))
    print(f"took {in_words(round(time.monotonic() - began))}" + (f"; {page}" if page else ""))


def _recorded(service: str, env: str) -> list[Sample]:
    from blocks.ledger import Ledger
    from blocks.stack import open_stack

    ledger = Ledger(open_stack().ledger_url)
    samples = ledger.past_samples(service, env)
    if sum(s.stable.requests for s in samples if s.stable) < 100:
        raise Refused(
            f"the ledger has under 100 recorded requests to stable releases of {service} in {env}; "
            "simulate made-up traffic: leave out --recorded"
        )
    return samples


def _a_second_each(counters: list[Counters]) -> list[Counters]:
    """Looks are a second apart, but for those around a shift, which hold next to nothing."""
    joined, waiting = [], Counters()
    typical = sorted(one.requests for one in counters)[len(counters) // 2]
    for one in counters:
        waiting = waiting.plus(one)
        if waiting.requests >= typical / 2:
            joined.append(waiting)
            waiting = Counters()
    return joined


def _with_progress(
    rollout: Rollout,
    traffic: Traffic,
    bad: NewRelease,
    releases: int,
    seed: int,
    learned: Learned,
) -> Result:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        whole = bar.add_task("releases", total=2 * releases)
        return simulate(
            rollout,
            traffic,
            bad,
            releases=releases,
            seed=seed,
            processes=os.cpu_count() or 1,
            learned=learned,
            progress=lambda: bar.advance(whole),
        )


def _facts(rollout: Rollout, traffic: Traffic, bad: NewRelease, seed: int) -> list[tuple[str, str]]:
    judge = rollout.judge
    assert judge is not None
    limits = ", ".join(f"{metric} {limit}" for metric, limit in judge.limits())
    steps = ", ".join(f"{share}%" for share in rollout.shares)
    facts = [("policy", f"{limits}; {judge.method}; {steps}; bake {in_words(rollout.bake)}")]
    if judge.method == "sequential":
        facts.append(("false rollbacks promised", f"at most {judge.false_rollbacks * 100:g}%"))
    if traffic.recorded:
        facts.append(("traffic", f"{len(traffic.recorded)} recorded seconds of stable releases"))
    else:
        facts.append(
            (
                "traffic",
                f"{traffic.per_second:g} requests/s, {traffic.errors * 100:g}% errors, median "
                f"{in_words(traffic.latency_seconds)}, {traffic.shape}",
            )
        )
    ill = [f"{bad.errors * 100:g}% errors"] if bad.errors is not None else []
    ill += [f"{bad.slower:g} times as slow"] if bad.slower != 1 else []
    facts += [("a bad release", " and ".join(ill)), ("seed", str(seed))]
    return facts


def _table(result: Result) -> str:
    lines = [f"{'':14}{'good releases':>22}{'bad releases':>22}"]

    def row(name: str, value: object) -> None:
        assert callable(value)
        lines.append(f"{name:14}{value(result.good_ends):>22}{value(result.bad_ends):>22}")

    def rolled_back(ends: Ends) -> str:
        low, high = ends.rolled_back_between
        return f"{ends.rolled_back:.1%} ({low:.1%}–{high:.1%})"

    row("rolled back", rolled_back)
    row("by evidence", lambda ends: f"{ends.proved:.1%}")
    row("seconds", lambda ends: f"{ends.seconds_median:.0f}, 95%: {ends.seconds_95:.0f}")
    row("failed", lambda ends: f"{ends.failed_median:.0f}, 95%: {ends.failed_95:.0f}")
    lines.append(
        "seconds: until the end (good) or the rollback (bad), median; failed: requests that the "
        "new release failed"
    )
    return "\n".join(lines)
