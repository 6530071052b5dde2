"""The main job on real input: good and bad releases of a real application under a steady load."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from blocks.ledger import Ledger
from blocks.load import SteadyLoad
from blocks.platforms import local_platform
from blocks.prefect_api import stack_api
from blocks.stack import Ports, Stack, listens, open_stack
from deployments import follow, local_stack
from policy.errors import Unreachable
from policy.release import Phase, RolloutRecord

HERE = Path(__file__).parent
PER_SECOND = 100
MARKER = "demo"  # a home with this file is the demo's own and may be wiped


@dataclass(frozen=True)
class Chapter:
    file: str
    version: str
    says: str
    ends: Phase


CHAPTERS = (
    Chapter("1-first.yaml", "0.10.2", "the first version of httpbin", Phase.PROMOTED),
    Chapter("2-newer.yaml", "0.10.4", "a newer version, by canary", Phase.PROMOTED),
    Chapter(
        "3-broken.yaml",
        "0.10.4-broken",
        "a build that is healthy but fails under traffic",
        Phase.ROLLED_BACK,
    ),
    Chapter("4-blue-green.yaml", "0.10.4-again", "once more, blue-green", Phase.PROMOTED),
)


def run(keep: bool) -> int:
    """-> exit code. Leaves nothing running unless told to keep it."""
    console = Console(highlight=False)
    home = Path(os.environ["DAFNCK_HOME"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    _wipe(home)
    stack: Stack | None = None
    try:
        console.print("[bold]Starting the local stack[/] on loopback")
        stack = local_stack.up(home, _free_ports(), lambda part: console.print(f"  {part}"))
        return _tell(stack, console, keep)
    except KeyboardInterrupt:
        console.print("interrupted; stopping everything")
        return 130
    finally:
        if stack is None and (home / "stack.json").exists():
            stack = open_stack(home)
        if stack and not keep:
            local_stack.down(stack, lambda part: console.print(f"  {part}", style="dim"))
        elif stack:
            console.print(f"Still running. Stop it: DAFNCK_HOME={home} .venv/bin/dafnck down")


def _tell(stack: Stack, console: Console, keep: bool) -> int:
    ledger = Ledger(stack.ledger_url)
    platform = local_platform(stack, "httpbin", "local")
    url = f"http://127.0.0.1:{stack.ports.web}/get"
    load = SteadyLoad(url, "httpbin.local.localhost", per_second=PER_SECOND)
    examples = next(p for p in (HERE.parent / "examples", HERE / "examples") if p.is_dir())
    done: list[RolloutRecord] = []
    with _screen(console) as screen, stack_api(stack) as api:
        for number, chapter in enumerate(CHAPTERS, 1):
            console.print(f"\n[bold]{number}. {chapter.version}[/]: {chapter.says}")
            parameters = {
                "service_file": str(examples / "httpbin" / chapter.file),
                "environment": "local",
                "version": chapter.version,
            }
            name = f"httpbin {chapter.version} → local"
            flow_run_id = api.start("release", "local", parameters, name)
            rollout, message = follow.to_the_end(
                ledger,
                api,
                flow_run_id,
                lambda line: console.print(line, soft_wrap=True, markup=False),
                lambda phase: screen.show(load, phase, platform),
            )
            if rollout is None or rollout.phase is not chapter.ends:
                said = f"{rollout.phase}: {rollout.reason}" if rollout else message
                console.print(f"[red]unexpected:[/] {said}", soft_wrap=True)
                return 3
            done.append(rollout)
            if number == 1:
                load.__enter__()
        time.sleep(1)
        load.__exit__()
    return _last_screen(stack, ledger, load, done, console, keep)


class _Screen:
    """Live figures below the lines of the story."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._looked_at = 0.0
        self._shares: dict[str, int] = {}

    def show(self, load: SteadyLoad, phase: str, platform: object) -> None:
        if time.monotonic() - self._looked_at > 0.5:
            self._looked_at = time.monotonic()
            try:
                self._shares = platform.router.shares()  # type: ignore[attr-defined]
            except Unreachable:
                self._shares = {}
        bars = Table.grid(padding=(0, 2))
        for release, share in sorted(self._shares.items()):
            bars.add_row(release, ProgressBar(total=100, completed=share, width=30), f"{share}%")
        answers = load.answers
        other = sum(answers.failed_else.values())
        counted = Text(
            f"{answers.sent:,} requests sent, {answers.good:,} good, "
            f"{answers.from_bad_build} failed by the bad build, {other} failed by a switch"
        )
        self._live.update(Panel(Group(bars, counted), title=phase, title_align="left"))


@contextmanager
def _screen(console: Console) -> Iterator[_Screen]:
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield _Screen(live)


def _last_screen(
    stack: Stack,
    ledger: Ledger,
    load: SteadyLoad,
    done: list[RolloutRecord],
    console: Console,
    keep: bool,
) -> int:
    answers = load.answers
    by_switch = sum(answers.failed_else.values())
    bad = next(rollout for rollout in done if rollout.phase is Phase.ROLLED_BACK)
    back_at = next(
        intent.outcome_at
        for intent in ledger.intents(bad.id)
        if intent.act == "traffic to stable" and intent.outcome_at
    )
    rescued = back_at - answers.first_bad_at if answers.first_bad_at else 0.0
    table = Table(title="What happened", title_justify="left", show_header=False)
    for rollout in done:
        table.add_row(
            rollout.version, rollout.strategy, f"[bold]{rollout.phase}[/]", rollout.reason
        )
    console.print()
    console.print(table)
    colour = "green" if by_switch == 0 else "red"
    kinds = ", ".join(f"{n} {kind}" for kind, n in answers.failed_else.items())
    auth = stack.prefect_auth_file
    gone = "" if keep else " (stopped now; make demo ARGS=--keep leaves it up)"
    report = stack.reports / f"httpbin-local-rollout-{bad.id}.html"
    for name, words in (
        ("requests sent", f"{answers.sent:,} at {PER_SECOND} a second"),
        ("failed because of a switch", f"[bold {colour}]{by_switch}[/] {kinds}"),
        ("failed because of the bad build", f"{answers.from_bad_build}"),
        ("first bad answer to all traffic on stable", f"{rescued:.1f} s"),
        ("Prefect's UI", f"http://127.0.0.1:{stack.ports.prefect}{gone}"),
        ("its login", f"{auth}"),
        ("report of the rollback", f"{report}"),
    ):
        console.print(f"{name:42} {words}", soft_wrap=True)
    return 0 if by_switch == 0 else 1


def _wipe(home: Path) -> None:
    """Every demo begins anew; only a folder that a demo made is removed."""
    if (home / MARKER).exists():
        try:
            local_stack.down(open_stack(home), lambda _: None)
        except Unreachable:
            pass  # there is nothing to stop
        shutil.rmtree(home)
    home.mkdir(parents=True)
    (home / MARKER).touch()


def _free_ports() -> Ports:
    """The usual ports where they are free."""
    wanted = Ports().model_dump(exclude={"services", "store_parts"})
    chosen: dict[str, int] = {}
    for name, port in wanted.items():
        while listens(port) or port in chosen.values():
            port += 100
        chosen[name] = port
    return Ports(**chosen)
