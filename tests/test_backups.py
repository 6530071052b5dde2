"""What happens around a backup: half of one, two at once, copies, what is thinned out."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from conftest import wait_for

from blocks.backup_catalogue import WRITING, Catalogue, Place
from blocks.recovery_key import RecoveryKey
from blocks.signing import Keys
from blocks.stack import Ports, Stack
from blocks.vaults import vault
from policy.backup import Target
from policy.backup_manifest import BackupKind, Facts, TreeFacts
from policy.drill import Check, Drill
from policy.errors import NotApplied, Refused
from policy.release import Verdict
from tasks.backup import prune, replicate, take
from tasks.backup_site import BackupSite, Store, alone

DAY = 86400.0
Clock = list[float]


@pytest.fixture
def clock() -> Clock:
    return [1_795_000_000.0]


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> BackupSite:
    home = tmp_path / "home"
    stack = Stack(home=home, ports=Ports(), ledger_url=str(home / "ledger.db"))
    keys = Keys(stack.secrets, stack.keys)
    keys.make()
    key = RecoveryKey(stack.secrets / "recovery-key.txt")
    recipient = key.make({})
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_text("words")
    return BackupSite(
        stack,
        Place("shop", "prod", "uploads"),
        Target.model_validate(
            {
                "files": [str(tmp_path / "files")],
                "keep": {"newest": 2, "daily": 2, "weekly": 0, "monthly": 0},
            }
        ),
        Catalogue(vault(f"file://{tmp_path / 'vault'}"), keys),
        Catalogue(vault(f"file://{tmp_path / 'second'}"), keys),
        key,
        (recipient,),
        None,
        Store("", None),
        clock=lambda: clock[0],
    )


class Made:
    """One stream, and then whatever happens."""

    kind: BackupKind = "files"

    def __init__(self, then: Any, snapshot_at: float = 0.0) -> None:
        self._then, self.snapshot_at = then, snapshot_at

    @contextmanager
    def begin(self) -> Iterator["Made"]:
        yield self

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        read_end, write_end = os.pipe()
        os.write(write_end, b"half")
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            yield "files", pipe
        self._then()

    def facts(self) -> Facts:
        return Facts(tree=TreeFacts(count=0, total_bytes=0, digest=""))

    def tools(self) -> dict[str, str]:
        return {}


def left(site: BackupSite) -> list[str]:
    return sorted(site.vault.sizes(""))


def test_of_one_that_failed_nothing_is_left(site: BackupSite) -> None:
    def fail() -> None:
        raise NotApplied("the tool ended with 1")

    with pytest.raises(NotApplied, match="ended with 1"):
        take(site, Made(fail))
    assert left(site) == []


def killed(site: BackupSite) -> None:
    take(site, Made(signal.pause))


def test_of_one_that_was_killed_the_next_leaves_nothing(site: BackupSite) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed, args=(site,))
    process.start()
    wait_for(lambda: any("files.zst.age" in key for key in left(site)), "its first stream")
    (half,) = site.catalogue.entries(site.place)
    assert half.trouble == "is being written"
    assert site.catalogue.tidy(site.place, site.clock()) == [], "it is alive"
    process.kill()
    process.join()
    process.close()
    (half,) = site.catalogue.entries(site.place)
    assert (half.trouble, half.good) == ("was never finished", False)
    whole = take(site)
    assert [entry.id for entry in site.catalogue.entries(site.place)] == [whole.id]
    assert not [key for key in left(site) if half.id in key or WRITING in key]


def test_two_at_once(site: BackupSite) -> None:
    with alone(site), pytest.raises(Refused, match="already"), alone(site):
        pass


def test_thinned_out_and_copied(site: BackupSite, clock: Clock) -> None:
    taken = []
    for _ in range(4):
        clock[0] += DAY
        taken.append(take(site, Made(lambda: None, clock[0])).id)
    assert "4 copied" in replicate.fn(site)
    assert "0 copied" in replicate.fn(site)
    assert site.second
    assert [one.id for one in site.second.whole(site.place)] == taken[::-1]
    told = {fate.id: fate for fate in prune.fn(site, dry_run=True)}
    assert [one for one in taken if told[one].keep] == taken[2:]
    assert len(site.catalogue.entries(site.place)) == 4, "a dry run removes nothing"
    prune.fn(site)
    for catalogue in (site.catalogue, site.second):
        assert [one.id for one in catalogue.entries(site.place)] == taken[:1:-1]


def test_what_a_drill_found_counts_in_the_second_store_too(site: BackupSite, clock: Clock) -> None:
    """Its evidence lies in the first one alone."""
    taken = []
    for _ in range(4):
        clock[0] += DAY
        taken.append(take(site, Made(lambda: None, clock[0])).id)
    replicate.fn(site)
    bad = Check(name="content", verdict=Verdict.FAIL, reason="rows are missing")
    found = Drill(
        backup_id=taken[3],
        service="shop",
        environment="prod",
        target="uploads",
        at=clock[0],
        verdict=Verdict.FAIL,
        checks=(bad,),
        rpo_seconds=None,
        rto_seconds=None,
    )
    site.catalogue.record(site.catalogue.entry(site.place, taken[3]), found)
    prune.fn(site)
    assert site.second
    for catalogue in (site.catalogue, site.second):
        there = [one.id for one in catalogue.entries(site.place)]
        assert there == taken[:0:-1], "two good ones, beside the bad one"


def test_a_copy_that_is_not_what_it_should_be_is_none(site: BackupSite, tmp_path: Path) -> None:
    manifest = take(site)
    (file,) = (tmp_path / "vault").rglob("files.zst.age")
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match="not") as told:
        replicate.fn(site)
    assert manifest.id in str(told.value)
    assert site.second
    assert site.second.whole(site.place) == []


def test_what_somebody_else_put_there_is_no_backup(site: BackupSite, tmp_path: Path) -> None:
    manifest = take(site)
    (file,) = (tmp_path / "vault").rglob("manifest.dsse.json")
    envelope = json.loads(file.read_text())
    file.write_text(json.dumps(envelope | {"signatures": []}))
    (entry,) = site.catalogue.entries(site.place)
    assert entry.id == manifest.id
    assert "is not ours" in entry.trouble
    assert entry.good is False
