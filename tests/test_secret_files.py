"""The store of this stack's secrets, and what the releases keep of it. No servers."""

import json
import os
import threading
from pathlib import Path

import pyrage
import pytest
from fakes import a_release

from blocks.postgres import server_of
from blocks.recovery_key import RecoveryKey
from blocks.release_secrets import ReleaseSecrets
from blocks.secret_files import SecretFiles
from blocks.stack import Ports, Stack
from policy.backup import database
from policy.errors import BadInput, NotAllowed, Refused
from policy.release import Release

NAME = "shop/database-url"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    home = tmp_path / "home"
    return Stack(home=home, ports=Ports(), ledger_url=str(home / "ledger.db"))


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_values_come_back_and_none_lies_in_the_clear(stack: Stack) -> None:
    files = SecretFiles(stack, lambda: 10.0)
    assert files.put(NAME, "hunter2 ö") == 1
    assert files.put(NAME, "hunter2 ö") == 1, "the same value is the same version"
    assert files.put(NAME, "hunter3") == 2
    assert files.read(NAME) == (2, "hunter3")
    assert files.read(NAME, 1) == (1, "hunter2 ö")
    assert files.names() == [NAME]
    assert b"hunter" not in content(stack.home)
    assert modes(stack.values) <= {0o600, 0o644}
    assert modes(stack.values / NAME) == {0o600}
    assert stack.values.stat().st_mode & 0o777 == 0o700
    assert not [path for path in stack.values.rglob("*") if "key.txt" in path.name]


def test_age_opens_a_value_without_us(stack: Stack) -> None:
    SecretFiles(stack).put(NAME, "hunter2")
    lines = (stack.secrets / "values-key.txt").read_text().splitlines()
    identity = pyrage.x25519.Identity.from_str(lines[-1])
    sealed = (stack.values / NAME / "1.age").read_bytes()
    assert pyrage.decrypt(sealed, [identity]) == b"hunter2"


def test_a_version_is_proposed_promoted_and_closed(stack: Stack) -> None:
    files = SecretFiles(stack)
    files.put(NAME, "one")
    assert files.propose(NAME, "two") == 2
    assert files.read(NAME) == (1, "one")
    with pytest.raises(Refused, match=r"version 2 of .* is pending"):
        files.propose(NAME, "three")
    files.promote(NAME, 2)
    files.promote(NAME, 2)
    assert files.read(NAME) == (2, "two")
    assert [one.number for one in files.versions(NAME).superseded] == [1]
    with pytest.raises(Refused, match="is the current one"):
        files.disable(NAME, 2)
    files.disable(NAME, 1)
    files.disable(NAME, 1)
    assert files.versions(NAME).superseded == ()
    with pytest.raises(Refused, match="was closed"):
        files.read(NAME, 1)
    assert not (stack.values / NAME / "1.age").exists()
    assert files.propose(NAME, "three") == 3
    assert files.put(NAME, "two") == 2, "the same value changes nothing"
    assert files.versions(NAME).pending == 3
    assert files.put(NAME, "a person's") == 3, "in place of what was pending"
    files.disable(NAME, 2)
    assert files.propose(NAME, "four") == 4
    files.drop(NAME, 4)
    with pytest.raises(Refused, match="has no version 4"):
        files.drop(NAME, 4)
    with pytest.raises(Refused, match="not pending"):
        files.promote(NAME, 4)
    files.remove(NAME)
    assert files.names() == []
    with pytest.raises(Refused, match="dafnck secret set"):
        files.read(NAME)
    assert files.put(NAME, "anew") == 4, "no number that was current is given again"


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 65_537])
def test_a_value_that_none_can_have(stack: Stack, value: str) -> None:
    with pytest.raises(Refused, match="1 to 65,536 bytes"):
        SecretFiles(stack).put(NAME, value)
    assert SecretFiles(stack).names() == []


def test_a_death_between_two_writes_loses_nothing(stack: Stack) -> None:
    """The sealed value was written, and not yet named."""
    files = SecretFiles(stack)
    files.put(NAME, "one")
    (stack.values / NAME / "2.age").write_bytes(b"half a va")
    assert files.read(NAME) == (1, "one")
    assert files.put(NAME, "two") == 2
    assert files.read(NAME) == (2, "two")


def test_many_at_once_lose_nothing(stack: Stack) -> None:
    numbers = []

    def put(value: str) -> None:
        numbers.append(SecretFiles(stack).put(NAME, value))

    threads = [threading.Thread(target=put, args=(f"v{n}",)) for n in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(numbers) == list(range(1, 13))
    assert {SecretFiles(stack).read(NAME, n)[1] for n in numbers} == {f"v{n}" for n in range(12)}


def test_the_recovery_key_opens_them_where_theirs_is_lost(stack: Stack) -> None:
    RecoveryKey(stack.secrets / "recovery-key.txt").make({})
    SecretFiles(stack).put(NAME, "hunter2")
    (stack.secrets / "values-key.txt").unlink()
    assert SecretFiles(stack).read(NAME) == (1, "hunter2")
    (stack.secrets / "recovery-key.txt").unlink()
    RecoveryKey(stack.secrets / "recovery-key.txt").make({})
    with pytest.raises(NotAllowed, match="sealed for another stack"):
        SecretFiles(stack).read(NAME)


def test_a_key_that_others_may_read_is_not_used(stack: Stack) -> None:
    SecretFiles(stack).put(NAME, "hunter2")
    (stack.secrets / "values-key.txt").chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        SecretFiles(stack).read(NAME)


def test_what_is_lost_or_opens_no_more_is_set_anew(stack: Stack) -> None:
    files = SecretFiles(stack)
    files.put(NAME, "one")
    (stack.values / NAME / "1.age").unlink()
    with pytest.raises(Refused, match="is lost"):
        files.read(NAME)
    files.put(NAME, "one")
    (stack.secrets / "values-key.txt").unlink()
    files.put(NAME, "two")
    assert files.read(NAME) == (3, "two")


def test_a_value_that_was_changed_on_disk_is_refused(stack: Stack) -> None:
    SecretFiles(stack).put(NAME, "hunter2")
    path = stack.values / NAME / "1.age"
    sealed = bytearray(path.read_bytes())
    sealed[-1] ^= 1
    path.write_bytes(sealed)
    with pytest.raises(NotAllowed, match="or changed"):
        SecretFiles(stack).read(NAME)


def wants(**references: str) -> Release:
    release = a_release(7)
    run = release.run.model_copy(update={"secrets": references})
    return release.model_copy(update={"run": run})


def test_a_release_keeps_what_it_began_with_until_that_is_closed(stack: Stack) -> None:
    files, secrets = SecretFiles(stack), ReleaseSecrets(stack)
    files.put(NAME, "one")
    release = wants(DATABASE_URL=f"secret://{NAME}")
    assert secrets.due(release)
    secrets.provide(release)
    files.put(NAME, "two")
    assert not secrets.due(release), "it has them already"
    assert secrets.values(release.id) == {"DATABASE_URL": "one"}
    assert secrets.versions(release.id)["DATABASE_URL"]["version"] == "1"
    files.disable(NAME, 1)
    assert secrets.due(release)
    secrets.provide(release)
    assert secrets.values(release.id) == {"DATABASE_URL": "two"}
    assert b"one" not in content(stack.values)
    secrets.forget(release.id)
    assert secrets.values(release.id) == {}


def test_other_sources(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_TOKEN", "t0ken")
    secrets = ReleaseSecrets(stack)
    secrets.provide(wants(A="env://CI_TOKEN"))
    assert secrets.values("shop-prod-7") == {"A": "t0ken"}
    monkeypatch.delenv("CI_TOKEN")
    assert not secrets.due(wants(A="env://CI_TOKEN")), "it outlives the environment"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("secret://shop/none", "there is no secret shop/none"),
        ("env://DAFNCK_NOT_SET", "DAFNCK_NOT_SET is not set"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_kept(
    stack: Stack, reference: str, words: str
) -> None:
    secrets = ReleaseSecrets(stack)
    with pytest.raises(Refused, match=f"run.secrets: A: .*{words}.*what serves still serves"):
        secrets.provide(wants(A=reference))
    assert secrets.versions("shop-prod-7") == {}


def test_without_its_keys_nothing_of_what_a_release_says_is_told(stack: Stack) -> None:
    SecretFiles(stack).put(NAME, "hunter2")
    secrets = ReleaseSecrets(stack)
    release = wants(URL=f"secret://{NAME}")
    secrets.provide(release)
    assert secrets.redactor(release.id).clean("bad login hunter2!") == "bad login [secret]!"
    os.unlink(stack.secrets / "values-key.txt")
    assert secrets.redactor(release.id).clean("bad login hunter2!") == "[secret]"


def test_what_a_replica_reads_is_what_was_sealed(stack: Stack) -> None:
    """By the launcher's own code, which is of the standard library and pyrage."""
    from blocks.exec_replica import opened

    SecretFiles(stack).put(NAME, "hunter2")
    secrets = ReleaseSecrets(stack)
    release = wants(URL=f"secret://{NAME}")
    secrets.provide(release)
    told = json.loads(json.dumps(secrets.to_open(release.id)))
    assert opened(**told) == {"URL": "hunter2"}
    told["keys"].append("/nowhere/recovery-key.txt")  # one that was there when it was written down
    assert opened(**told) == {"URL": "hunter2"}
    Path(told["file"]).write_bytes(b"no age file")
    with pytest.raises(SystemExit) as ended:
        opened(**told)
    assert ended.value.code == 127


def test_a_backup_reaches_its_database_by_a_secret(stack: Stack) -> None:
    reference, files = database(f"secret://{NAME}"), SecretFiles(stack)
    with pytest.raises(BadInput, match="there is no secret shop/database-url"):
        server_of(reference, files)
    files.put(NAME, "postgresql://shop:hunter2@db/shop\n")
    server = server_of(reference, files)
    assert (server.user, server.parameters["password"]) == ("shop", "hunter2")
    with pytest.raises(ValueError, match="no name of a secret"):
        database("secret://hunter2")
