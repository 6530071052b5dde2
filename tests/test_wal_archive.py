"""The write-ahead log in a vault: what is pushed is there whole, never replaced, and what is
missing is not taken for the end."""

import hashlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.ports import Vault
from blocks.vaults import vault as vault_of
from blocks.wal_archive import archived, fetch, gaps, no_longer_needed, push
from blocks.wal_settings import WalSettings, archive_command, restore_command
from deployments.wal_commands import postgresql_conf
from policy.errors import BadInput, Damaged, Refused
from policy.wal_segments import (
    gaps as gaps_among,
)
from policy.wal_segments import (
    is_segment,
    lsn,
    lsn_text,
    number_of,
    ranges,
    segment,
    segments,
    timeline_of,
)

SIZE = 2**20  # of a segment: initdb --wal-segsize=1


def a_segment(number: int, timeline: int = 1, seed: int = 0, size: int = SIZE) -> bytes:
    """As PostgreSQL writes them: half of it is random, the rest was not written yet."""
    head = struct.pack("=HHIQI4xQII", 0xD110, 2, timeline, number * size, 0, 77, size, 8192)
    body = random.Random(f"{number} {timeline} {seed}").randbytes(size // 2)
    return (head + body).ljust(size, b"\0")


class Archive:
    def __init__(self, folder: Path) -> None:
        key = pyrage.x25519.Identity.generate()
        self.url = f"file://{folder / 'vault'}"
        self.vault: Vault = vault_of(self.url)
        self.key, self.recipients = folder / "key", [str(key.to_public())]
        self.key.write_text(f"# a comment\n{key}\n")
        self.folder = folder / "pg_wal"
        self.folder.mkdir()
        self.stored = folder / "vault"

    def push(self, number: int, timeline: int = 1, seed: int = 0) -> bool:
        return self.push_file(segment(timeline, number, SIZE), a_segment(number, timeline, seed))

    def push_file(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        path.write_bytes(content)
        return push(self.vault, "shop/wal-of", path, self.recipients)

    def fetch(self, name: str, to: str = "RECOVERYXLOG") -> bool:
        return fetch(self.vault, "shop/wal-of", name, self.folder / to, self.key)

    def key_of(self, name: str) -> str:
        [key] = archived(self.vault, "shop/wal-of")[name]
        return key


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


NAME = segment(1, 5, SIZE)


def test_what_is_pushed_is_fetched(archive: Archive) -> None:
    assert archive.push(5)
    assert archive.fetch(NAME)
    got = archive.folder / "RECOVERYXLOG"
    assert got.read_bytes() == a_segment(5)
    assert got.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in archive.folder.iterdir() if path.name[0] == "."] == []
    [stored] = [path for path in archive.stored.rglob("*") if path.is_file()]
    assert stored.read_bytes().startswith(b"age-encryption.org/v1\n")
    assert stored.stat().st_size < SIZE * 0.6  # what is not written takes no room


def test_pushed_twice_is_stored_once(archive: Archive) -> None:
    assert archive.push(5)
    before = archive.vault.sizes("")
    assert not archive.push(5)
    assert archive.vault.sizes("") == before


def test_other_content_of_the_same_name_is_refused(archive: Archive) -> None:
    archive.push(5)
    with pytest.raises(Refused, match=f"{NAME} is in shop/wal-of/wal already, with other content"):
        archive.push(5, seed=1)
    archive.fetch(NAME)
    assert (archive.folder / "RECOVERYXLOG").read_bytes() == a_segment(5)


def test_two_servers_that_wrote_at_once_are_told(archive: Archive, tmp_path: Path) -> None:
    archive.push(5)
    key = archive.key_of(NAME)
    other = key.replace(hashlib.sha256(a_segment(5)).hexdigest(), "0" * 64)
    archive.vault.write(other, archive.vault.read(key))
    with pytest.raises(Refused, match="with 2 contents"):
        archive.fetch(NAME)


def test_the_other_files_of_the_log(archive: Archive) -> None:
    for name in ("00000002.history", "000000010000000000000005.00000028.backup"):
        assert not archive.fetch(name)
        assert archive.push_file(name, b"1\t0/5000000\tno recovery target specified\n")
        assert not archive.push_file(name, b"1\t0/5000000\tno recovery target specified\n")
        assert archive.fetch(name)
        with pytest.raises(Refused, match="other content"):
            archive.push_file(name, b"another")
    assert archive.push_file("000000010000000000000005.partial", a_segment(5))


@pytest.mark.parametrize("name", ["../x", "000000010000000000000005.age", "pg_control", ""])
def test_what_is_no_file_of_the_log_is_refused(archive: Archive, name: str) -> None:
    (archive.folder / "x").write_bytes(b"x")
    with pytest.raises(BadInput, match="no name of a file"):
        push(archive.vault, "p", archive.folder / "x", archive.recipients, name=name or "-")
    with pytest.raises(BadInput, match="no name of a file"):
        archive.fetch(name)


def test_a_segment_under_a_wrong_name_is_refused(archive: Archive) -> None:
    with pytest.raises(Refused, match="holds another part of the log"):
        archive.push_file(segment(1, 6, SIZE), a_segment(5))
    with pytest.raises(Refused, match="no whole segment"):
        archive.push_file(NAME, a_segment(5)[:-1])
    with pytest.raises(Refused, match="no segment"):
        archive.push_file(NAME, b"")
    assert archived(archive.vault, "shop/wal-of") == {}


def test_the_end_of_the_log_is_no_hole(archive: Archive) -> None:
    archive.push(5)
    assert not archive.fetch(segment(1, 6, SIZE))
    assert not (archive.folder / "RECOVERYXLOG").exists()
    assert not archive.fetch("00000002.history")


def test_a_hole_is_no_end_of_the_log(archive: Archive) -> None:
    for number in (3, 4, 6, 9):
        archive.push(number)
    with pytest.raises(Damaged, match=f"{NAME} is missing .*{segment(1, 6, SIZE)} is there"):
        archive.fetch(NAME)
    told = gaps(archive.vault, "shop/wal-of", SIZE)
    assert [str(gap) for gap in told] == [
        NAME,
        f"{segment(1, 7, SIZE)} to {segment(1, 8, SIZE)} (2)",
    ]


def test_a_timeline_without_its_history_is_a_hole(archive: Archive) -> None:
    archive.push(5, timeline=2)
    with pytest.raises(Damaged, match=r"00000002\.history is missing"):
        archive.fetch("00000002.history")
    archive.push(4)
    assert not archive.fetch("00000001.history")  # the first timeline has none


@pytest.mark.parametrize("fault", ["flipped", "cut", "empty", "swapped", "wrong key", "no zstd"])
def test_what_is_not_what_was_stored_is_not_restored(archive: Archive, fault: str) -> None:
    archive.push(5)
    archive.push(6)
    key, other = archive.key_of(NAME), archive.key_of(segment(1, 6, SIZE))
    path = archive.stored / key
    content = bytearray(path.read_bytes())
    if fault == "flipped":
        content[len(content) // 2] ^= 1
    elif fault == "cut":
        del content[-100:]
    elif fault == "empty":
        content.clear()
    elif fault == "swapped":
        content = bytearray((archive.stored / other).read_bytes())
    elif fault == "no zstd":
        recipient = pyrage.x25519.Recipient.from_str(archive.recipients[0])
        content = bytearray(pyrage.encrypt(a_segment(5), [recipient]))
    else:
        archive.key.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    path.write_bytes(content)
    with pytest.raises(Damaged) as told:
        archive.fetch(NAME)
    assert key in str(told.value)
    assert not (archive.folder / "RECOVERYXLOG").exists()


def test_a_key_that_is_none_is_not_told(archive: Archive) -> None:
    archive.push(5)
    archive.key.write_text("AGE-SECRET-KEY-1WRONG\n")
    with pytest.raises(BadInput, match="holds no age private key") as told:
        archive.fetch(NAME)
    assert "WRONG" not in str(told.value)


def test_what_older_backups_needed_is_no_longer_needed(archive: Archive) -> None:
    for number in (3, 4, 5):
        archive.push(number)
    archive.push(5, timeline=2)
    archive.push_file("00000002.history", b"1\t0/5\n")
    archive.push_file(f"{segment(1, 4, SIZE)}.00000028.backup", b"x")
    told = no_longer_needed(archive.vault, "shop/wal-of", NAME, SIZE)
    names = sorted(key.rpartition("/")[2].split(".")[0] for key in told)
    assert names == [segment(1, 3, SIZE), segment(1, 4, SIZE), segment(1, 4, SIZE)]


# The names themselves


def test_names() -> None:
    assert segment(1, 255) == "0000000100000000000000FF"
    assert segment(1, 256) == "000000010000000100000000"
    assert segment(1, 4096, SIZE) == "000000010000000100000000"
    assert lsn("16/B374D848") == 0x16B374D848
    assert segments(1, "0/2000028", "0/3000000") == [segment(1, 2)]
    assert segments(1, "0/2000028", "0/3000001") == [segment(1, 2), segment(1, 3)]
    assert is_segment(NAME)
    assert not is_segment(f"{NAME}.partial")
    with pytest.raises(ValueError, match="no position"):
        lsn("17")


@given(st.integers(0, 2**60), st.integers(1, 2**32 - 1), st.sampled_from([2**20, 2**24, 2**30]))
def test_names_and_numbers_are_one_to_one(position: int, timeline: int, size: int) -> None:
    name = segment(timeline, position // size, size)
    assert (number_of(name, size), timeline_of(name)) == (position // size, timeline)
    assert lsn(lsn_text(position)) == position


@given(st.sets(st.tuples(st.integers(1, 3), st.integers(1, 40)), max_size=40))
def test_what_is_there_and_what_is_missing_are_all(there: set[tuple[int, int]]) -> None:
    names = [segment(*one) for one in there]

    def all_of(found: list[object]) -> list[tuple[int, int]]:
        return [
            (timeline_of(one.first), number)  # type: ignore[attr-defined]
            for one in found
            for number in range(number_of(one.first), number_of(one.last) + 1)  # type: ignore[attr-defined]
        ]

    assert all_of(list(ranges(names))) == sorted(there)
    lost = all_of(list(gaps_among(names)))
    assert not set(lost) & there
    filled = [segment(*one) for one in {*there, *lost}]
    assert gaps_among(filled) == []
    for timeline in {one[0] for one in there}:
        mine = [number for one, number in there if one == timeline]
        inside = {(timeline, number) for number in range(min(mine), max(mine))} - there
        assert inside <= set(lost)


def test_where_a_timeline_left_an_older_one_nothing_is_missing() -> None:
    names = [segment(1, 3), segment(1, 4), segment(2, 5), segment(2, 6), "00000002.history"]
    assert gaps_among(names) == []
    assert [str(one) for one in gaps_among([*names[:1], *names[2:]])] == [segment(1, 4)]


# As PostgreSQL starts it


@pytest.fixture
def settings(archive: Archive, tmp_path: Path) -> Path:
    file = tmp_path / "a home" / "archive.json"
    settings = WalSettings(
        archive.url, "shop/wal-of", tuple(archive.recipients), identity=str(archive.key)
    )
    settings.write(file)
    assert WalSettings.read(file) == settings
    return file


def as_postgres(
    command: str, path: str, name: str, cwd: Path
) -> "subprocess.CompletedProcess[str]":
    line = re.sub("%(.)", lambda m: {"p": path, "f": name, "%": "%"}[m[1]], command)
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_as_a_command(archive: Archive, settings: Path, tmp_path: Path) -> None:
    (archive.folder / NAME).write_bytes(a_segment(5))
    (archive.folder / "blocks.py").write_text("raise SystemExit(7)")  # in the data directory
    push_it, fetch_it = archive_command(settings), restore_command(settings)
    here = archive.folder
    for _ in range(2):
        done = as_postgres(push_it, NAME, NAME, here)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert as_postgres(fetch_it, "RECOVERYXLOG", NAME, here).returncode == 0
    assert (here / "RECOVERYXLOG").read_bytes() == a_segment(5)
    assert as_postgres(fetch_it, "RECOVERYXLOG", segment(1, 6, SIZE), here).returncode == 1
    (here / NAME).write_bytes(a_segment(5, seed=1))
    refused = as_postgres(push_it, NAME, NAME, here)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"dafnck wal push: {NAME} is in shop/wal-of/wal already")
    assert refused.stderr.count("\n") == 1
    archive.push(7)
    hole = as_postgres(fetch_it, "RECOVERYXLOG", segment(1, 6, SIZE), here)
    assert (hole.returncode, "is missing" in hole.stderr) == (255, True)
    settings.write_text("{}")
    assert as_postgres(push_it, NAME, NAME, here).returncode == 1
    assert as_postgres(fetch_it, "RECOVERYXLOG", NAME, here).returncode == 255


def test_a_python_that_does_not_start_is_no_end_of_the_log(settings: Path, tmp_path: Path) -> None:
    broken = restore_command(settings).replace("blocks.wal_command", "blocks.not_there")
    assert as_postgres(broken, "x", NAME, tmp_path).returncode == 255


def test_lines_for_the_server(settings: Path) -> None:
    lines = postgresql_conf(settings, 300)
    assert "archive_mode = on\n" in lines
    assert "archive_timeout = 150s\n" in lines
    assert f"{settings}' %p %f'" in lines.replace("''", "'")
    assert "archive_timeout = 10s" in postgresql_conf(settings, 1)


def test_settings_hold_no_secret(archive: Archive, settings: Path) -> None:
    assert "AGE-SECRET" not in settings.read_text()
    assert json.loads(settings.read_text())["identity"] == str(archive.key)


def test_killed_at_any_moment_nothing_is_half(archive: Archive, settings: Path) -> None:
    """A push that is killed leaves nothing, or all; the next one ends well."""
    path = archive.folder / NAME
    path.write_bytes(a_segment(5))
    argv = [sys.executable, "-P", "-m", "blocks.wal_command", "push", str(settings), str(path)]
    began = time.monotonic()
    subprocess.run(argv, check=True)
    whole = time.monotonic() - began
    archive.vault.delete(archive.key_of(NAME))
    moments = random.Random(6)
    seen = set()
    for _ in range(12):
        process = subprocess.Popen(argv)
        time.sleep(whole * moments.uniform(0.3, 1.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = archived(archive.vault, "shop/wal-of")
        seen.add(bool(there))
        if there:
            assert archive.fetch(NAME)
            archive.vault.delete(archive.key_of(NAME))
    archive.vault.tidy("")
    left = [path for path in archive.stored.rglob("*") if path.is_file()]
    assert left == []
    assert not archive.push_file(NAME, a_segment(5)) or archive.fetch(NAME)


def test_importing_it_costs_little(settings: Path) -> None:
    """A server that writes much starts one for each 16 MiB."""
    code = "import sys, blocks.wal_command, blocks.wal_archive; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    for module in ("prefect", "boto3", "pydantic", "typer", "psycopg", "sqlalchemy"):
        assert module not in done.stdout.split(), module
