"""Directories as a stream and back: everything, and nothing outside the folder."""

import io
import os
import pwd
import shutil
import socket
import stat
import struct
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from blocks.ports import BackupSource, Restoring, StreamOf
from blocks.tree_listing import SHOWN, Entry, Tally, differences, entries, walk
from blocks.tree_restore import TreeRestore
from blocks.tree_source import CHANGED, GONE, SPECIAL, TreeSource
from policy.backup_manifest import Facts, Manifest, TreeFacts
from policy.errors import BadInput, Damaged, NotApplied


def taken(source: BackupSource) -> tuple[dict[str, bytes], Facts]:
    with source.begin() as copying:
        streams = {name: pipe.read() for name, pipe in copying.streams()}
        return streams, copying.facts()


def manifest(facts: Facts) -> Manifest:
    return Manifest(
        id="20261125T021500Z-3f9c21",
        service="shop",
        environment="prod",
        target="files",
        kind="files",
        started_at=0.0,
        snapshot_at=0.0,
        finished_at=0.0,
        streams=(),
        facts=facts,
        recipients=(),
    )


def streams_of(streams: dict[str, bytes]) -> StreamOf:
    @contextmanager
    def stream_of(name: str) -> Iterator[BinaryIO]:
        with io.BytesIO(streams[name]) as stream:
            yield stream

    return stream_of


def restored(streams: dict[str, bytes], facts: Facts, folder: Path) -> TreeRestore:
    there = TreeRestore(folder)
    there.restore(manifest(facts), streams_of(streams))
    return there


def under(folder: Path, path: Path) -> Path:
    return folder / path.relative_to("/")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "a" / "deep").mkdir(parents=True)
    (tree / "a-b").mkdir()  # sorts between a and a/deep as a text
    (tree / "empty").mkdir(mode=0o711)
    (tree / "a" / "large").write_bytes(bytes(range(256)) * 10_000 + b"x")
    (tree / "a" / "deep" / "program").write_text("#!/bin/sh\n")
    (tree / "a" / "deep" / "program").chmod(0o4750)
    (tree / "a-b" / "none").touch()
    (tree / "Größe\n\tx").write_text("ü")
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\xfe")).write_text("bytes")
    (tree / ("long" * 60)).write_text("long")
    (tree / "link").symlink_to("a/large")
    (tree / "away").symlink_to("/nowhere/Größe")
    os.symlink(b"\xff", os.fsencode(tree) + b"/raw")
    os.link(tree / "a" / "large", tree / "same")
    os.utime(tree / "a-b" / "none", ns=(0, 1_700_000_000_123_456_789))
    os.utime(tree / "empty", ns=(0, -1_500_000_000))
    return tree


def test_everything_comes_back(tree: Path, tmp_path: Path) -> None:
    source = TreeSource([tree])
    assert isinstance(source, BackupSource)
    streams, facts = taken(source)
    assert list(streams) == ["files", "listing"]
    folder = tmp_path / "back"
    there = restored(streams, facts, folder)
    assert isinstance(there, Restoring)
    assert there.differences(manifest(facts)) == []
    back = under(folder, tree)
    assert (back / "a" / "large").read_bytes() == (tree / "a" / "large").read_bytes()
    assert os.readlink(back / "away") == "/nowhere/Größe"
    assert stat.S_IMODE((back / "a" / "deep" / "program").stat().st_mode) == 0o4750
    assert (back / "a-b" / "none").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert (back / "empty").stat().st_mtime_ns == -1_500_000_000
    assert os.path.samefile(back / "a" / "large", back / "same")
    assert facts.tree
    assert facts.tree.count == 15
    assert facts.detail["paths"] == str(tree)
    again = taken(TreeSource([back]))[0]["listing"]
    prefix = str(folder).lstrip("/") + "/"
    assert again.decode().replace(prefix, "") == streams["listing"].decode()


def test_tar_can_read_it(tree: Path, tmp_path: Path) -> None:
    """Also without us."""
    streams, _ = taken(TreeSource([tree]))
    (tmp_path / "out").mkdir()
    argv = ["tar", "-x", "-p", "-C", tmp_path / "out"]
    subprocess.run(argv, input=streams["files"], check=True)
    back = under(tmp_path / "out", tree)
    assert (back / "Größe\n\tx").read_text() == "ü"
    assert b"\xff\xfe" in os.listdir(os.fsencode(back))


def test_each_kind_of_difference(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    there = restored(streams, facts, tmp_path / "back")
    back = under(tmp_path / "back", tree)
    (back / "a" / "large").write_bytes(b"other")  # which is `same` as well
    (back / "a" / "deep" / "program").chmod(0o755)
    (back / "a-b" / "none").unlink()
    (back / "a-b" / "more").touch()
    (back / "empty").rmdir()
    (back / "empty").symlink_to("a")
    (back / "link").unlink()
    (back / "link").symlink_to("elsewhere")
    found = {
        one.what.removeprefix(f"{tree}/".lstrip("/")): str(one)
        for one in there.differences(manifest(facts))
    }
    assert sorted(found) == [
        "a-b/more",
        "a-b/none",
        "a/deep/program",
        "a/large",
        "empty",
        "link",
        "same",
    ]
    assert "there is a file of mode 644, 0 bytes" in found["a-b/more"]
    assert "it is missing, the manifest says file of mode" in found["a-b/none"]
    assert "mode 755" in found["a/deep/program"]
    assert "mode 4750" in found["a/deep/program"]
    assert "5 bytes" in found["a/large"]
    assert "link of mode 777, to a, the manifest says directory of mode 711" in found["empty"]
    assert "to elsewhere" in found["link"]


def test_many_differences_are_counted(tmp_path: Path) -> None:
    wanted = [Entry(b"%03d" % number, 0o100644, 0, "") for number in range(SHOWN + 5)]
    found = differences(wanted, [])
    assert len(found) == SHOWN + 1
    assert "5 more differ" in str(found[-1])
    assert differences(wanted, wanted) == []


def test_several_paths_none_twice(tree: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    single.write_text("x")
    (tmp_path / "short").symlink_to(tree / "a")
    streams, facts = taken(
        TreeSource([tree / "a" / "deep", tree / "a-b", tree / "a", single, tmp_path / "short"])
    )
    there = restored(streams, facts, tmp_path / "back")
    assert there.differences(manifest(facts)) == []
    back = tmp_path / "back"
    assert under(back, single).read_text() == "x"
    assert under(back, tmp_path / "short" / "large").exists()  # what was named is followed
    assert streams["listing"].count(b"tree/a/deep/program") == 1
    (under(back, tmp_path) / "extra").touch()
    assert [one.what.rpartition("/")[2] for one in there.differences(manifest(facts))] == ["extra"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not there"), TreeSource([tmp_path / "no"]).begin():
        pass


def test_what_cannot_be_kept_is_told(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tree / "socket"))
        streams, facts = taken(TreeSource([tree]))
    assert facts.detail[SPECIAL] == f"{tree}/pipe, {tree}/socket"
    there = restored(streams, facts, tmp_path / "back")
    assert there.differences(manifest(facts)) == []


def test_files_that_change_meanwhile(tmp_path: Path) -> None:
    """The first one fills the pipe until we read."""
    tree = tmp_path / "tree"
    tree.mkdir()
    size = 8 << 20
    for name in ("0", "grows", "shrinks", "vanishes", "weird"):
        (tree / name).write_bytes(b"x" * size)
    with TreeSource([tree]).begin() as copying:
        streams: dict[str, bytes] = {}
        for name, pipe in copying.streams():
            first = pipe.read(1)
            if name == "files":
                with (tree / "0").open("ab") as file:
                    file.write(b"more")
                os.truncate(tree / "0", size // 2)
                (tree / "vanishes").unlink()
            streams[name] = first + pipe.read()
        facts = copying.facts()
    assert facts.detail[CHANGED] == f"{tree}/0"
    assert facts.detail[GONE] == f"{tree}/vanishes"
    there = restored(streams, facts, tmp_path / "back")
    assert there.differences(manifest(facts)) == []
    content = under(tmp_path / "back", tree / "0").read_bytes()
    assert len(content) == size
    assert content.endswith(b"\0" * 1000)


@pytest.fixture
def very_deep(tree: Path) -> Iterator[Path]:
    """Its paths are longer than a program may ask the kernel for."""
    handle = os.open(tree, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=handle)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    yield tree
    for left in (tree, tree.parent / "back"):
        shutil.rmtree(left, ignore_errors=True)  # as pytest itself does not


def test_paths_of_any_length(very_deep: Path) -> None:
    streams, facts = taken(TreeSource([very_deep]))
    there = restored(streams, facts, very_deep.parent / "back")
    assert there.differences(manifest(facts)) == []
    assert facts.tree
    assert facts.tree.count == 15 + 17


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A folder with a file that we may not read, also when we are root: then we are nobody."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "secret").touch(mode=0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    yield folder
    os.seteuid(was)
    shutil.rmtree(folder)


def test_what_cannot_be_read_is_no_backup(unreadable: Path) -> None:
    with pytest.raises(NotApplied, match=r"files were not copied: .*/secret: Permission denied"):
        taken(TreeSource([unreadable]))


def test_who_moves_directories_meanwhile_gets_nothing_else_copied(tmp_path: Path) -> None:
    """A link in the place of a directory leads whoever follows it to what only root may read."""
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "secrets").mkdir()
    for number in range(3):
        (tmp_path / "tree" / "a" / str(number)).write_text("ours")
        (tmp_path / "secrets" / str(number)).write_text("theirs")
    read = []
    for met in walk(os.fsencode(tmp_path / "tree"), lambda path: None):
        if met.path.endswith(b"/a"):
            (tmp_path / "tree" / "a").rename(tmp_path / "moved")
            (tmp_path / "tree" / "a").symlink_to(tmp_path / "secrets")
        if stat.S_ISREG(met.found.st_mode):
            with open(met.open(os.O_RDONLY)) as file:
                read.append(file.read())
    assert read == ["ours"] * 3


def test_attributes_and_access_lists(tree: Path, tmp_path: Path) -> None:
    program, empty = tree / "a" / "deep" / "program", tree / "empty"
    try:
        os.setxattr(program, "user.any", b"\xff\0=x\n")
        os.setxattr(empty, "user.=%", b"")
        # user::rwx user:65534:r-x group::r-- mask::r-x other::---
        acl = ((1, 7, -1), (2, 5, 65534), (4, 4, -1), (16, 5, -1), (32, 0, -1))
        access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in acl)
        os.setxattr(program, "system.posix_acl_access", access)
    except OSError as error:
        pytest.skip(f"this file system has no attributes: {error}")
    streams, facts = taken(TreeSource([tree]))
    there = restored(streams, facts, tmp_path / "back")
    back = under(tmp_path / "back", tree)
    assert os.getxattr(back / "a" / "deep" / "program", "user.any") == b"\xff\0=x\n"
    assert os.getxattr(back / "a" / "deep" / "program", "system.posix_acl_access") == access
    assert os.getxattr(back / "empty", "user.=%") == b""
    assert there.differences(manifest(facts)) == []
    out = tmp_path / "out"
    out.mkdir()
    argv = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "-C", out]
    subprocess.run(argv, input=streams["files"], check=True)
    assert os.getxattr(under(out, program), "user.any") == b"\xff\0=x\n"
    assert os.getxattr(under(out, program), "system.posix_acl_access") == access


def test_holes_are_holes_again(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "image").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"in the middle")
        file.truncate(100 << 20)
    streams, facts = taken(TreeSource([tmp_path / "tree"]))
    there = restored(streams, facts, tmp_path / "back")
    assert there.differences(manifest(facts)) == []
    back = under(tmp_path / "back", tmp_path / "tree" / "image").stat()
    assert back.st_size == 100 << 20
    assert back.st_blocks * 512 < 3 << 20


def test_who_is_not_root_gives_nobody_the_right_to_be_him(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    there = TreeRestore(tmp_path / "back", owners=False)
    there.restore(manifest(facts), streams_of(streams))
    program = under(tmp_path / "back", tree) / "a" / "deep" / "program"
    assert stat.S_IMODE(program.stat().st_mode) == 0o750
    assert there.differences(manifest(facts)) == []


def test_of_what_failed_nothing_is_left(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    back = tmp_path / "back"

    @contextmanager
    def damaged(name: str) -> Iterator[BinaryIO]:
        with io.BytesIO(streams[name]) as stream:
            yield stream
        raise Damaged("it is not what was written")

    with pytest.raises(Damaged):
        TreeRestore(back).restore(manifest(facts), damaged)
    assert list(back.iterdir()) == []
    with pytest.raises(NotApplied, match="where nothing is left"):
        restored({**streams, "files": streams["files"][:1_000_000]}, facts, back)
    assert list(back.iterdir()) == []
    assert restored(streams, facts, back).differences(manifest(facts)) == []


def test_who_stops_reading_leaves_no_thread(tree: Path) -> None:
    before = threading.active_count()
    (tree / "huge").write_bytes(bytes(8 << 20))
    with TreeSource([tree]).begin() as copying:
        for _, pipe in copying.streams():
            pipe.read(1)
            break
    assert threading.active_count() == before
    with TreeSource([tree]).begin() as copying:
        streams = copying.streams()
        next(streams)
        with pytest.raises(NotApplied, match="not read to its end"):
            next(streams)
        with pytest.raises(NotApplied, match="nothing can be said"):
            copying.facts()


def test_only_into_an_empty_folder(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    with pytest.raises(BadInput, match="is not empty"):
        restored(streams, facts, tree)
    with pytest.raises(BadInput, match="is not empty"):
        restored(streams, facts, tree / "same")


def test_a_listing_of_another_backup(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    other = {**streams, "listing": streams["listing"].replace(b"a-b", b"a-c")}
    with pytest.raises(Damaged, match="is not the one that its manifest says"):
        restored(other, facts, tmp_path / "back")
    with pytest.raises(NotApplied, match="nothing was restored"):
        TreeRestore(tmp_path / "no").differences(manifest(facts))


def archive(*members: tuple[str, bytes, str]) -> bytes:
    """(name, type, link's target)"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o755
            tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../out", tarfile.REGTYPE, "")],
        [("/out", tarfile.REGTYPE, "")],
        [("a/../../out", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, ".."), ("a/out", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "../out"), ("a", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "../there"), ("a", tarfile.DIRTYPE, "")],
        [("a", tarfile.LNKTYPE, "../secret")],
        [("a", tarfile.SYMTYPE, ".."), ("b", tarfile.LNKTYPE, "a/secret")],
        [("dev", tarfile.CHRTYPE, "")],
        [("fifo", tarfile.FIFOTYPE, "")],
    ],
)
def test_nothing_leads_out(members: list[tuple[str, bytes, str]], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "there").mkdir(mode=0o700)
    tally = Tally()
    with tally.file:
        facts = Facts(tree=tally.facts())
    with pytest.raises(NotApplied, match="was not unpacked"):
        restored({"files": archive(*members), "listing": b""}, facts, tmp_path / "back")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "secret").stat().st_nlink == 1
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o700


def test_a_cut_archive(tree: Path, tmp_path: Path) -> None:
    streams, facts = taken(TreeSource([tree]))
    for number, keep in enumerate((100_000, 1000, 0)):
        folder = tmp_path / f"back{number}"
        try:
            cut = restored({**streams, "files": streams["files"][:keep]}, facts, folder)
        except NotApplied:
            continue
        assert cut.differences(manifest(facts))


def test_a_listing_that_is_none() -> None:
    with pytest.raises(Damaged):
        list(entries(io.BytesIO(b"a\0b\n")))
    assert TreeFacts(count=0, total_bytes=0, digest="x").count == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="owners come back for root alone")
def test_owners(tree: Path, tmp_path: Path) -> None:
    os.chown(tree / "a" / "deep" / "program", 12345, 54321)
    (tree / "a" / "deep" / "program").chmod(0o4750)
    os.chown(tree / "link", 12345, 54321, follow_symlinks=False)
    streams, facts = taken(TreeSource([tree]))
    there = restored(streams, facts, tmp_path / "back")
    assert there.differences(manifest(facts)) == []
    for name in ("a/deep/program", "link"):
        found = (under(tmp_path / "back", tree) / name).lstat()
        assert (found.st_uid, found.st_gid) == (12345, 54321)
