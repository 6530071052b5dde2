"""`dafnck wal`: what PostgreSQL runs to archive its write-ahead log and to have it back, and what
its postgresql.conf has to say for that.

PostgreSQL itself starts the same without the command line's imports: `blocks/wal_command.py`.
"""

import json
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from blocks.wal_settings import WalSettings, archive_command, quoted
from policy.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="The write-ahead log of physical backups.")

Settings = Annotated[
    Path, typer.Option("--settings", help="of the archive, as `dafnck wal setup` wrote it")
]
Service = Annotated[str | None, typer.Argument(help="name of the service")]
Env = Annotated[str | None, typer.Option("--env", help="environment")]
Target = Annotated[str | None, typer.Option("--target", help="of the file's backup part")]
File = Annotated[
    Path | None, typer.Option("--file", help="what this service file says, not what serves")
]
Json = Annotated[bool, typer.Option("--json", help="for machines")]
MOST_TIMEOUT_SECONDS = 3600
LEAST_TIMEOUT_SECONDS = 10
SETTINGS, CREDENTIALS = "archive.json", "credentials"


@app.command()
def setup(
    folder: Annotated[Path, typer.Option(help="made for the server's user; /etc/dafnck-wal, say")],
    service: Service = None,
    env: Env = None,
    target: Target = None,
    file: File = None,
    owner: Annotated[str, typer.Option(help="the user that PostgreSQL runs as")] = "postgres",
    credentials: Annotated[
        Path | None,
        typer.Option(help="file with the store's keys, copied to the folder, for that user alone"),
    ] = None,
) -> None:
    """Write what the server needs to archive its log, and print the lines for postgresql.conf."""
    site = _site(service, env, target, file)
    user = _user(owner)
    if os.geteuid() not in (0, user.pw_uid):
        raise BadInput(
            f"only root, or {owner}, can write what {owner} alone may read; nothing was written. "
            "Run it as root, or name the user by --owner"
        )
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    keys = credentials or site.store.credentials
    settings = WalSettings(
        site.store.url,
        site.place.prefix.removesuffix("/"),
        site.recipients,
        lock_days=site.lock_days,
    )
    if keys is not None:
        settings = replace(settings, credentials=str(_copied(keys, folder / CREDENTIALS, user)))
    settings.write(folder / SETTINGS)
    print(postgresql_conf(folder / SETTINGS, site.target.rpo), end="")
    for words in _hindrances(folder / SETTINGS, user):
        print(f"# {owner} cannot get to {words}", file=sys.stderr)
    print(
        "# Into postgresql.conf; all but archive_command need a restart. The role of backups: "
        "ALTER ROLE … REPLICATION; GRANT pg_monitor, pg_read_all_data TO …; GRANT EXECUTE ON "
        "FUNCTION pg_switch_wal(), pg_read_file(text) TO …",
        file=sys.stderr,
    )


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="the segment, %p of archive_command")],
    settings: Settings,
    name: Annotated[str | None, typer.Argument(help="%f")] = None,
) -> None:
    """Store a segment; exit code 0 when it is stored."""
    _run("push", str(settings), str(path), *([name] if name else []))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="%f of restore_command")],
    path: Annotated[Path, typer.Argument(help="where to, %p")],
    settings: Settings,
) -> None:
    """Have a segment at a path; exit code 44 where the archived log ends before it."""
    _run("fetch", str(settings), name, str(path))


@app.command()
def status(
    service: Service = None,
    env: Env = None,
    target: Target = None,
    file: File = None,
    as_json: Json = False,
) -> None:
    """What of the log is archived, and what is missing in it; exit code 1 for holes."""
    from tasks.physical import log_state

    state = log_state(_site(service, env, target, file))
    if as_json:
        print(json.dumps(state, indent=1))
    else:
        print(f"{state['target']}: {state['segments']} segments", end="")
        print(f", {state['first']} to {state['last']}" if state["segments"] else "")
        for gap in state["gaps"]:
            print(f"missing: {gap}. No recovery goes past it: take another backup")
        for name in state["lacking"]:
            print(f"missing: {name}, which a backup cannot be opened without: take another backup")
        for name in state["twice"]:
            print(f"{name} has two contents: two servers archive to one place. Part them")
    raise typer.Exit(1 if state["gaps"] or state["lacking"] or state["twice"] else 0)


def postgresql_conf(file: Path, rpo_seconds: float) -> str:
    """What a server needs to archive by this file. `rpo_seconds`: what may be lost at most. A
    segment that is not full is archived after half of it; the other half is for storing it."""
    timeout = min(MOST_TIMEOUT_SECONDS, max(LEAST_TIMEOUT_SECONDS, int(rpo_seconds / 2)))
    return (
        "wal_level = replica\n"
        "archive_mode = on\n"
        f"archive_command = {quoted(archive_command(file))}\n"
        f"archive_timeout = {timeout}s\n"
        "max_wal_senders = 10\n"
    )


def _site(service: str | None, env: str | None, target: str | None, file: Path | None) -> Any:
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from tasks.backup_wanted import wanted_sites

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    try:
        sites = wanted_sites(stack, ledger, service, env, target, str(file) if file else None)
    finally:
        ledger.close()
    physical = [site for site in sites if site.target.is_physical]
    if len(physical) != 1:
        names = ", ".join(str(site.place) for site in physical) or "none has method: physical"
        raise BadInput(f"name one target by SERVICE, --env and --target: {names}")
    return physical[0]


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise BadInput(f"--owner: there is no user {name} here; nothing was written") from None


def _copied(keys: Path, to: Path, user: pwd.struct_passwd) -> Path:
    """For that user alone, from its first byte on."""
    half = to.with_name(f".{to.name}.half")
    try:
        half.unlink(missing_ok=True)
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if os.geteuid() == 0:
                os.fchown(file.fileno(), user.pw_uid, user.pw_gid)
            with keys.open("rb") as source:
                shutil.copyfileobj(source, file)
        os.replace(half, to)
    except OSError as error:
        raise BadInput(f"{keys} was not copied to {to}: {error.strerror}") from None
    return to


def _hindrances(settings: Path, user: pwd.struct_passwd) -> Iterator[str]:
    """What that user cannot get to, by the plain rights, and how to mend it."""
    if user.pw_uid in (0, os.geteuid()):
        return
    for path, mend in (
        (settings, "make the way to it open: chmod o+x"),
        (Path(sys.executable).resolve(), "install dafnck where all may read it"),
        (Path(__file__), "install dafnck where all may read it"),
    ):
        for folder in path.parents:
            found = folder.stat()
            bit = 0o100 if found.st_uid == user.pw_uid else 0o001
            if not found.st_mode & bit:
                yield f"{path}, for {folder} is closed to it: {mend}"
                break


def _run(*words: str) -> None:
    from blocks.wal_command import main

    raise typer.Exit(main([os.fspath(word) for word in words]))
