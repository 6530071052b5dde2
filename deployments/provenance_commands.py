"""`dafnck keygen`, `verify` and `discard`: who signs, what runs and where it came from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from policy.errors import Refused

Json = Annotated[bool, typer.Option("--json", help="for machines")]
MARKS = {True: "ok ", False: "BAD", None: "?  "}


def keygen(
    file: Annotated[
        Path | None,
        typer.Option("--file", help="sign with the ed25519 key in this file (a mounted secret)"),
    ] = None,
) -> None:
    """Sign with a new key from now on. What was signed before still counts."""
    from blocks.signing import Keys
    from blocks.stack import open_stack

    stack = open_stack()
    key = Keys(stack.secrets, stack.keys).make(linked_to=file)
    print(f"artifacts are signed with {key}")
    print(f"its public half: {stack.keys / key}.pem")
    print("Keys whose signatures count are those in that folder; remove one to distrust it.")


def verify(
    release: Annotated[str, typer.Argument(help="id of a release, see dafnck status")],
    as_json: Json = False,
) -> None:
    """Show the chain from the commit to the replicas that run; 1 when a link does not hold."""
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from tasks.site import site_of
    from tasks.verify import chain

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    wanted = ledger.release(release)
    site = site_of(stack, ledger, wanted.service, wanted.environment)
    links = []
    if not as_json:
        print(f"{wanted.id}: {wanted.service} {wanted.version} in {wanted.environment}")
    for link in chain(site, wanted):
        links.append(link)
        if not as_json:
            print(f"  {MARKS[link.ok]} {link.name:14} {link.words}", flush=True)
    if as_json:
        print(json.dumps([asdict(link) for link in links], indent=1))
    raise typer.Exit(1 if any(link.ok is False for link in links) else 0)


def discard(
    artifact: Annotated[str, typer.Argument(help="digest of the artifact")],
    even_serving: Annotated[
        bool,
        typer.Option("--even-serving", help="also when replicas run from it: they lack files then"),
    ] = False,
) -> None:
    """Remove an artifact that is not what was built; the next release builds it anew."""
    from blocks.builder import Builder
    from blocks.ledger import Ledger
    from blocks.stack import open_stack

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    led = [*ledger.unfinished(), *ledger.frozen()]
    running = {release_id for _, _, release_id, _ in ledger.stables()}
    running |= {one for r in led for one in (r.release_id, r.stable_id) if one}
    for release_id in sorted(running):
        if ledger.release(release_id).artifact == artifact and not even_serving:
            raise Refused(
                f"{release_id} runs from this artifact; nothing was changed. Release another "
                "commit first; or say --even-serving and release at once: until that is built, "
                "its replicas lack files"
            )
    if not Builder(stack.artifacts).discard(artifact):
        raise Refused(f"there is no artifact {artifact} in {stack.artifacts}")
    print(f"artifact {artifact} is gone; releases made from it can not be gone back to")
