"""Brings a whole PostgreSQL server back, by its physical backup and the log that it archived, and
has it answer where its URL says."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from blocks.files import write_atomically
from blocks.pg_point_in_time import PhysicalRestore
from blocks.pg_recovery_files import system_identifier
from blocks.postgres import Server, pg_tool, server_of
from blocks.processes import unmarked
from blocks.secret_files import SecretFiles
from policy.backup_manifest import Manifest
from policy.errors import BadInput, DafnckError, NotApplied, Refused, Unreachable
from policy.recovery import Wanted
from tasks.backup_site import BackupSite
from tasks.physical import prefix_of

SHOWN = 3
DONE = "done.json"


def missing_for_server(one: Wanted, data: Path | None, secrets: SecretFiles) -> Iterator[str]:
    """What a person must say before this can come back, in words."""
    if data is None:
        yield f"{one.key} is a whole server: name its data directory: --data {one.key}=DIR"
    elif data.is_mount():  # it is restored beside it and renamed
        yield f"{one.key}: {data} is a mount point; name a directory in it"
    elif data.is_dir() and any(data.iterdir()) and _done(data) is None:
        yield f"{one.key}: {data} is not empty; name another directory"
    assert one.target.postgres
    try:
        server_of(one.target.postgres, secrets)
    except DafnckError as error:
        yield f"{one.key}: {str(error).partition(';')[0]}"


def bring_server_back(
    site: BackupSite, manifest: Manifest, data: Path | None, to_time: float | None
) -> float:
    """Shut down, and equal to what is known of it. -> until when all is there"""
    if data is None:
        raise Refused(f"{site.place} is a whole server, and nobody said where it goes: --data")
    room = _room(data)
    if (until := _done(data)) is None:
        if data.is_dir() and any(data.iterdir()):
            raise Refused(f"{data} is not empty, and nothing of it was changed; name another one")
        moment = datetime.fromtimestamp(to_time, UTC) if to_time is not None else None
        try:
            until = _recovered(site, manifest, room, moment)
        except Refused:  # the log ends before that moment: then all of it is from before
            if moment is None:
                raise
            until = _recovered(site, manifest, room, None)
        if to_time is not None:
            until = min(until, to_time)
        write_atomically(room / DONE, json.dumps({"until": until}))
    if (room / "data").exists():
        if data.exists():
            data.rmdir()
        (room / "data").rename(data)
    return until


def _recovered(site: BackupSite, manifest: Manifest, room: Path, moment: datetime | None) -> float:
    """In a folder of ours beside where it goes. -> until when all is there"""
    from tasks.drill import streams_of

    shutil.rmtree(room, ignore_errors=True)  # of an attempt that died
    room.mkdir(parents=True)
    room.chmod(0o711)  # the server's user passes
    with PhysicalRestore(
        room / "data",
        site.vault,
        prefix_of(site),
        site.key.file,
        target_time=moment,
        drill=False,
    ) as there:
        there.restore(manifest, streams_of(site, manifest))
        if found := there.differences(manifest):
            words = "; ".join(map(str, found[:SHOWN]))
            raise NotApplied(f"what came back is not what was backed up: {words}")
        until = there.recovered_until
    return max(manifest.snapshot_at, until.timestamp() if until else 0.0)


def start_server(one: Wanted, data: Path | None, secrets: SecretFiles) -> str:
    """Have the restored server answer where its URL says. -> what a person must know; empty when it
    answered already. Raises Refused when it must be started by a person."""
    assert one.target.postgres
    server = server_of(one.target.postgres, secrets)
    if data is None:
        raise BadInput(
            f"{one.key} is a whole server: name its data directory: --data {one.key}=DIR"
        )
    words = f"{one.key}: the server of {data}"
    how = f"start it, so that it answers at {server}; then run the same command again"
    try:
        _must_be(server, data, how)
        _forget(data)
        return ""
    except Unreachable as error:
        if not (data / "postgresql.conf").exists():
            raise Refused(
                f"{words} has its configuration elsewhere ({error}); no service was started. Put "
                f"it back and {how}"
            ) from None
        _pg_ctl_start(data, server, how)
    _must_be(server, data, how)
    _forget(data)
    return (
        f"{words} was started by pg_ctl: have the system start it from now on. It archives again "
        "when its archive_command finds its settings: dafnck wal setup"
    )


def _pg_ctl_start(data: Path, server: Server, how: str) -> None:
    """As the user whose directory it is: PostgreSQL does not run as root."""
    there, version = data.stat(), (data / "PG_VERSION").read_text().strip()
    argv = [str(pg_tool("pg_ctl", exactly=int(version))), "start", "--wait", f"--pgdata={data}"]
    argv.append(f"--log={data / 'recovered.log'}")
    options = []
    if port := server.parameters.get("port"):
        options.append(f"-p {int(port)}")
    host = server.parameters.get("host", "")
    if host.startswith("/"):  # a folder with its socket
        options.append(f"-k {host}")
    if options:
        argv.append(f"--options={' '.join(options)}")
    user = {"user": there.st_uid, "group": there.st_gid, "extra_groups": []}
    done = subprocess.run(
        argv,
        env=unmarked({name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=data,
        check=False,
        start_new_session=True,
        **(user if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        raise Refused(
            f"the server of {data} does not start (pg_ctl ends with {done.returncode}, see "
            f"{data}/recovered.log); no service was started. Mend it and {how}"
        )


def _must_be(server: Server, data: Path, how: str) -> None:
    """Raises Refused when another server answers there, an empty one that was just installed say;
    Unreachable when none does."""
    with server.connect(autocommit=True) as connection:
        row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
    if int(row[0]) != system_identifier(data):
        raise Refused(
            f"another server than that of {data} answers at {server}; no service was started. Stop "
            f"that one and {how}"
        )


def _room(data: Path) -> Path:
    """Of ours alone, beside it."""
    return data.with_name(f".{data.name}.recovering")


def _done(data: Path) -> float | None:
    """Until when all is in it, when an attempt that died had just restored it."""
    try:
        return float(json.loads((_room(data) / DONE).read_text())["until"])
    except FileNotFoundError:
        return None


def _forget(data: Path) -> None:
    shutil.rmtree(_room(data), ignore_errors=True)
