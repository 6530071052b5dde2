"""One file that opens the backups, and says whose signatures count."""

from pathlib import Path

import pyrage
import pytest

from blocks.recovery_key import RecoveryKey
from blocks.sealing import opening
from blocks.signing import Keys
from policy.errors import BadInput, Refused


@pytest.fixture
def key(tmp_path: Path) -> RecoveryKey:
    return RecoveryKey(tmp_path / "secrets" / "recovery-key.txt")


def public(folder: Path, name: str) -> dict[str, str]:
    keys = Keys(folder / name, folder / f"{name}-trusted")
    keys.make()
    return {path.stem: path.read_text() for path in (folder / f"{name}-trusted").glob("*.pem")}


def test_one_is_made_once(key: RecoveryKey) -> None:
    assert not key.there()
    recipient = key.make({})
    assert key.there()
    assert key.recipient() == recipient
    assert key.file.stat().st_mode & 0o777 == 0o600
    before = key.file.read_bytes()
    with pytest.raises(Refused, match="never open again"):
        key.make({})
    assert key.file.read_bytes() == before


def test_it_opens_what_is_sealed_for_it(key: RecoveryKey, tmp_path: Path) -> None:
    import zstandard

    to = pyrage.x25519.Recipient.from_str(key.make(public(tmp_path, "one")))
    content = pyrage.encrypt(zstandard.compress(b"content"), [to])
    with opening([content], key.file) as pipe:
        assert pipe.read() == b"content"


def test_whose_signatures_count(key: RecoveryKey, tmp_path: Path) -> None:
    one, two = public(tmp_path, "one"), public(tmp_path, "two")
    recipient = key.make(one)
    assert key.trusted() == one
    key.trust(two)
    key.trust(two)
    assert key.trusted() == {**one, **two}
    assert key.recipient() == recipient
    assert key.file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadInput):
        key.trust({"x": "AGE-SECRET-KEY-1\nx"})
    lines = key.file.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == lines[-1:]


@pytest.mark.parametrize("text", ["", "nothing", "AGE-SECRET-KEY-1QQQQ", "\xff\xfe"])
def test_a_file_that_is_none(key: RecoveryKey, text: str) -> None:
    with pytest.raises(BadInput, match="there is no"):
        key.recipient()
    key.file.parent.mkdir()
    key.file.write_bytes(text.encode("latin-1"))
    key.file.chmod(0o600)
    for act in (key.recipient, key.trusted):
        with pytest.raises(BadInput) as told:
            act()
        assert "QQQQ" not in str(told.value)


def test_one_that_others_may_read(key: RecoveryKey) -> None:
    key.make({})
    key.file.chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        key.recipient()
    assert key.there()
