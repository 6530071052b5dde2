"""Whether a PostgreSQL server archives its log to where we look for it: its settings, and a segment
seen arriving. Connections are in autocommit mode."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blocks.ports import Vault
from blocks.wal_archive import archived, stored
from blocks.wal_settings import archive_command, quoted
from policy.errors import BadInput, NotAllowed, NotApplied

MOST_LOOK_SECONDS = 2.0


def check(connection: Any, settings_file: Path | None = None) -> None:
    """Raises BadInput, which names the lines of postgresql.conf that are missing, or NotAllowed.
    `settings_file`: of the WAL archive, for the line of archive_command."""
    if connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
        raise BadInput(
            "the server is a standby, in recovery; a physical backup is taken of the primary: "
            "name its address"
        )
    rows = connection.execute(
        "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'archive_mode', "
        "'archive_command', 'archive_library', 'max_wal_senders')"
    )
    found = dict(rows.fetchall())
    lines = []
    if found["wal_level"] == "minimal":
        lines.append("wal_level = replica")
    if found["archive_mode"] == "off":
        lines.append("archive_mode = on")
    if found["archive_command"] in ("", "(disabled)") and not found.get("archive_library"):
        command = (
            archive_command(settings_file)
            if settings_file
            else "dafnck wal push --settings FILE %p %f"
        )
        lines.append(f"archive_command = {quoted(command)}")
    if int(found["max_wal_senders"]) < 1:
        lines.append("max_wal_senders = 10")
    if lines:
        raise BadInput(
            "the server does not archive its write-ahead log; postgresql.conf lacks, and all but "
            "archive_command need a restart:\n" + "\n".join(lines)
        )
    _may(connection)


def _may(connection: Any) -> None:
    role, replication, missing = connection.execute(
        "SELECT rolname, rolreplication OR rolsuper, array_remove(ARRAY["
        " CASE WHEN NOT has_function_privilege('pg_switch_wal()', 'EXECUTE')"
        "  THEN 'EXECUTE ON FUNCTION pg_switch_wal()' END,"
        " CASE WHEN NOT has_function_privilege('pg_read_file(text)', 'EXECUTE')"
        "  THEN 'EXECUTE ON FUNCTION pg_read_file(text)' END,"
        " CASE WHEN NOT pg_has_role('pg_monitor', 'USAGE') THEN 'pg_monitor' END,"
        " CASE WHEN NOT pg_has_role('pg_read_all_data', 'USAGE') THEN 'pg_read_all_data' END],"
        " NULL) FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    grants = [f"GRANT {what} TO {role};" for what in missing]
    if not replication:
        grants.insert(0, f"ALTER ROLE {role} REPLICATION;")
    if grants:
        raise NotAllowed(
            f"the role {role} may not take a physical backup; as a superuser:\n" + "\n".join(grants)
        )


def finish_segment(connection: Any) -> str:
    """Have the server end the segment that it writes. -> its name"""
    # Without a record since the last switch nothing would be switched: this commits one.
    connection.execute("SELECT pg_current_xact_id()")
    row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
    return str(row[0])


def wait_archived(
    connection: Any, vault: Vault, prefix: str, name: str, within_seconds: float
) -> None:
    """Until this segment is in the vault. Raises NotApplied, which tells what the server's
    archiver says."""
    give_up = time.monotonic() + within_seconds
    wait = 0.05
    while not stored(vault, prefix, name):
        if time.monotonic() > give_up:
            raise NotApplied(
                f"the segment {name} is not in {prefix}/wal after {within_seconds:g}s: "
                f"{_archiver(connection)}. No backup was taken; the server keeps its log. Run its "
                "archive_command by hand, as the server's user, and look into its log"
            )
        time.sleep(wait)
        wait = min(2 * wait, MOST_LOOK_SECONDS)


def missing(vault: Vault, prefix: str, names: Iterable[str]) -> list[str]:
    """Which of these segments are not in the vault."""
    there = archived(vault, prefix)
    return [name for name in names if name not in there]


def _archiver(connection: Any) -> str:
    failed, last_failed, last, command, waiting = connection.execute(
        "SELECT failed_count, last_failed_wal, last_archived_wal, current_setting("
        "'archive_command'), (SELECT count(*) FROM pg_ls_archive_statusdir()"
        " WHERE name LIKE '%.ready') FROM pg_stat_archiver"
    ).fetchone()
    said = f"the server archived {last or 'none'} last, {waiting} wait"
    if failed:
        said += f", {failed} attempts failed, the last one at {last_failed}"
    else:
        said += f"; none failed: does its archive_command ({command}) store there?"
    return said
