"""Physical backups as a service has them: taken, drilled, recovered to a moment, copied, thinned
out, and found out when the log has a hole."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck
from wal_fixtures import PREFIX, Primary, a_primary, give, writes

from blocks.backup_catalogue import Catalogue, Place
from blocks.recovery_key import RecoveryKey
from blocks.signing import Keys
from blocks.stack import Ports, Stack
from blocks.vaults import vault
from blocks.wal_archive import archived
from blocks.wal_settings import WalSettings
from policy.backup import Target
from policy.errors import BadInput, Refused
from policy.release import Verdict
from policy.wal_segments import is_segment
from tasks.backup import prune, replicate, take
from tasks.backup_site import BackupSite, Store
from tasks.drill import drill
from tasks.physical import log_state
from tasks.restore import Where, restore
from tasks.verify_backup import verified

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

ORDERS = "SELECT count(*) FROM orders"


@pytest.fixture
def primary() -> Iterator[Primary]:
    with a_primary() as one:
        one.run(
            "CREATE TABLE orders (id bigserial PRIMARY KEY, what text)",
            "CREATE VIEW orders_at AS SELECT clock_timestamp() AS at",
        )
        yield one


@contextmanager
def room_in(primary: Primary) -> Iterator[Path]:
    """That the server's user gets to."""
    folder = primary.folder / "room"
    folder.mkdir(mode=0o755)
    give(folder)
    yield folder


@pytest.fixture
def site(primary: Primary) -> BackupSite:
    home = primary.folder / "home"
    stack = Stack(home=home, ports=Ports(), ledger_url=str(home / "ledger.db"))
    keys = Keys(stack.secrets, stack.keys)
    keys.make()
    url = f"file://{primary.folder / 'vault'}"
    target: dict[str, Any] = {
        "postgres": f"postgresql://postgres@/postgres?host={primary.folder}",
        "method": "physical",
        "smoke": ["SELECT count(*) > 0 FROM orders"],
        "fresh": {"public.orders_at": {"column": "at", "within": "1h"}},
        "keep": {"newest": 1, "daily": 0, "weekly": 0, "monthly": 0},
    }
    key = RecoveryKey(primary.key)
    return BackupSite(
        stack,
        Place("shop", "prod", "database"),
        Target.model_validate(target),
        Catalogue(vault(url), keys),
        Catalogue(vault(f"file://{primary.folder / 'second'}"), keys),
        key,
        (key.recipient(),),
        None,
        Store(url, None),
    )


def test_from_the_backup_to_the_moment_before_the_mistake(
    primary: Primary, site: BackupSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary.run("INSERT INTO orders (what) SELECT 'tea' FROM generate_series(1, 1000)")
    manifest = take(site)
    assert manifest.facts.wal
    assert manifest.facts.detail["database"] == "postgres"
    [(before,)] = primary.run(
        "INSERT INTO orders (what) VALUES ('after the backup')", "SELECT clock_timestamp()"
    )
    primary.run("DELETE FROM orders WHERE id <= 500", "SELECT pg_switch_wal()")
    primary.archive_all()

    proved = drill.fn(site, None)
    assert proved.verdict is Verdict.PASS, proved.reasons
    assert [check.name for check in proved.checks][:2] == ["content", "expectations"]
    assert proved.rpo_seconds is not None
    assert proved.rpo_seconds < proved.at - manifest.snapshot_at, "the log goes on"
    assert site.catalogue.entries(site.place)[0].good is True

    with room_in(primary) as room:
        with pytest.raises(BadInput, match="--to-folder"):
            restore.fn(site, None, Where("beside"))
        with pytest.raises(Refused, match="no good backup"):
            restore.fn(
                site, None, Where(folder=room / "data", until=datetime(2020, 1, 1).astimezone())
            )
        said = restore.fn(site, None, Where(folder=room / "data", until=before))
        assert "recovered by" in said
        again = Primary(
            room, room / "data", primary.vault, primary.settings, primary.key, primary.port
        )
        again.start("archive_mode=off")
        try:
            assert again.run(ORDERS) == [(1001,)]
        finally:
            again.stop()


def test_a_hole_in_the_log_is_found_by_the_drill(primary: Primary, site: BackupSite) -> None:
    primary.run("INSERT INTO orders (what) VALUES ('tea')")
    manifest = take(site)
    for _ in range(3):
        primary.run("INSERT INTO orders (what) VALUES ('more')", "SELECT pg_switch_wal()")
    primary.archive_all()
    held = archived(site.vault, PREFIX)
    names = sorted(name for name in held if is_segment(name))
    lost = held[names[-2]][0]
    kept = b"".join(site.vault.read(lost))
    site.vault.delete(lost)
    assert names[-2] in str(log_state(site)["gaps"])
    bad = drill.fn(site, None)
    assert bad.verdict is Verdict.FAIL
    assert f"{names[-2]} is missing" in bad.reasons[0]
    assert site.catalogue.entries(site.place)[0].good is False
    site.vault.write(lost, [kept])
    assert verified(site, None)["trouble"] == ""
    assert log_state(site)["gaps"] == []
    assert drill.fn(site, manifest.id).verdict is Verdict.PASS
    assert site.catalogue.entries(site.place)[0].good is True

    # The segment that the copy cannot be opened without.
    assert manifest.facts.wal
    site.vault.delete(held[manifest.facts.wal.segments[0]][0])
    bad = drill.fn(site, None)
    assert "cannot be opened without" in bad.reasons[0]
    assert manifest.facts.wal.segments[0] in verified(site, None)["trouble"]


def test_the_log_goes_to_the_second_store_and_leaves_with_its_backup(
    primary: Primary, site: BackupSite
) -> None:
    with writes_of(primary):
        first = take(site)
        second = take(site)
    assert "files of the log copied to" in replicate.fn(site)
    assert site.second
    assert archived(site.second.vault, PREFIX).keys() <= archived(site.vault, PREFIX).keys()
    assert "0 copied to" in replicate.fn(site)
    there = site.but(catalogue=site.second)
    assert drill.fn(there, None).reasons == []
    fates = {fate.id: fate.keep for fate in prune.fn(site)}
    assert fates == {first.id: False, second.id: True}
    assert second.facts.wal
    oldest = min(name for name in archived(site.vault, PREFIX) if is_segment(name))
    assert oldest == second.facts.wal.segments[0]
    assert log_state(site)["gaps"] == []
    assert drill.fn(site, None).reasons == []


@contextmanager
def writes_of(primary: Primary) -> Iterator[None]:
    primary.run(
        "CREATE TABLE heartbeat (id bigserial PRIMARY KEY, at timestamptz, lsn pg_lsn)",
        "INSERT INTO orders (what) VALUES ('tea')",
    )
    with writes(primary):
        yield


def test_by_the_command(
    primary: Primary, dafnck: Dafnck, service: Callable[..., Path], tmp_path: Path
) -> None:
    """What a person does: the file, the server's settings, a backup, a drill."""
    targets = {
        "db": {
            "postgres": f"postgresql://postgres@/postgres?host={primary.folder}",
            "method": "physical",
            "rpo": "10m",
        }
    }
    to = f"file://{primary.folder / 'vault'}"
    file = service("pitr", backup={"to": to, "targets": targets})
    folder = primary.folder / "archive"
    done = dafnck("wal", "setup", "--file", file, "--folder", folder)
    assert "archive_timeout = 300s" in done.stdout
    assert "archive_command = '" in done.stdout
    settings = WalSettings.read(folder / "archive.json")
    assert settings.prefix == "backups/pitr/local/db"
    assert not settings.identity, "the server can only write"
    assert "name one target" in dafnck("wal", "setup", "--folder", folder, check=2).stderr
    shutil.copy(folder / "archive.json", primary.settings)  # where its server reads it
    primary.run("INSERT INTO orders (what) VALUES ('tea')")
    words = ("--here", "--file", file)
    assert "1 backed up" in dafnck("backup", "now", "pitr", *words).stdout
    assert json.loads(dafnck("wal", "status", "--file", file, "--json").stdout)["gaps"] == []
    assert "all is there" in dafnck("drill", "pitr", *words).stdout
    assert dafnck("backup", "list", "pitr", check=2).stderr, "it serves nowhere yet"
    to_folder = ("--to-folder", tmp_path / "data", "--to-time", "yesterday")
    assert "no moment" in dafnck("restore", "pitr", *words, *to_folder, check=2).stderr
    shown = dafnck("restore", "pitr", *words, "--table", "public.orders", check=2).stderr
    assert "logical backup" in shown
