"""Files are backed up as they are, and what comes back is compared file by file."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest

from blocks.ports import BackupSource, Restoring
from blocks.tree_source import FILES, TreeRestore, TreeSource
from policy.backup_manifest import Facts, Manifest
from policy.errors import BadInput, Damaged, Refused


def taken(*paths: Path) -> tuple[dict[str, bytes], Facts]:
    source = TreeSource(paths)
    assert isinstance(source, BackupSource)
    with source.begin() as copying:
        streams = {name: pipe.read() for name, pipe in copying.streams()}
        return streams, copying.facts()


def back(streams: dict[str, bytes], facts: Facts, folder: Path) -> list[str]:
    @contextmanager
    def stream_of(name: str) -> Iterator[BinaryIO]:
        yield BytesIO(streams[name])

    there = TreeRestore(folder)
    assert isinstance(there, Restoring)
    manifest = Manifest(
        id="x", service="s", environment="e", target="t", kind="files", started_at=0,
        snapshot_at=0, finished_at=0, streams=(), facts=facts, recipients=(),
    )  # fmt: skip
    there.restore(manifest, stream_of)
    return [str(one) for one in there.differences(manifest)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o750)
    (top / "a.txt").write_text("words")
    (top / "deep" / "big").write_bytes(os.urandom(3_000_000))
    os.link(top / "a.txt", top / "deep" / "same")
    (top / "link").symlink_to("deep/er")
    (top / "dangling").symlink_to("/nowhere/at/all")
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o4755)
    Path(os.fsdecode(os.fsencode(top) + b"/caf\xe9")).write_text("latin")
    (top / "Zoë ☃").write_text("utf-8")
    with (top / "sparse").open("wb") as file:
        file.truncate(5_000_000)
    return top


def test_all_comes_back(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(tree)
    assert facts.tree
    assert facts.tree.count == 13
    assert back(streams, facts, tmp_path / "back") == []
    there = tmp_path / "back" / str(tree).lstrip("/")
    assert (there / "deep" / "same").read_text() == "words"
    assert (there / "link").readlink() == Path("deep/er")
    assert (there / "run.sh").stat().st_mode & 0o7777 == 0o4755
    assert (there / "a.txt").stat().st_mtime == (tree / "a.txt").stat().st_mtime


def test_what_is_otherwise_is_named(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(tree)
    shutil.rmtree(tree / "empty")
    (tree / "a.txt").write_text("others")
    (tree / "new").write_text("!")
    (tree / "Zoë ☃").chmod(0o600)
    changed, _ = taken(tree)
    words = back(streams | {FILES: changed[FILES]}, facts, tmp_path / "back")
    names = [line.split(": ")[0].rpartition("/")[2] for line in words]
    assert sorted(names) == ["Zoë ☃", "a.txt", "empty", "new", "same"]
    assert "is not there" in words[names.index("empty")]


def test_what_is_no_file_is_left_out_and_told(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "sock"))
        _, facts = taken(tree)
    assert {name.rpartition("/")[2] for name in facts.detail if name.startswith("left out")} == {
        "pipe", "sock",
    }  # fmt: skip


def test_what_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no"):
        taken(tmp_path / "nothing")


def test_a_file_that_shrinks_is_told(tree: Path, tmp_path: Path) -> None:
    """The stream holds what the header promised: zeros for what is gone."""
    big = tree / "deep" / "big"
    source = TreeSource([tree])
    with source.begin() as copying:
        streams = {}
        for name, pipe in copying.streams():
            if name == FILES:
                os.truncate(big, 1000)
            streams[name] = pipe.read()
        facts = copying.facts()
    assert back(streams, facts, tmp_path / "back") == []


def test_it_restores_into_an_empty_folder_alone(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(tree)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_text("mine")
    with pytest.raises(Refused, match="is not empty"):
        back(streams, facts, tmp_path / "back")


def test_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    import tarfile

    evil = BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        info = tarfile.TarInfo("../outside")
        info.size = 1
        tar.addfile(info, BytesIO(b"x"))
    (tmp_path / "tree").mkdir()
    streams, facts = taken(tmp_path / "tree")
    with pytest.raises(Damaged, match="outside"):
        back(streams | {FILES: evil.getvalue()}, facts, tmp_path / "back" / "in")
    assert not (tmp_path / "back" / "outside").exists()
