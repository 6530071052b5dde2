"""Restores a physical backup, and recovers it by its log to the newest moment or to one that is
named.

First to the place in the log where it is known what every table held: what differs there is told.
From there on to the target. A real recovery ends with a server that is shut down, whole, on a
timeline of its own, for its own service to start; a drill leaves it running until the body ends.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.files import scratch
from blocks.pg_amcheck import amcheck
from blocks.pg_facts import database_facts
from blocks.pg_physical import STREAM as BASE
from blocks.pg_proved_place import databases
from blocks.pg_recovery_files import (
    laid_aside,
    recover_at_next_start,
    settings_of,
    stop,
    unpack,
    verify,
)
from blocks.pg_throwaway import own_by_server_user, throwaway
from blocks.ports import StreamOf, Vault
from blocks.postgres import Server
from blocks.recovery_log import why
from blocks.wal_archive import archived
from blocks.wal_relay import Relay, relay
from policy.backup_manifest import Difference, Manifest
from policy.errors import BadInput, DafnckError, Damaged, NotApplied, Refused, Unreachable
from policy.wal_compare import differences
from policy.wal_facts import WalFacts
from policy.wal_segments import is_segment, lsn, number_of

LOOK_SECONDS = 0.05

Condition = Callable[[Any], bool]


@dataclass(frozen=True)
class Recovered:
    """How far it came."""

    until: datetime | None  # commit of the newest transaction in it; None: none was replayed
    lsn: str
    timeline: int
    segments: int  # that were replayed


class PhysicalRestore:
    """A Restoring, and a context: a drill's server runs until the body ends.

        with PhysicalRestore(folder / "data", vault, prefix, key) as place:
            place.restore(manifest, stream_of)
            place.differences(manifest)      # and place.server, place.recovered

    `data_directory`: not there, or empty; of a drill in a `server_folder`, which the server's user
    gets to. `target_time` (with a time zone) or `target_lsn`: up to
    there, what was committed at that moment included; neither: all that was archived. `drill`:
    False leaves the server shut down, for its own service to start."""

    def __init__(
        self,
        data_directory: Path,
        vault: Vault,
        prefix: str,
        identity_file: Path,
        *,
        target_time: datetime | None = None,
        target_lsn: str | None = None,
        drill: bool = True,
        prove: bool = True,
        within_seconds: float = 24 * 3600.0,
    ) -> None:
        """`prove`: stop at the place where the facts hold, and compare them."""
        if target_time is not None and target_lsn is not None:
            raise BadInput("name a time or a place in the log to recover to, not both")
        if target_time is not None and target_time.tzinfo is None:
            raise BadInput(f"{target_time} has no time zone; write 2026-11-25T02:15:00Z")
        self._data, self._vault, self._prefix = data_directory.absolute(), vault, prefix
        self._identity, self._time, self._lsn = identity_file, target_time, target_lsn
        self._drill, self._prove, self._within = drill, prove, within_seconds
        self._held = ExitStack()
        self._server: Server | None = None
        self._found: list[Difference] = []
        self.recovered: Recovered | None = None

    def __enter__(self) -> "PhysicalRestore":
        return self

    def __exit__(self, *_: object) -> None:
        self._server = None
        self._held.close()

    @property
    def server(self) -> Server:
        """Of a drill, after `restore`. Raises NotApplied."""
        if self._server is None:
            raise NotApplied("no restored server runs; restore first, as a drill")
        return self._server

    @property
    def recovered_until(self) -> datetime | None:
        """Commit of the newest transaction that is in what was restored."""
        return self.recovered.until if self.recovered else None

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        """Raises BadInput, Refused: the target cannot be reached; Damaged: the backup or its log is
        not whole; NotApplied. What was half restored stays in the data directory."""
        wal = manifest.facts.wal
        if wal is None:
            raise BadInput(f"{manifest.id} is no physical backup; it is {manifest.kind}")
        self._possible(wal)
        with stream_of(BASE) as stream:
            unpack(stream, self._data)
        verify(self._data, _major(wal))
        with ExitStack() as held:
            place = held.enter_context(scratch(self._data.parent, "recovery"))
            place.chmod(0o711)  # the server's user passes
            run = held.enter_context(self._run(place, wal))
            earlier = self._compare(run, wal) if self._proves(wal) else None
            server = held.enter_context(run.started(self._target()))
            run.wait(server, promoted, self._said())
            self.recovered = _recovered(server, run.log, earlier)
            if self._drill:
                self._server, self._held = server, held.pop_all()
            else:
                stop(self._data)
        if not self._drill:
            os.sync()  # it ran without, as what is thrown away does

    @contextmanager
    def _run(self, place: Path, wal: WalFacts) -> Iterator["_Run"]:
        said = place / "log" / "recovery"
        said.parent.mkdir()
        own_by_server_user(said.parent)
        with (
            relay(
                place / "wal",
                self._vault,
                self._prefix,
                self._identity,
                segment_bytes=wal.segment_bytes,
            ) as log,
            laid_aside(self._data, place),
        ):
            settings = {
                **settings_of(self._data, said, _major(wal), wal.libraries),
                **self._settings(log),
            }
            yield _Run(self._data, place, wal, settings, said, log, self._within)

    def differences(self, manifest: Manifest) -> list[Difference]:
        """What was not as the manifest says, at the place where it is known what was there; and of
        a drill what pg_amcheck finds. Where the target comes before that place, the latter alone.
        """
        if self.recovered is None:
            raise NotApplied("nothing was restored yet")
        found = list(self._found)
        if self._drill:
            wal = manifest.facts.wal
            assert wal is not None
            found += amcheck(self.server, _major(wal))
        return found

    def _possible(self, wal: WalFacts) -> None:
        """What can be known before anything is restored."""
        names = archived(self._vault, self._prefix)
        if lacking := [name for name in wal.segments if name not in names]:
            raise Damaged(
                f"the log that this backup cannot be opened without is not in {self._prefix}/wal: "
                f"{', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}. Nothing was "
                "restored. Take another backup"
            )
        if self._time is not None and self._time.timestamp() < wal.stopped_at:
            ended = datetime.fromtimestamp(wal.stopped_at, UTC).isoformat(timespec="seconds")
            raise BadInput(
                f"{self._said()} is before the end of the backup ({ended}), which cannot be opened "
                "then; nothing was restored. Take an older backup"
            )
        if self._lsn is None:
            return
        if lsn(self._lsn) < lsn(wal.stop_lsn):
            raise BadInput(
                f"{self._said()} is before the end of the backup ({wal.stop_lsn}), which cannot be "
                "opened then; nothing was restored. Take an older backup"
            )
        last = max((number_of(name, wal.segment_bytes), name) for name in names if is_segment(name))
        if lsn(self._lsn) >= (last[0] + 1) * wal.segment_bytes:
            raise Refused(
                f"{self._said()} is after the last segment in the archive, {last[1]}; nothing was "
                "restored. Name an earlier target, or none to recover all that was archived"
            )

    def _proves(self, wal: WalFacts) -> bool:
        """Does the target come after the place where the facts hold?"""
        if not self._prove or not wal.proved_lsn:
            return False
        if self._lsn is not None:
            return lsn(self._lsn) >= lsn(wal.proved_lsn)
        return self._time is None or self._time.timestamp() >= wal.proved_at

    def _compare(self, run: "_Run", wal: WalFacts) -> datetime | None:
        """Stop at that place, and compare. -> the newest commit by then."""
        target = {
            "recovery_target_lsn": wal.proved_lsn,
            "recovery_target_inclusive": "off",
            "recovery_target_action": "pause",
        }
        with run.started(target) as server:
            run.wait(server, paused, f"the place {wal.proved_lsn} of the log")
            with server.connect(autocommit=True) as connection:
                names = databases(connection)
                until = _last_commit(connection)
            facts = [_facts(server.at(name)) for name in names]
        self._found = differences(wal, facts)
        return until

    def _settings(self, log: Relay) -> dict[str, str]:
        # After a real recovery the server's own archive_command stores the new timeline: with
        # archiving on and no command it keeps what is to be stored. A drill keeps nothing.
        return {
            "restore_command": log.command,
            "archive_mode": "off" if self._drill else "on",
            "archive_command": "",
        }

    def _target(self) -> dict[str, str]:
        if self._time is not None:
            at = self._time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
            return {"recovery_target_time": at, "recovery_target_action": "promote"}
        if self._lsn is not None:
            return {"recovery_target_lsn": self._lsn, "recovery_target_action": "promote"}
        return {}

    def _said(self) -> str:
        if self._time is not None:
            return f"the time {self._time.isoformat()}"
        return f"the place {self._lsn} of the log" if self._lsn else "the end of the log"


@dataclass(frozen=True)
class _Run:
    """Starts of one restored server."""

    data: Path
    place: Path
    wal: WalFacts
    settings: dict[str, str]
    said: Path  # its log
    log: Relay
    within_seconds: float

    @contextmanager
    def started(self, target: Mapping[str, str]) -> Iterator[Server]:
        recover_at_next_start(self.data, self.said)
        with ExitStack() as held:
            try:
                server = held.enter_context(
                    throwaway(
                        self.place,
                        major=_major(self.wal),
                        data=self.data,
                        settings={**self.settings, **target},
                        user=self.wal.superuser,
                        within_seconds=self.within_seconds,
                    )
                )
            except NotApplied as error:
                raise self._why(next(iter(target.values()), "the end of the log")) from error
            yield server

    def wait(self, server: Server, there: Condition, said: str) -> None:
        import psycopg

        give_up = time.monotonic() + self.within_seconds
        try:
            with server.connect(autocommit=True) as connection:
                while not there(connection):
                    if time.monotonic() > give_up:
                        raise NotApplied(
                            f"the restored server did not reach {said} within "
                            f"{self.within_seconds:g}s; its recovery was ended"
                        )
                    time.sleep(LOOK_SECONDS)
        except (psycopg.OperationalError, Unreachable):
            raise self._why(said) from None

    def _why(self, target: str) -> DafnckError:
        try:
            text = self.said.read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        return why(text, self.log.trouble, target)


def _major(wal: WalFacts) -> int:
    return int(wal.server_version.partition(".")[0])


def paused(connection: Any) -> bool:
    row = connection.execute(
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE true END"
    ).fetchone()
    return bool(row[0])


def promoted(connection: Any) -> bool:
    return not connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]


def _facts(server: Server) -> Any:
    with server.connect(autocommit=True) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return database_facts(connection)


def _last_commit(connection: Any) -> datetime | None:
    row = connection.execute("SELECT pg_last_xact_replay_timestamp()").fetchone()
    return row[0].astimezone(UTC) if row[0] is not None else None


def _recovered(server: Server, log: Relay, earlier: datetime | None) -> Recovered:
    with server.connect(autocommit=True) as connection:
        until = _last_commit(connection) or earlier
        rows = connection.execute(
            "SELECT pg_last_wal_replay_lsn()::text, pg_walfile_name(pg_current_wal_lsn())"
        )
        [(place, name)] = rows.fetchall()
    segments = len({name for name in log.given if is_segment(name)})
    return Recovered(until, str(place), int(name[:8], 16), segments)
