"""`dafnck backup`, `dafnck restore`, `dafnck drill`: by hand what the nightly flows do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.tables import print_table

app = typer.Typer(no_args_is_help=True, help="Backups: take, list, show, verify, prune.")

Service = Annotated[str | None, typer.Argument(help="name of the service; dafnck: its own state")]
OneService = Annotated[str, typer.Argument(help="name of the service; dafnck: its own state")]
FileOption = Annotated[
    Path | None, typer.Option("--file", help="what this service file says, not what serves")
]
Env = Annotated[str | None, typer.Option("--env", help="environment")]
TargetOption = Annotated[str | None, typer.Option("--target", help="of the file's backup part")]
Id = Annotated[str | None, typer.Option("--backup", help="its id; default: the newest")]
Json = Annotated[bool, typer.Option("--json", help="for machines")]
Here = Annotated[bool, typer.Option("--here", help="in this process, not the worker's")]
Follow = Annotated[bool, typer.Option(help="follow it to its end")]


@app.command()
def now(
    service: Service = None,
    env: Env = None,
    target: TargetOption = None,
    file: FileOption = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Back up now: of one service, or of all that serve and the state of dafnck itself."""
    parameters = {
        "service": service,
        "environment": env,
        "target": target,
        "service_file": str(file.absolute()) if file else None,
    }
    _run("backup", parameters, f"backup of {service or 'all'}", here, wait, as_json)


@app.command("list")
def list_(
    service: Service = None,
    env: Env = None,
    target: TargetOption = None,
    as_json: Json = False,
) -> None:
    """What lies in the vaults, newest first, and whether a drill proved it."""
    from tasks.backup_report import entry_rows

    rows = []
    for site in _sites(service, env, target, None):
        rows += entry_rows(site.catalogue.entries(site.place))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print_table(["id", "target", "taken", "stored", "state", "drilled", "trouble"], rows)


@app.command()
def show(
    service: OneService,
    env: Env = None,
    target: TargetOption = None,
    backup_id: Id = None,
    as_json: Json = False,
) -> None:
    """The manifest of a backup and the evidence of its drills."""
    from policy.errors import Refused

    site = _one(service, env, target)
    entries = site.catalogue.entries(site.place)
    entry = site.catalogue.entry(site.place, backup_id) if backup_id else next(iter(entries), None)
    if entry is None:
        raise Refused(f"there is no backup of {site.place} in {site.vault}: dafnck backup now")
    told = {
        "id": entry.id,
        "trouble": entry.trouble,
        "manifest": entry.manifest.model_dump(mode="json") if entry.manifest else None,
        "drills": [drill.model_dump(mode="json") for drill in entry.drills],
    }
    if as_json:
        print(json.dumps(told, indent=1))
        return
    from deployments.backup_shown import shown

    print(shown(entry))


@app.command()
def verify(
    service: Service = None,
    env: Env = None,
    target: TargetOption = None,
    backup_id: Id = None,
    as_json: Json = False,
) -> None:
    """Read the newest backup of each target (or the named one) whole from its vault: signature,
    checksums, key. That proves what lies there; a drill proves that it comes back."""
    from policy.errors import Damaged
    from tasks.verify_backup import verified

    rows = []
    for site in _sites(service, env, target, None):
        rows.append(verified(site, backup_id))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(["target", "id", "verified", "trouble"], rows)
    if bad := [row for row in rows if row["trouble"]]:
        raise Damaged(f"{len(bad)} of {len(rows)} are not whole")


@app.command()
def prune(
    service: Service = None,
    env: Env = None,
    target: TargetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell, remove nothing")] = False,
    as_json: Json = False,
) -> None:
    """Remove what no rule of `keep` keeps, and say why the rest stays."""
    from tasks.backup import prune as thin_out

    rows = [
        {"target": str(site.place), "id": f.id, "kept": f.keep, "reason": f.reason}
        for site in _sites(service, env, target, None)
        for f in thin_out.fn(site, dry_run)
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(["target", "id", "kept", "reason"], rows)


@app.command()
def key(
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", help="write the recovery key there, mode 0600")
    ] = None,
) -> None:
    """The recovery key: without it no backup can be read. Keep a copy away from this machine."""
    import os

    from blocks.stack import open_stack
    from policy.errors import BadInput
    from tasks.backup_site import have_key

    kept = have_key(open_stack())
    if copy_to is not None:
        try:
            handle = os.open(copy_to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise BadInput(f"{copy_to}: {error.strerror}; nothing was written") from None
        with os.fdopen(handle, "w") as out:
            out.write(kept.file.read_text())
        print(f"{copy_to}: with this file and the vault `dafnck recover` brings everything back")
    print(f"backups are encrypted to {kept.recipient()}; its key is in {kept.file}")


def restore(
    service: OneService,
    env: Env = None,
    target: TargetOption = None,
    backup_id: Id = None,
    to_database: Annotated[
        str | None, typer.Option("--to-database", help="name of a new database, on the same server")
    ] = None,
    to_folder: Annotated[
        Path | None,
        typer.Option(
            "--to-folder", help="an empty folder: for files, or a server's data directory"
        ),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", help="this table alone, schema.table; may be given again"),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option("--to-time", help="of a physical backup: 2026-11-25T02:15:00Z"),
    ] = None,
    to_lsn: Annotated[
        str | None,
        typer.Option("--to-lsn", help="of a physical backup: to this place in the log"),
    ] = None,
    to_bucket: Annotated[
        str | None, typer.Option("--to-bucket", help="an empty bucket or prefix: s3://…")
    ] = None,
    into_place: Annotated[
        bool, typer.Option("--into-place", help="instead of what is there, which is kept aside")
    ] = False,
    confirm: Annotated[
        str | None, typer.Option("--confirm", help="with --into-place: SERVICE/ENV/TARGET")
    ] = None,
    file: FileOption = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Bring a backup back: beside what is there, or in its place."""
    parameters = {
        "service": service,
        "environment": env,
        "target": target,
        "backup_id": backup_id,
        "database": to_database,
        "folder": str(to_folder.absolute()) if to_folder else None,
        "bucket": to_bucket,
        "in_place": into_place,
        "confirm": confirm,
        "tables": tables or None,
        "to_time": to_time,
        "to_lsn": to_lsn,
        "service_file": str(file.absolute()) if file else None,
    }
    _run("restore", parameters, f"restore of {service}", here, wait, as_json)


def drill(
    service: Service = None,
    env: Env = None,
    target: TargetOption = None,
    backup_id: Id = None,
    file: FileOption = None,
    here: Here = False,
    wait: Follow = True,
    as_json: Json = False,
) -> None:
    """Restore backups where nobody uses them, and hold them against all that is known of them."""
    parameters = {
        "service": service,
        "environment": env,
        "target": target,
        "backup_id": backup_id,
        "service_file": str(file.absolute()) if file else None,
    }
    _run("dr_drill", parameters, f"drill of {service or 'all'}", here, wait, as_json)


def _run(
    flow: str, parameters: dict[str, Any], name: str, here: bool, wait: bool, as_json: bool
) -> None:
    from getpass import getuser

    from blocks.stack import open_stack
    from deployments import follow_flow

    parameters["by"] = getuser()
    how = {"here": here, "wait": wait, "as_json": as_json}
    follow_flow.run(open_stack(), flow, parameters, name, **how)


def _sites(
    service: str | None, env: str | None, target: str | None, file: Path | None
) -> list[Any]:
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from tasks.backup_wanted import wanted_sites

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    try:
        return list(wanted_sites(stack, ledger, service, env, target, str(file) if file else None))
    finally:
        ledger.close()


def _one(service: str, env: str | None, target: str | None) -> Any:
    from blocks.ledger import Ledger
    from blocks.stack import open_stack
    from tasks.backup_wanted import one_site

    stack = open_stack()
    ledger = Ledger(stack.ledger_url)
    try:
        return one_site(stack, ledger, service, env, target)
    finally:
        ledger.close()
