"""`dafnck notify`: the targets of notifications.

Their URLs hold secrets: they are read from standard input, stored for their owner, never shown.
"""

import json
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Who hears of releases.")

Target = Annotated[str, typer.Argument(help="name of the target, or $VARIABLE")]


@app.command()
def add(name: Target) -> None:
    """Store the apprise URL of a target; it is read from standard input."""
    from policy.errors import BadInput

    if sys.stdin.isatty():
        from getpass import getpass

        url = getpass(f"apprise URL of {name}: ").strip()
    else:
        url = sys.stdin.read().strip()
    if not url or any(character.isspace() for character in url):
        raise BadInput(f"give one URL for {name} on standard input; nothing was stored")
    _notifications().add(name, url)
    print(f"{name} is stored; try it: dafnck notify test {name}")


@app.command()
def remove(name: Target) -> None:
    """Forget a target."""
    _notifications().remove(name)
    print(f"{name} is forgotten")


@app.command()
def test(name: Target) -> None:
    """Send a target a test notification."""
    from policy.notice import Event, Notice

    notice = Notice(Event.START, "dafnck: a test", (("reason", "somebody tries this target"),))
    _notifications().send(name, [notice])
    print(f"{name} took it")


@app.command(name="list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False) -> None:
    """The names of the targets."""
    names = _notifications().names()
    if as_json:
        print(json.dumps(names))
    else:
        print("\n".join(names) or "there are no targets; add one: dafnck notify add NAME")


def _notifications() -> Any:
    from blocks.notifications import Notifications
    from blocks.stack import open_stack

    return Notifications(open_stack())
