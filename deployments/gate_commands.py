"""`dafnck gate` and `dafnck scan-db`: what an artifact had to show, and what it is held against."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from policy.errors import BadInput, Refused

scan_db = typer.Typer(
    no_args_is_help=True, help="What findings are known by: vulnerabilities, EPSS, KEV."
)
BRING = "bring one: dafnck scan-db import FILE"


@scan_db.command(name="import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="tar archive with metadata.json and trivy.db or trivy-java.db; or EPSS as CSV, "
            "also by gzip; or KEV as JSON"
        ),
    ],
) -> None:
    """Take over a vulnerability database or a list of EPSS or KEV, where there is no network."""
    from blocks.snapshots import BadSnapshot, Snapshots
    from blocks.stack import open_stack
    from blocks.trivy import Trivy
    from blocks.trivy_database import BadDatabase

    cache = open_stack().scan_cache
    try:
        if taken := Snapshots(cache).import_file(file):
            at, what = taken.at, f"{taken.name}"
        else:
            folder, at = Trivy(cache).import_database(file)
            what = "the database" if folder == "db" else "the database of Java archives"
    except (BadSnapshot, BadDatabase) as error:
        raise BadInput(f"{error}; all is as it was") from None
    print(f"{what} of {_day(at)} is in place")


@scan_db.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False) -> None:
    """Of when the database and the lists are. Exit code 3 without a database."""
    from blocks.snapshots import Snapshots
    from blocks.stack import open_stack
    from blocks.trivy import Trivy

    cache = open_stack().scan_cache
    collected, lists = Trivy(cache).database_at(), Snapshots(cache).dates()
    java = Trivy(cache).database_at("java-db")
    if as_json:
        print(
            json.dumps(
                {
                    "collected_at": collected,
                    "java": java,
                    **{k.lower(): at for k, at in lists.items()},
                }
            )
        )
    else:
        print(
            f"{'database':13} {_day(collected)}" if collected else f"there is no database; {BRING}"
        )
        for name, at in [*lists.items(), ("Java database", java)]:
            print(f"{name:13} {_day(at)}" if at else f"there is no {name}; {BRING}")
    raise typer.Exit(0 if collected is not None else 3)


def _day(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def gate(
    ledger: Any, service: str, env: str, rollout_id: int | None, *, as_json: bool, explain: bool
) -> bool:
    """Print what the gates of a rollout said. -> whether all that block were open."""
    from deployments.gate_explained import explained
    from tasks.evidence import kept_of

    rollouts = ledger.history(service, env, limit=1000)
    for rollout in rollouts:
        if rollout_id in (None, rollout.id) and (kept := kept_of(ledger, rollout.id)):
            break
    else:
        which = f"rollout {rollout_id}" if rollout_id else "any rollout"
        raise Refused(f"no gates are known of {which} of {service} in {env}")
    if as_json:
        content = {
            "rollout": rollout.id,
            "version": rollout.version,
            "gates": [{**asdict(one), "blocks": one.blocks} for one in kept.gates],
            "evidence": kept.folder,
        }
        print(json.dumps(content, indent=1))
    else:
        print(f"{service} {rollout.version} in {env} (rollout {rollout.id})")
        for line in explained(kept, env) if explain else ():
            print(line)
        for one in () if explain else kept.gates:
            answer = f"{one.status}" if one.level == "block" else f"{one.status}, warns"
            print(f"  {one.gate:14} {answer:16} {one.number}  (asked: {one.limit})")
            print(f"  {'':14} {one.reason}")
        for finding, waiver in kept.evidence.waived.waived:
            print(f"  waived: {finding.id} of {finding.about}, until {waiver.expires} by ", end="")
            print(f"{waiver.owner}: {waiver.reason}")
        print(f"files: {kept.folder}")
    return not any(one.blocks for one in kept.gates)
