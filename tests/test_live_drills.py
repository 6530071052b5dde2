"""Backups of a real PostgreSQL, good ones and such as only look like it: a drill must prove the
first and find the second, each for the right reason."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from backup_stage import OF_THE_TWIN, Stage, stage

from blocks.recovery_key import RecoveryKey
from blocks.signing import Keys
from policy.backup_manifest import Manifest
from policy.drill import Drill
from policy.errors import NotApplied
from policy.release import Verdict

pytestmark = pytest.mark.live

SHOP = (Path(__file__).parent / "fixtures" / "odd_shop.sql").read_text()
SMALL = """
CREATE SCHEMA s;
CREATE TABLE s.customers (id bigserial PRIMARY KEY, name text NOT NULL, at timestamptz);
CREATE TABLE s.orders (id bigserial PRIMARY KEY, customer bigint NOT NULL REFERENCES s.customers,
    amount numeric(10, 2) CHECK (amount >= 0), at timestamptz NOT NULL);
CREATE INDEX orders_at ON s.orders (at);
INSERT INTO s.customers (name, at) SELECT 'Zoë ' || n, now() FROM generate_series(1, 500) n;
INSERT INTO s.orders (customer, amount, at)
    SELECT 1 + n % 500, n, now() - n * interval '1 second' FROM generate_series(1, 5000) n;
CREATE VIEW s.late AS SELECT * FROM s.orders WHERE at < now() - interval '1 day';
SELECT lo_from_bytea(0, repeat('x', 9000)::bytea);
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    room = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    room.chmod(0o711)
    try:
        with stage(tmp_path_factory.mktemp("backups"), room) as made:
            made.sql(SMALL)
            yield made
    finally:
        shutil.rmtree(room)


@pytest.fixture
def fresh(shop: Stage) -> Stage:
    """No backups, and a right clock."""
    shutil.rmtree(shop.folder / "vault", ignore_errors=True)
    shop.later = 0.0
    return shop


def failed(done: Drill) -> str:
    assert done.verdict is Verdict.FAIL, done
    return "; ".join(done.reasons)


def test_a_good_one_is_proved_and_its_evidence_is_signed(fresh: Stage) -> None:
    wanted = {
        "expectations": {
            "s.orders": [
                {
                    "type": "expect_column_values_to_be_between",
                    "kwargs": {"column": "amount", "min_value": 0, "max_value": 5000},
                }
            ]
        },
        "fresh": {"s.orders": {"column": "at", "within": "1h"}},
        "smoke": ["SELECT count(*) = 500 FROM s.customers"],
    }
    manifest = fresh.take()
    done = fresh.drill(fresh.with_target(**wanted))
    assert done.verdict is Verdict.PASS, done
    names = {check.name for check in done.checks}
    assert names >= {"content", "expectations", "foreign keys", "freshness", "smoke queries"}
    entry = fresh.entry()
    assert entry.good
    assert entry.drills[0] == done
    assert done.rpo_seconds is not None
    assert done.rpo_seconds < 60
    database = manifest.facts.database
    assert database
    assert {(t.full_name, t.rows) for t in database.tables} == {
        ("s.customers", 500),
        ("s.orders", 5000),
    }


def test_the_odd_shop_comes_back_whole(tmp_path: Path) -> None:
    room = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    room.chmod(0o711)
    try:
        with stage(tmp_path, room) as made:
            made.sql(SHOP)
            made.take()
            assert made.drill().verdict is Verdict.PASS, made.drill()
    finally:
        shutil.rmtree(room)


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.999])
def test_a_flipped_bit(fresh: Stage, at: float) -> None:
    flip(fresh.stored(fresh.take()), at)
    assert "content: " in failed(fresh.drill())
    assert fresh.entry().good is False


def test_cut_off(fresh: Stage) -> None:
    file = fresh.stored(fresh.take())
    file.write_bytes(file.read_bytes()[:-1000])
    assert "dump.zst.age has" in failed(fresh.drill())


def test_a_missing_part(fresh: Stage) -> None:
    fresh.stored(fresh.take()).unlink()
    assert "dump.zst.age is missing" in failed(fresh.drill())


def test_another_key(fresh: Stage, tmp_path: Path) -> None:
    fresh.take()
    other = RecoveryKey(tmp_path / "other.txt")
    other.make({})
    assert "the key does not open it" in failed(fresh.drill(fresh.site.but(key=other)))


def test_swapped_whole(fresh: Stage) -> None:
    one, two = fresh.take(), fresh.take()
    here, there = fresh.stored(one).parent, fresh.stored(two).parent
    here.rename(here.with_name("aside"))
    there.rename(here)
    here.with_name("aside").rename(there)
    assert "somebody moved it here" in failed(fresh.drill())


def test_swapped_content(fresh: Stage) -> None:
    one = fresh.take()
    fresh.sql("UPDATE s.orders SET amount = amount + 1 WHERE id = 7")
    two = fresh.take()
    shutil.copyfile(fresh.stored(one), fresh.stored(two))
    words = failed(fresh.drill())
    assert "is not what was written" in words or "dump.zst.age has" in words


def test_a_manifest_that_somebody_else_signed(fresh: Stage, tmp_path: Path) -> None:
    manifest = fresh.take()
    others = Keys(tmp_path / "secrets", tmp_path / "keys")
    others.make()
    file = fresh.stored(manifest, "manifest.dsse.json")
    file.write_text(others.sign(manifest.model_dump_json().encode()))
    assert "is not ours" in failed(fresh.drill())


def test_a_manifest_that_somebody_changed(fresh: Stage) -> None:
    file = fresh.stored(fresh.take(), "manifest.dsse.json")
    envelope = json.loads(file.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    file.write_text(json.dumps(envelope))
    assert "is not ours" in failed(fresh.drill())


def test_stale(fresh: Stage) -> None:
    fresh.take()
    fresh.later = 3 * 86400
    done = fresh.drill()
    assert failed(done).startswith("recovery point objective: the newest is 3d")
    assert fresh.entry().good, "it is old, and good"


def test_too_slow(fresh: Stage) -> None:
    fresh.take()
    assert failed(fresh.drill(fresh.with_target(rto=0.001))).startswith("recovery time objective")


def test_a_place_that_cannot_be_had_makes_no_backup_bad(
    fresh: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.take()
    (tmp_path / "a file").touch()
    monkeypatch.setenv("DAFNCK_DRILL_FOLDER", str(tmp_path / "a file"))
    with pytest.raises(OSError, match="File exists"):
        fresh.drill()
    assert fresh.entry().good is None


def test_suspiciously_small(fresh: Stage) -> None:
    for _ in range(3):
        fresh.take()
    fresh.twin("TRUNCATE s.orders")
    with fresh.lying(OF_THE_TWIN):
        fresh.take()
    assert "size: " in failed(fresh.drill())


LOST = {
    "rows": ("DELETE FROM s.orders WHERE id = 77", "s.orders: rows"),
    "changed rows": ("UPDATE s.orders SET amount = 1 WHERE id = 78", "s.orders: content"),
    "another time zone": ("UPDATE s.orders SET at = at + interval '1h'", "s.orders: content"),
    "another encoding": (
        "UPDATE s.customers SET name = convert_from(convert_to(name, 'UTF8'), 'LATIN1')",
        "s.customers: content",
    ),
    "a type": ("ALTER TABLE s.customers ALTER name TYPE varchar(99)", "column name"),
    "an index": ("DROP INDEX s.orders_at", "orders_at"),
    "a foreign key": ("ALTER TABLE s.orders DROP CONSTRAINT orders_customer_fkey", "customer_fkey"),
    "a check": ("ALTER TABLE s.orders DROP CONSTRAINT orders_amount_check", "orders_amount_check"),
    "a sequence": ("SELECT setval('s.orders_id_seq', 3)", "orders_id_seq"),
    "a view": ("DROP VIEW s.late", "s.late"),
    "a large object": ("SELECT lo_unlink(oid) FROM pg_largeobject_metadata", "large object"),
    "a table": ("DROP TABLE s.orders CASCADE", "s.orders"),
    "everything": ("DROP SCHEMA s CASCADE", "s.orders"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_dump_that_lacks(fresh: Stage, name: str) -> None:
    statement, reason = LOST[name]
    fresh.twin(statement)
    with fresh.lying(OF_THE_TWIN):
        fresh.take()
    words = failed(fresh.drill())
    assert reason in words
    assert words.startswith("content: ")


def taken(made: Stage) -> list[Manifest]:
    entries = made.site.catalogue.entries(made.site.place)
    return [one.manifest for one in entries if one.manifest]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "wrote nothing"),
        ("exit 7", "ended with 7"),
        ('$REAL "$@" | head -c 100000; kill -9 $$', "ended with -9"),
    ],
)
def test_a_tool_that_fails_is_no_backup(fresh: Stage, script: str, reason: str) -> None:
    with fresh.lying(script), pytest.raises(NotApplied, match=reason):
        fresh.take()
    assert taken(fresh) == []
    assert fresh.site.catalogue.entries(fresh.site.place) == []


def test_half_a_dump_with_exit_0(fresh: Stage) -> None:
    with fresh.lying('$REAL "$@" | head -c 100000'):
        fresh.take()
    assert "pg_restore" in failed(fresh.drill())


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk can only be mounted by root")
def test_a_disk_that_fills_up_makes_no_backup_bad(
    fresh: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.sql(
        "CREATE TABLE s.large AS SELECT n, repeat(md5(n::text), 20) AS text "
        "FROM generate_series(1, 100000) n"
    )
    manifest = fresh.take()
    fresh.sql("DROP TABLE s.large")
    small = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90m", "dafnck", small], check=True)
    try:
        monkeypatch.setenv("DAFNCK_DRILL_FOLDER", str(small))
        small.chmod(0o711)
        with pytest.raises(NotApplied, match="no room for the restored copy"):
            fresh.drill(backup_id=manifest.id)
        assert fresh.entry().drills == ()
        assert fresh.entry().good is None
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()
    monkeypatch.delenv("DAFNCK_DRILL_FOLDER")
    assert fresh.drill(backup_id=manifest.id).verdict is Verdict.PASS
