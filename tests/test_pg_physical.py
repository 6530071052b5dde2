"""Physical backups with the log that the server archives: to the newest moment, to a named one, and
every way in which they cannot be told before somebody relies on them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyrage
import pytest
from conftest import wait_for
from wal_fixtures import PREFIX, Backup, Primary, a_primary, give, take, writes

from blocks.pg_physical import PhysicalSource
from blocks.pg_point_in_time import PhysicalRestore
from blocks.ports import BackupSource, Restoring, Vault
from blocks.postgres import pg_tool, server_of
from blocks.vaults import vault as vault_of
from blocks.wal_archive import archived, gaps
from blocks.wal_settings import WalSettings, archive_command, restore_command
from policy.database_facts import DatabaseFacts
from policy.errors import BadInput, Damaged, NotAllowed, NotApplied, Refused, Unreachable
from policy.wal_facts import WalFacts
from policy.wal_segments import is_segment, lsn, number_of

pytestmark = pytest.mark.live

SEGMENT = 2**20


@dataclass
class Story:
    """A server that was backed up under load, written to after, and died."""

    primary: Primary
    backup: Backup
    rows_at: dict[str, int]  # what was in `orders` at each of these moments
    moments: dict[str, datetime]
    lsn_at: dict[str, str]
    beats: list[tuple[int, str]]  # (id, lsn before it was written) of all committed heartbeats
    archived_until: int  # LSN where the last archived segment ends


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with a_primary() as primary:
        yield _story(primary)


def _story(primary: Primary) -> Story:
    primary.run(
        "CREATE TABLE heartbeat (id bigserial PRIMARY KEY, at timestamptz, lsn pg_lsn)",
        "CREATE TABLE orders (id int PRIMARY KEY, what text)",
        "CREATE TABLE quiet (id int PRIMARY KEY)",
        "CREATE UNLOGGED TABLE cache (id int)",
        "CREATE SEQUENCE numbers",
        "SELECT nextval('numbers') FROM generate_series(1, 100)",
        "INSERT INTO quiet SELECT generate_series(1, 1000)",
        "INSERT INTO cache SELECT generate_series(1, 10)",
        'CREATE DATABASE "zweite Datenbank"',
    )
    _pgbench(primary)
    rows_at, moments, places = {}, {}, {}
    with writes(primary):
        backup = take(primary, primary.folder / "base")
        for name, first, last in (("one", 1, 10), ("two", 11, 25), ("three", 26, 99)):
            primary.run(
                f"INSERT INTO orders SELECT g, 'o' FROM generate_series({first}, {last}) g"  # noqa: S608
            )
            [(at, place)] = primary.run(
                "SELECT clock_timestamp(), pg_current_wal_insert_lsn()::text"
            )
            rows_at[name], moments[name], places[name] = last, at, place
            primary.run("SELECT pg_switch_wal()")
        primary.archive_all()
        [(beats,)] = primary.run("SELECT array_agg(ROW(id, lsn)::text ORDER BY id) FROM heartbeat")
        primary.stop(signal.SIGKILL)
    names = [name for name in archived(primary.vault, PREFIX) if is_segment(name)]
    until = max(number_of(name, SEGMENT) for name in names) + 1
    pairs = [one.strip("()").split(",") for one in beats]
    known = [(int(number), place) for number, place in pairs]
    return Story(primary, backup, rows_at, moments, places, known, until * SEGMENT)


def _pgbench(primary: Primary) -> None:
    subprocess.run(
        [
            *(str(pg_tool("pgbench")), "-i", "-q", "-s", "1", "-U", "postgres"),
            *("-h", str(primary.folder), "-p", str(primary.port), "postgres"),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def place(story: Story) -> Iterator[Path]:
    """Where a copy is restored; a folder that the server's user reaches."""
    folder = story.primary.folder / f"restored-{time.monotonic_ns()}"
    folder.mkdir(mode=0o755)
    give(folder)
    yield folder
    shutil.rmtree(folder)


def test_they_keep_to_the_ports(story: Story, place: Path) -> None:
    assert isinstance(story.primary.source(), BackupSource)
    restore = PhysicalRestore(place / "data", story.primary.vault, PREFIX, story.primary.key)
    assert isinstance(restore, Restoring)


def test_all_that_was_archived_is_there(story: Story, place: Path) -> None:
    primary = story.primary
    began = time.monotonic()
    with PhysicalRestore(place / "data", primary.vault, PREFIX, primary.key) as restored:
        restored.restore(story.backup.manifest, story.backup.stream_of)
        took = time.monotonic() - began
        assert restored.differences(story.backup.manifest) == []
        with restored.server.connect(autocommit=True) as connection:
            found = {row[0] for row in connection.execute("SELECT id FROM heartbeat").fetchall()}
            orders = connection.execute("SELECT count(*) FROM orders").fetchone()
            settings = dict(
                connection.execute(
                    "SELECT name, setting FROM pg_settings WHERE name IN ('archive_mode', "
                    "'listen_addresses', 'max_logical_replication_workers')"
                ).fetchall()
            )
        assert restored.recovered is not None
        print(f"restored in {took:.1f} s, {restored.recovered}")
        # One began when the one before was committed: what was by the end of the last archived
        # segment is there, to the last one.
        had = [
            one[0] for one, after in pairwise(story.beats) if lsn(after[1]) <= story.archived_until
        ]
        assert len(had) > 20
        assert set(had) <= found
        assert orders == (99,)
        assert restored.recovered_until is not None
        assert restored.recovered_until >= story.moments["three"]
        assert restored.recovered.timeline == 2
        assert settings == {
            "archive_mode": "off",
            "listen_addresses": "",
            "max_logical_replication_workers": "0",
        }
    assert sorted(path.name for path in place.iterdir()) == ["data"]
    assert "00000002.history" not in archived(primary.vault, PREFIX)


@pytest.mark.parametrize("by", ["time", "lsn"])
def test_to_a_point_in_time(story: Story, place: Path, by: str) -> None:
    primary = story.primary
    target = (
        {"target_time": story.moments["two"]}
        if by == "time"
        else {"target_lsn": story.lsn_at["two"]}
    )
    with PhysicalRestore(place / "data", primary.vault, PREFIX, primary.key, **target) as restored:
        restored.restore(story.backup.manifest, story.backup.stream_of)
        assert restored.differences(story.backup.manifest) == []
        with restored.server.connect() as connection:
            assert connection.execute("SELECT max(id) FROM orders").fetchone() == (25,)
        assert restored.recovered_until is not None
        assert restored.recovered_until <= story.moments["two"] + timedelta(seconds=1)


def test_a_real_recovery_ends_shut_down_and_archives_on(story: Story, place: Path) -> None:
    """Its own configuration is as it was, and what the new timeline wrote waits to be archived."""
    primary, vault = story.primary, _copy_of_vault(story, place)
    data = place / "data"
    with PhysicalRestore(data, vault, PREFIX, primary.key, drill=False) as restored:
        restored.restore(story.backup.manifest, story.backup.stream_of)
        assert restored.differences(story.backup.manifest) == []
        with pytest.raises(NotApplied, match="no restored server runs"):
            restored.server  # noqa: B018
    assert sorted(path.name for path in place.iterdir()) == ["data", "vault"]
    assert "archive_timeout = 150s" in (data / "postgresql.conf").read_text()
    assert not (data / "recovery.signal").exists()
    waiting = [path.name for path in (data / "pg_wal" / "archive_status").glob("*.ready")]
    assert "00000002.history.ready" in waiting
    second = replace(primary, folder=place, data=data, vault=vault)
    second.settings = place / "wal.json"
    settings = WalSettings.read(primary.settings)
    replace(settings, vault=f"file://{place / 'vault'}").write(second.settings)
    command = archive_command(second.settings)
    second.start(f"archive_command={command}")
    try:
        assert second.run("SELECT max(id) FROM orders") == [(99,)]
        second.run("INSERT INTO orders VALUES (100, 'after')")
        second.archive_all()
        again = take(second, place / "base")
        second.run("INSERT INTO orders VALUES (101, 'after')")
        second.archive_all()
    finally:
        second.stop()
    assert gaps(vault, PREFIX, SEGMENT) == []
    # The first backup reaches over the switch of the timelines, the second one begins after it.
    for backup in (story.backup, again):
        with PhysicalRestore(
            place / f"again{backup is again}", vault, PREFIX, primary.key
        ) as restored:
            restored.restore(backup.manifest, backup.stream_of)
            assert restored.differences(backup.manifest) == []
            assert restored.recovered is not None
            assert restored.recovered.timeline == 3
            with restored.server.connect() as connection:
                assert connection.execute("SELECT max(id) FROM orders").fetchone() == (101,)


def test_by_postgresql_alone(story: Story, place: Path) -> None:
    """As somebody does it by hand, or a standby: by tar and the restore_command."""
    data = place / "data"
    data.mkdir(mode=0o700)
    subprocess.run(["tar", "-xf", story.backup.file, "-C", data], check=True)
    (data / "recovery.signal").touch()
    for path in (data, *data.rglob("*")):
        give(path)
    by_hand = replace(story.primary, folder=place, data=data)
    by_hand.start(
        f"restore_command={restore_command(story.primary.settings)}",
        "archive_mode=off",
        f"recovery_target_lsn={story.lsn_at['one']}",
        "recovery_target_action=promote",
    )
    try:
        wait_for(lambda: by_hand.run("SELECT pg_is_in_recovery()") == [(False,)], "promoted")
        assert by_hand.run("SELECT max(id) FROM orders") == [(10,)]
    finally:
        by_hand.stop()


def _copy_of_vault(story: Story, place: Path) -> Vault:
    shutil.copytree(story.primary.folder / "vault", place / "vault")
    for path in (place / "vault", *(place / "vault").rglob("*")):
        give(path)
    return vault_of(f"file://{place / 'vault'}")


def _segments(story: Story, place: Vault) -> list[str]:
    return sorted(name for name in archived(place, PREFIX) if is_segment(name))


def _restore(story: Story, place: Path, vault: Vault, **options: Any) -> PhysicalRestore:
    options = {"identity_file": story.primary.key, "prove": False, **options}
    with PhysicalRestore(place / "data", vault, PREFIX, **options) as restored:
        restored.restore(story.backup.manifest, story.backup.stream_of)
    return restored


def _facts(story: Story) -> WalFacts:
    assert story.backup.manifest.facts.wal is not None
    return story.backup.manifest.facts.wal


@pytest.mark.parametrize("which", ["needed", "after"])
def test_missing_log_is_named(story: Story, place: Path, which: str) -> None:
    vault = _copy_of_vault(story, place)
    names = _segments(story, vault)
    lost = _facts(story).segments[-1] if which == "needed" else names[-3]
    [key] = archived(vault, PREFIX)[lost]
    vault.delete(key)
    with pytest.raises(Damaged, match=f"{lost}"):
        _restore(story, place, vault)
    assert lost in [gap.first for gap in gaps(vault, PREFIX, SEGMENT)]
    if which == "needed":
        assert not (place / "data").exists()


def test_log_that_was_changed_is_named(story: Story, place: Path) -> None:
    vault = _copy_of_vault(story, place)
    [key] = archived(vault, PREFIX)[_segments(story, vault)[-2]]
    path = place / "vault" / key
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=key):
        _restore(story, place, vault)


def test_a_wrong_key_is_told(story: Story, place: Path) -> None:
    key = place / "other"
    key.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    with pytest.raises(Damaged, match="cannot be decrypted"):
        _restore(story, place, story.primary.vault, identity_file=key)


def test_targets_that_cannot_be_reached(story: Story, place: Path) -> None:
    vault, facts = story.primary.vault, _facts(story)
    early = datetime.fromtimestamp(facts.stopped_at - 5, UTC)
    with pytest.raises(BadInput, match="before the end of the backup"):
        _restore(story, place, vault, target_time=early)
    with pytest.raises(BadInput, match="before the end of the backup"):
        _restore(story, place, vault, target_lsn=facts.start_lsn)
    with pytest.raises(Refused, match="after the last segment in the archive"):
        _restore(story, place, vault, target_lsn="7/0")
    with pytest.raises(BadInput, match="no time zone"):
        _restore(story, place, vault, target_time=datetime(2026, 11, 25))
    assert not (place / "data").exists()
    late = story.moments["three"] + timedelta(days=1)
    with pytest.raises(Refused, match=r"archive ends before the time .*the last transaction"):
        _restore(story, place, vault, target_time=late)
    with pytest.raises(BadInput, match="is not empty"):
        _restore(story, place, vault)


@pytest.mark.parametrize("fault", ["cut", "flipped", "file missing"])
def test_a_copy_that_was_changed_is_told(story: Story, place: Path, fault: str) -> None:
    """Where the seal did not tell already."""
    content = bytearray(story.backup.file.read_bytes())
    if fault == "cut":
        del content[len(content) // 2 :]
    elif fault == "flipped":
        content[content.index(b"PG_VERSION") + 512] ^= 1
    else:
        name = content.index(b"global/pg_filenode.map")
        content[name : name + 6] = b"gone/x"
        content[name + 148 : name + 156] = _checksum(content[name : name + 512])
    broken = replace(story.backup, file=place / "broken")
    broken.file.write_bytes(content)
    with pytest.raises(Damaged):
        _restore(replace(story, backup=broken), place, story.primary.vault)


def _checksum(header: bytearray) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return b"%06o\0 " % sum(blank)


def test_what_differs_is_told(story: Story, place: Path) -> None:
    """The facts of another content, as if the copy had lost something without a word."""
    facts = _facts(story)

    def worse(one: DatabaseFacts) -> DatabaseFacts:
        tables = [
            table.model_copy(update={"rows": table.rows + (table.name == "quiet")})
            for table in one.tables
        ]
        numbers = [
            each.model_copy(update={"last_value": each.last_value + 500 * (each.name[-1] == "s")})
            for each in one.sequences
        ]
        return one.model_copy(update={"tables": tuple(tables), "sequences": tuple(numbers)})

    wal = facts.model_copy(
        update={
            "at_start": tuple(worse(one) for one in facts.at_start),
            "at_stop": tuple(worse(one) for one in facts.at_stop),
        }
    )
    manifest = story.backup.manifest
    other = manifest.model_copy(update={"facts": manifest.facts.model_copy(update={"wal": wal})})
    with PhysicalRestore(place / "data", story.primary.vault, PREFIX, story.primary.key) as place_:
        place_.restore(other, story.backup.stream_of)
        told = {one.what for one in place_.differences(other)}
    assert told == {
        "postgres: table public.quiet: rows",
        "postgres: sequence public.numbers: behind",
    }


def test_a_library_that_is_missing_is_told(story: Story, place: Path) -> None:
    wal = _facts(story).model_copy(update={"libraries": ("pg_cron", "not_here")})
    manifest = story.backup.manifest
    other = manifest.model_copy(update={"facts": manifest.facts.model_copy(update={"wal": wal})})
    with pytest.raises(Unreachable, match="shared_preload_libraries = not_here, which are not"):
        _restore(
            replace(story, backup=replace(story.backup, manifest=other)), place, story.primary.vault
        )


# The server that is backed up


def test_a_server_that_does_not_archive_is_told_which_lines_it_lacks() -> None:
    with a_primary(archiving=False) as primary:
        with pytest.raises(BadInput) as told:
            take(primary, primary.folder / "base", settings_file=primary.settings)
        assert "archive_mode = on\narchive_command = '" in str(told.value)
        assert "wal_level" not in str(told.value)
        primary.stop()
        primary.start("archive_mode=on", "archive_command=/bin/true")
        with pytest.raises(NotApplied, match=r"after 1s: .*archive_command \(/bin/true\) store"):
            take(primary, primary.folder / "base", wal_within_seconds=1)
        primary.run("CREATE ROLE poor LOGIN")
        poor = PhysicalSource(
            server_of(f"postgresql://poor@/postgres?host={primary.folder}&port={primary.port}"),
            primary.vault,
            PREFIX,
        )
        with pytest.raises(NotAllowed, match="ALTER ROLE poor REPLICATION"), poor.begin():
            pass
        space = primary.folder / "space"
        space.mkdir()
        give(space)
        primary.run(f"CREATE TABLESPACE fast LOCATION '{space}'")
        with pytest.raises(BadInput, match=r"tablespaces of its own \(fast\)"):
            take(primary, primary.folder / "base")


def test_a_store_that_is_away_loses_nothing() -> None:
    with a_primary() as primary:
        stored = primary.folder / "vault"
        primary.run("CREATE TABLE orders (id int)")
        primary.archive_all()
        with read_only(stored):
            primary.run("INSERT INTO orders SELECT generate_series(1, 1000)")
            [(name,)] = primary.run(
                "SELECT pg_current_xact_id()", "SELECT pg_walfile_name(pg_switch_wal())"
            )
            wait_for(
                lambda: primary.run("SELECT failed_count > 0 FROM pg_stat_archiver") == [(True,)],
                "the archiver failed",
            )
            with pytest.raises(NotApplied, match=r"attempts failed, the last one at 0000"):
                take(primary, primary.folder / "base", wal_within_seconds=0.5)
        assert "dafnck wal push: " in primary.log.read_text()
        primary.archive_all()
        assert name in archived(primary.vault, PREFIX)
        assert gaps(primary.vault, PREFIX, SEGMENT) == []


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be stored in it by the server."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
        os.chown(path, os.getuid(), os.getgid())
    yield
    for path in folders:
        path.chmod(0o755)
        give(path)


def test_a_copy_whose_server_dies_is_none(tmp_path: Path) -> None:
    with a_primary() as primary:
        with primary.source().begin() as copy:
            streams = copy.streams()
            _, stream = next(streams)
            stream.read(1000)
            primary.stop(signal.SIGQUIT)
            while stream.read(2**20):
                pass
            with pytest.raises(NotApplied, match="pg_basebackup ended with 1"):
                next(streams)
            with pytest.raises(NotApplied, match="not read to its end"):
                copy.facts()
        primary.start()
        with primary.source().begin() as copy:
            streams = copy.streams()
            next(streams)
            assert len(basebackups()) == 1
        assert basebackups() == []  # nobody read it to its end: it is killed
        streams.close()


def basebackups() -> list[int]:
    """Of this process."""
    found = psutil.Process().children(recursive=True)
    return [one.pid for one in found if one.name() == "pg_basebackup"]
