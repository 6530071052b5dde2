"""The same promises of every vault: a folder, and an S3; and what only one of them can."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_for

from blocks.folder_vault import FolderVault
from blocks.ports import Vault
from blocks.s3_client import s3_client
from blocks.s3_upload import PART_BYTES, parts
from blocks.s3_vault import S3Vault
from blocks.stack import Ports, Stack, listens, stack_at
from blocks.vault_copy import copy
from blocks.vaults import vault
from deployments import seaweedfs
from policy.errors import BadInput, Damaged, NotApplied, Refused, Unreachable

MIB = 2**20


class Store:
    """A SeaweedFS of these tests."""

    def __init__(self, home: Path) -> None:
        ports = seaweedfs.with_parts(Ports(object_store=free_port()), runs=False)
        self.stack: Stack = stack_at(home, ports)
        seaweedfs.write_credentials(self.stack)
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.stack.ports.object_store}"

    def start(self) -> None:
        with (self.stack.home / "weed.log").open("a") as log:
            self.process = subprocess.Popen(
                seaweedfs.argv(self.stack), stdout=log, stderr=log, cwd=self.stack.home
            )
        wait_for(self.answers, "the store", 40)

    def answers(self) -> bool:
        with suppress(Exception):
            self.client().list_buckets()
            return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        return s3_client(self.endpoint, self.stack.store_credentials, 1)

    def vault(
        self, prefix: str, port: int | None = None, bucket: str = "vaults", **more: Any
    ) -> S3Vault:
        endpoint = f"http://127.0.0.1:{port}" if port else self.endpoint
        return S3Vault(bucket, prefix, endpoint, self.stack.store_credentials, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store"))
    yield store
    store.kill()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.live)])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Vault:
    if request.param == "folder":
        return FolderVault(tmp_path / "vault")
    store: Store = request.getfixturevalue("store")
    return store.vault(tmp_path.name, uploads=tmp_path / "uploads")


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def test_it_is_a_vault(here: Vault) -> None:
    assert isinstance(here, Vault)


@pytest.mark.parametrize("size", [0, 1, 3 * MIB, PART_BYTES, 20 * MIB + 7])
def test_what_is_written_is_there(here: Vault, size: int) -> None:
    content = os.urandom(size)
    assert here.write("a/b c/ä.zst", pieces(content, 3 * MIB + 1)) == (size, digest_of(content))
    assert b"".join(here.read("a/b c/ä.zst")) == content
    assert here.sizes("a/") == {"a/b c/ä.zst": size}
    assert here.sizes("b/") == {}


def test_a_second_write_replaces(here: Vault) -> None:
    here.write("a", [b"one"])
    here.write("a", [b"second"])
    assert b"".join(here.read("a")) == b"second"
    assert here.sizes("") == {"a": 6}
    here.delete("a")
    assert here.sizes("") == {}


def test_what_is_deleted_is_gone(here: Vault) -> None:
    here.write("a/b", [b"x"])
    here.write("a/bc", [b"x"])
    for _ in range(2):
        here.delete("a/b")
    assert here.sizes("") == {"a/bc": 1}
    with pytest.raises(Refused, match="there is no a/b"):
        b"".join(here.read("a/b"))


@pytest.mark.parametrize("written", [0, 5, PART_BYTES, 2 * PART_BYTES + 5])
def test_nothing_is_stored_of_content_that_fails(here: Vault, written: int) -> None:
    def content() -> Iterator[bytes]:
        yield bytes(written)
        raise OSError("the dump died")

    with pytest.raises(OSError, match="the dump died"):
        here.write("a", content())
    assert here.sizes("") == {}
    assert here.tidy("") == []  # nothing was left


def test_names(here: Vault) -> None:
    with pytest.raises(BadInput):
        here.write("", [b"x"])
    with pytest.raises(BadInput):
        here.write("/a", [b"x"])


def test_a_reader_may_stop_early(here: Vault) -> None:
    here.write("a", [bytes(20 * MIB)])
    reading = here.read("a")
    assert next(reading)
    reading.close()  # type: ignore[attr-defined]


def test_copies_are_held_against_their_digests(here: Vault, tmp_path: Path) -> None:
    second = FolderVault(tmp_path / "second")
    here.write("a/1", [b"one"])
    here.write("a/2", [b"second"])
    wanted = {"a/1": digest_of(b"one"), "a/2": digest_of(b"second")}
    assert copy(here, second, wanted) == 9
    assert b"".join(second.read("a/2")) == b"second"
    assert copy(second, here, wanted) == 9
    third = FolderVault(tmp_path / "third")
    with pytest.raises(Damaged, match="a/1 is not what was written"):
        copy(here, third, {"a/1": digest_of(b"other")})
    assert third.sizes("") == {}


def test_a_copy_that_does_not_read_back_is_removed(tmp_path: Path) -> None:
    class Rots(FolderVault):
        def read(self, key: str) -> Iterator[bytes]:
            yield b"rotten"

    source, rots = FolderVault(tmp_path / "a"), Rots(tmp_path / "b")
    source.write("a", [b"one"])
    with pytest.raises(Damaged):
        copy(source, rots, {"a": digest_of(b"one")})
    assert rots.sizes("") == {}


def test_urls(tmp_path: Path) -> None:
    assert str(vault("s3://bucket/prefix")) == "s3://bucket"
    assert str(vault("file:///mnt/a%20b")) == "/mnt/a b"
    for url in ("http://host", "s3://", "bucket", "file://", "file://host/a"):
        with pytest.raises(BadInput, match="write s3://"):
            vault(url)


def test_parts_grow() -> None:
    assert list(parts([])) == [b""]
    assert list(parts([b"", b"ab", b"", b"c"])) == [b"abc"]
    sizes = [len(part) for part in parts(bytes(MIB) for _ in range(8 * 1000 + 32 * 2 + 1))]
    assert sizes == [8 * MIB] * 1000 + [32 * MIB] * 2 + [MIB]


# -- a folder ----------------------------------------------------------------------------------


def test_a_folder_cannot_lock(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot lock"):
        FolderVault(tmp_path / "vault").write("a", [b"x"], locked_until=time.time() + 60)


def test_names_stay_inside_of_a_folder(tmp_path: Path) -> None:
    for name in ("../a", "a/../../b", "a//b", "./a"):
        with pytest.raises(BadInput):
            FolderVault(tmp_path / "vault").write(name, [b"x"])


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom blocks.folder_vault import FolderVault\n"
        "def content():\n    yield b'x'\n    print('written', flush=True)\n    time.sleep(60)\n"
        "FolderVault(Path(sys.argv[1])).write('a/b', content())\n"
    )
    here = FolderVault(tmp_path / "vault")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "vault")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        assert here.tidy("") == []  # it lives
        process.kill()
    assert here.sizes("") == {}
    assert len(here.tidy("")) == 1
    assert list((tmp_path / "vault").iterdir()) == []


@pytest.mark.live
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk])
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        here = FolderVault(disk / "vault")
        here.write("small", [bytes(MIB)])
        with pytest.raises(NotApplied, match="No space left"):
            here.write("large", (bytes(MIB) for _ in range(40)))
        assert here.sizes("") == {"small": MIB}
        assert sum(path.is_file() for path in disk.rglob("*")) == 1
        here.write("next", [bytes(10 * MIB)])
    finally:
        subprocess.run(["umount", disk], check=True)


# -- an S3 -------------------------------------------------------------------------------------


class Proxy:
    """Hands bytes on to the store, and drops every connection when so many have passed."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.drops: list[int] = []  # bytes that each of the next connections lives for
        self.dropped = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._listening.accept()
                thread = threading.Thread(target=self._serve, args=(one,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, one: socket.socket) -> None:
        budget = [self.drops.pop(0) if self.drops else 2**62]
        with one, socket.create_connection(("127.0.0.1", self._to)) as other:
            back = threading.Thread(target=self._hand_on, args=(other, one, budget))
            back.start()
            self._hand_on(one, other, budget)
            back.join()

    def _hand_on(self, a: socket.socket, b: socket.socket, budget: list[int]) -> None:
        with suppress(OSError):
            while piece := a.recv(65536):
                budget[0] -= len(piece)
                if budget[0] < 0:
                    self.dropped += 1
                    break
                b.sendall(piece)
        for one in (a, b):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """After the clients have gone."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with closing(Proxy(store.stack.ports.object_store)) as proxy:
        yield proxy


@pytest.mark.live
def test_dropped_connections(store: Store, proxy: Proxy, tmp_path: Path) -> None:
    here = store.vault(tmp_path.name, proxy.port)
    content = os.urandom(30 * MIB)
    here.write("first", [b"x"])
    proxy.drops[:] = [3 * MIB, 9 * MIB, 100_000]
    here = store.vault(tmp_path.name, proxy.port)
    assert here.write("a", pieces(content, MIB)) == (len(content), digest_of(content))
    assert proxy.dropped >= 3
    proxy.drops[:] = [5 * MIB, 100, 9 * MIB]
    proxy.dropped = 0
    here = store.vault(tmp_path.name, proxy.port)
    assert b"".join(here.read("a")) == content
    assert proxy.dropped >= 3
    assert here.sizes("") == {"first": 1, "a": len(content)}


@pytest.mark.live
def test_a_store_that_dies_and_comes_back(store: Store, tmp_path: Path) -> None:
    content = os.urandom(40 * MIB)
    coming = threading.Thread(target=store.start)

    def killing() -> Iterator[bytes]:
        for number, piece in enumerate(pieces(content, 4 * MIB)):
            if number == 5:
                store.kill()
                coming.start()
            yield piece

    here = store.vault(tmp_path.name)
    assert here.write("a", killing()) == (len(content), digest_of(content))
    coming.join()
    assert b"".join(here.read("a")) == content


@pytest.mark.live
def test_a_store_that_stays_away(tmp_path: Path, store: Store) -> None:
    here = store.vault("x", free_port(), patience_seconds=1)
    acts: list[Callable[[], object]] = [
        lambda: here.write("a", [b"x"]),
        lambda: next(here.read("a")),
        lambda: here.sizes(""),
        lambda: here.delete("a"),
        lambda: here.tidy(""),
    ]
    for act in acts:
        with pytest.raises(Unreachable):
            act()


@pytest.mark.live
def test_a_locked_object_stays(store: Store, tmp_path: Path) -> None:
    here = store.vault(tmp_path.name, bucket="locked")
    until = time.time() + 8
    for key, size in (("small", 10), ("large", 20 * MIB)):
        here.write(key, [bytes(size)], locked_until=until)
        with pytest.raises(Refused, match="is locked until"):
            here.delete(key)
        # Neither by hand.
        client, name = store.client(), f"{tmp_path.name}/{key}"
        versions = client.list_object_versions(Bucket="locked", Prefix=name)["Versions"]
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket="locked", Key=name, VersionId=versions[0]["VersionId"])
        client.delete_object(Bucket="locked", Key=name)  # hides it
        assert here.sizes(key) == {key: size}
        assert len(b"".join(here.read(key))) == size
        with pytest.raises(Refused, match="is locked until"):
            here.delete(key)
    wait_for(lambda: time.time() > until + 1, "the end of the lock")
    for key in ("small", "large"):
        here.delete(key)
    assert here.sizes("") == {}


@pytest.mark.live
def test_one_locked_version_keeps_all(store: Store, tmp_path: Path) -> None:
    here = store.vault(tmp_path.name, bucket="locked")
    here.write("a", [b"locked"], locked_until=time.time() + 600)
    here.write("a", [b"over it"])
    with pytest.raises(Refused, match="is locked until"):
        here.delete("a")
    versions = store.client().list_object_versions(Bucket="locked", Prefix=tmp_path.name)
    assert len(versions["Versions"]) == 2


@pytest.mark.live
def test_a_bucket_that_cannot_lock(store: Store, tmp_path: Path) -> None:
    store.client().create_bucket(Bucket="unlocked")
    here = store.vault(tmp_path.name, bucket="unlocked")
    with pytest.raises(BadInput, match="cannot lock"):
        here.write("a", [b"x"], locked_until=time.time() + 60)
    here.write("a", [b"x"])
    assert here.sizes("") == {"a": 1}
    here.delete("a")
    assert here.sizes("") == {}


UPLOADS = """
import sys, time
from pathlib import Path
from blocks.s3_vault import S3Vault
endpoint, credentials, prefix, uploads = sys.argv[1:]
def content():
    for _ in range(40):
        yield bytes(2**20)
    print('sent', flush=True)
    time.sleep(60)
S3Vault("vaults", prefix, endpoint, Path(credentials), uploads=Path(uploads)).write(
    "a/b", content()
)
"""


@pytest.mark.live
def test_what_a_killed_upload_left_is_removed(store: Store, tmp_path: Path) -> None:
    here = store.vault(tmp_path.name, uploads=tmp_path / "uploads")
    elsewhere = store.vault(tmp_path.name, uploads=tmp_path / "other")
    words = [store.endpoint, store.stack.store_credentials, tmp_path.name, tmp_path / "uploads"]
    with subprocess.Popen(
        [sys.executable, "-c", UPLOADS, *map(str, words)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"sent\n"
        assert here.tidy("") == []  # it lives
        process.send_signal(signal.SIGKILL)
    assert here.sizes("") == {}
    assert here.tidy("other/") == []
    assert elsewhere.tidy("") == []  # may live on another machine
    assert here.tidy("a/") == ["a/b"]
    assert here.tidy("") == []
    assert list((tmp_path / "uploads").iterdir()) == []
    asked = store.client().list_multipart_uploads(Bucket="vaults", Prefix=tmp_path.name)
    assert not asked.get("Uploads")


@pytest.mark.live
def test_an_upload_whose_store_stays_away_is_ended_later(store: Store, tmp_path: Path) -> None:
    here = store.vault(tmp_path.name, patience_seconds=1, uploads=tmp_path / "uploads")

    def content() -> Iterator[bytes]:
        yield bytes(20 * MIB)
        store.kill()
        yield bytes(20 * MIB)

    with pytest.raises(Unreachable):
        here.write("a", content())
    store.start()
    assert here.tidy("") == ["a"]


@pytest.mark.live
def test_an_upload_needs_the_same_memory_for_any_length(store: Store, tmp_path: Path) -> None:
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom blocks.s3_vault import S3Vault\n"
        "endpoint, credentials, prefix = sys.argv[1:]\n"
        "here = S3Vault('vaults', prefix, endpoint, Path(credentials))\n"
        "def most():\n"
        "    return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "here.write('small', [bytes(2**20)] * 40)\nbefore = most()\n"
        "here.write('large', (bytes(2**20) for _ in range(512)))\n"
        "for piece in here.read('large'):\n    pass\n"
        "print(before, most())\n"
    )
    words = [store.endpoint, str(store.stack.store_credentials), tmp_path.name]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < before + 40 * 1024
    assert after < 150 * 1024
    assert listens(store.stack.ports.object_store)
