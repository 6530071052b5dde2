"""What is sealed opens whole and unchanged, or not at all."""

# ruff: noqa: PT012  contexts are what raises

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
import zstandard
from conftest import wait_for

from blocks.sealing import opening, sealing
from policy.errors import BadInput, Damaged, NotApplied

CHUNK = 65536 + 16  # of age


class Key:
    def __init__(self, folder: Path) -> None:
        identity = pyrage.x25519.Identity.generate()
        self.recipient = str(identity.to_public())
        self.file = folder / f"{self.recipient[-8:]}.txt"
        self.file.write_text(f"# made by a test\n{identity}\n")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("key"))


def sealed(plain: bytes, *recipients: str) -> tuple[bytes, int]:
    with tempfile.TemporaryFile() as file:
        file.write(plain)
        file.seek(0)
        with sealing(file, recipients) as one:
            return b"".join(one.chunks()), one.plain_bytes()


def opened(content: bytes, key: Key, plain: int | None = None) -> bytes:
    with opening(
        [content[at : at + 50_000] for at in range(0, len(content), 50_000)], key.file, plain
    ) as pipe:
        return pipe.read()


PLAIN = os.urandom(200_000) + b"the same again, " * 50_000


@pytest.fixture(scope="module")
def whole(key: Key) -> tuple[bytes, int]:
    return sealed(PLAIN, key.recipient)


@pytest.mark.parametrize("plain", [b"", b"x", PLAIN, bytes(30_000_000)], ids=len)
def test_what_was_sealed_opens(key: Key, plain: bytes) -> None:
    content, said = sealed(plain, key.recipient)
    assert said == len(plain)
    assert opened(content, key, said) == plain


def test_age_and_zstd_open_it_without_us(key: Key, whole: tuple[bytes, int]) -> None:
    identity = pyrage.x25519.Identity.from_str(key.file.read_text().splitlines()[-1])
    frame = pyrage.decrypt(whole[0], [identity])
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frame) == PLAIN


def test_each_recipient_opens_it_alone(key: Key, tmp_path: Path) -> None:
    other, third = Key(tmp_path), Key(tmp_path)
    content, said = sealed(b"for two", key.recipient, other.recipient)
    assert opened(content, key, said) == opened(content, other, said) == b"for two"
    with pytest.raises(Damaged, match="the key does not open it"):
        opened(content, third, said)


def header_bytes(content: bytes) -> int:
    return content.index(b"\n", content.index(b"\n---") + 1) + 1


def test_a_changed_bit_anywhere_is_seen(key: Key, whole: tuple[bytes, int]) -> None:
    content, head = whole[0], header_bytes(whole[0])
    start = head + 16  # the nonce
    for at in (
        0,
        head - 2,
        head,
        start,
        start + CHUNK - 1,
        start + CHUNK,
        start + 2 * CHUNK + 5,
        -1,
    ):
        bad = bytearray(content)
        bad[at] ^= 4
        with pytest.raises(Damaged, match="changed"):
            opened(bytes(bad), key)


def test_a_cut_anywhere_is_seen(key: Key, whole: tuple[bytes, int]) -> None:
    content, head = whole[0], header_bytes(whole[0])
    start = head + 16
    cuts = (
        0,
        10,
        head - 1,
        head + 3,
        start,
        start + 1,
        start + CHUNK,
        start + 2 * CHUNK,
        start + CHUNK + 9,
    )
    for length in (*cuts, len(content) - 1):
        with pytest.raises(Damaged, match="it is cut"):
            opened(content[:length], key)


def test_what_follows_the_end_is_seen(key: Key, whole: tuple[bytes, int]) -> None:
    for more in (b"x", bytes(200_000), whole[0]):
        with pytest.raises(Damaged, match="changed"):
            opened(whole[0] + more, key)


def test_a_frame_without_its_end_or_with_more_is_seen(key: Key) -> None:
    to = [pyrage.x25519.Recipient.from_str(key.recipient)]
    frame = zstandard.compress(PLAIN)
    for length in (0, 3, 9, 1000, len(frame) - 1):
        with pytest.raises(Damaged, match="it is cut"):
            opened(pyrage.encrypt(frame[:length], to), key)
    with pytest.raises(Damaged, match="it was changed"):
        opened(pyrage.encrypt(frame + b"garbage", to), key)


def test_swapped_content_is_seen(key: Key, whole: tuple[bytes, int]) -> None:
    content, _ = sealed(b"another", key.recipient)
    with pytest.raises(Damaged, match="is not what was written"):
        opened(content, key, whole[1])


def test_damage_is_the_cause_of_the_readers_trouble(key: Key, whole: tuple[bytes, int]) -> None:
    cut = whole[0][: header_bytes(whole[0]) + 16 + CHUNK]
    with pytest.raises(Damaged, match="it is cut") as told, opening([cut], key.file) as pipe:
        assert len(pipe.read()) < len(PLAIN)
        raise NotApplied("pg_restore: unexpected end of file")
    assert isinstance(told.value.__cause__, NotApplied)
    with (
        pytest.raises(NotApplied, match="no room"),
        opening([whole[0]], key.file, whole[1]) as pipe,
    ):
        pipe.read(10)
        raise NotApplied("no room")


def test_who_stops_early_is_told_nothing(key: Key, whole: tuple[bytes, int]) -> None:
    with opening([whole[0]], key.file, whole=False) as pipe:
        assert pipe.read(10) == PLAIN[:10]
    with pytest.raises(Damaged), opening([whole[0][:-5]], key.file, whole=False) as pipe:
        pipe.read()
    # What a process did not read is held against its checksum all the same.
    with pytest.raises(Damaged), opening([whole[0]], key.file, 1) as pipe:
        subprocess.run(["head", "-c", "5"], stdin=pipe, stdout=subprocess.DEVNULL, check=True)


def test_what_the_store_raises_is_raised(key: Key, whole: tuple[bytes, int]) -> None:
    def content() -> Iterator[bytes]:
        yield whole[0][:100_000]
        raise NotApplied("the store went away")

    with pytest.raises(NotApplied, match="went away"), opening(content(), key.file) as pipe:
        pipe.read()


@pytest.mark.parametrize("text", ["", "no key", "AGE-SECRET-KEY-1QQQ", "# a comment\n"])
def test_a_file_that_is_no_key(tmp_path: Path, text: str, whole: tuple[bytes, int]) -> None:
    (tmp_path / "key").write_text(text)
    for file in (tmp_path / "key", tmp_path / "missing"):
        with pytest.raises(BadInput) as told, opening([whole[0]], file) as pipe:
            pipe.read()
        assert "QQQ" not in str(told.value)


def test_a_recipient_that_is_none() -> None:
    with pytest.raises(BadInput, match="recipient"):
        sealed(b"x", "age1nothing")
    with pytest.raises(BadInput, match="no recipient"):
        sealed(b"x")


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_leaving_early_ends_the_work(key: Key) -> None:
    before = children()
    with subprocess.Popen(["cat", "/dev/urandom"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout
        with pytest.raises(KeyboardInterrupt), sealing(endless.stdout, [key.recipient]) as one:
            next(one.chunks())
            raise KeyboardInterrupt
        endless.kill()
    assert children() == before


def test_a_process_that_is_killed_leaves_nothing_whole(key: Key) -> None:
    before = children()
    with subprocess.Popen(["cat", "/dev/urandom"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout
        known = children()
        with pytest.raises(NotApplied, match="-9"), sealing(endless.stdout, [key.recipient]) as one:
            chunks = one.chunks()
            next(chunks)
            (child,) = children() - known
            os.kill(child, signal.SIGKILL)
            for _ in chunks:
                pass
        endless.kill()
    assert children() == before


def test_it_ends_when_we_die(key: Key) -> None:
    script = (
        "import sys\nfrom blocks.sealing import sealing\n"
        f"with sealing(sys.stdin.buffer, ['{key.recipient}']) as one:\n"
        "    next(one.chunks()); print(one._child.process.pid, flush=True); sys.stdin.read()\n"
    )
    with (
        subprocess.Popen(["cat", "/dev/urandom"], stdout=subprocess.PIPE) as endless,
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=endless.stdout, stdout=subprocess.PIPE
        ) as us,
    ):
        assert us.stdout
        child = int(us.stdout.readline())
        us.kill()
        wait_for(
            lambda: (
                not Path(f"/proc/{child}/cmdline").exists()
                or not Path(f"/proc/{child}/cmdline").read_bytes()
            ),
            "its end",
        )
        endless.kill()


def test_memory_does_not_grow_with_the_stream(key: Key) -> None:
    """512 MiB pass, of which half compresses."""
    script = (
        "import os\npiece = os.urandom(2**19) + bytes(2**19)\n"
        "for _ in range(512):\n    os.write(1, piece)\n"
    )
    most: dict[int, int] = {}
    before = children()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as source:
        assert source.stdout
        with sealing(source.stdout, [key.recipient]) as one:
            with opening(one.chunks(), key.file) as pipe:
                while pipe.read(2**20):
                    most |= {pid: most_kib(pid) or most[pid] for pid in children() - before}
            assert one.plain_bytes() == 2**29
    assert len(most) == 3
    assert max(most.values()) < 100 * 1024, most


def most_kib(pid: int) -> int:
    """Its peak of memory; 0 when it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) if "VmHWM:" in status else 0


def test_the_key_is_in_no_list_of_processes(key: Key, whole: tuple[bytes, int]) -> None:
    secret = key.file.read_text().splitlines()[-1].encode()
    before = children()
    with opening([whole[0]], key.file) as pipe:
        (child,) = children() - before
        pipe.read(1)
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{child}/{name}").read_bytes()


def test_what_has_no_handle_is_not_sealed(key: Key) -> None:
    with pytest.raises(OSError), sealing(io.BytesIO(b"x"), [key.recipient]):  # noqa: PT011
        pass
