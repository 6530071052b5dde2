"""dafnck's own state: copied while it is in use, restored, and held to what was said of it."""

import io
import json
import os
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from fakes import a_release, a_site, serving
from test_blocks_ledger import postgres, url  # noqa: F401 - fixtures

from blocks.ledger import Ledger
from blocks.own_state import LEDGER, NOT_IN_IT, STREAM, OwnState, OwnStateRestore
from blocks.own_state_home import settle
from blocks.own_state_ledger import copy_ledger, last_sign, load_ledger, rows
from blocks.own_state_tar import facts_of, pack, under, unpack
from blocks.ports import BackupSource, Copying, Restoring, StreamOf
from blocks.recovery_key import RecoveryKey
from blocks.secret_files import SecretFiles
from blocks.stack import Ports, Stack
from policy.backup_manifest import Facts, Manifest
from policy.errors import NotApplied, Refused, Unreachable
from policy.release import Phase
from policy.samples import Counters, Sample


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A home in which a release serves, as after some use."""
    home = tmp_path / "home"
    stack = Stack(home=home, ports=Ports(web=8899), ledger_url=str(home / "ledger.db"))
    filled(stack)
    return stack


def filled(stack: Stack) -> None:
    home = stack.home
    site = a_site(home)
    site.ledger.close()
    site.ledger = Ledger(stack.ledger_url, site.clock)
    release = serving(site, a_release(content=site.attestations.content("abc")))
    rollout = site.ledger.history(limit=1)[0]
    site.ledger.add_sample(rollout.id, Sample(1.5, Counters(3, 1, {0.1: 2.0}), None, 20, {}))
    with site.ledger.act(rollout.id, "shift", shares={release.id: 100}):
        pass
    site.ledger.close()
    (home / "artifacts" / "abc" / "artifact.json").write_text('{"size_bytes": 1}')
    stack.save()
    secret = home / "secrets" / "notify" / "ops"
    secret.parent.mkdir(mode=0o700)
    secret.write_text("slack://token\n")
    secret.chmod(0o600)
    (home / "prefect").mkdir()
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(
            """CREATE TABLE flow_run (id TEXT PRIMARY KEY, state_id TEXT, state_type TEXT,
            state_name TEXT);
            CREATE TABLE flow_run_state (id TEXT, type TEXT, name TEXT, message TEXT, flow_run_id
            TEXT REFERENCES flow_run (id) ON DELETE CASCADE)"""
        )
        for kind in ("COMPLETED", "SCHEDULED", "PENDING", "RUNNING", "PAUSED"):
            db.execute("INSERT INTO flow_run VALUES (?, ?, ?, '')", (kind, f"s-{kind}", kind))
            db.execute(
                "INSERT INTO flow_run_state VALUES (?, ?, '', '', ?)", (f"s-{kind}", kind, kind)
            )
        db.commit()


def taken(stack: Stack, meanwhile: Callable[[], None] = lambda: None) -> tuple[Manifest, bytes]:
    """Back it up. `meanwhile`: what happens after its moment was fixed."""
    with OwnState(stack).begin() as copying:
        assert isinstance(copying, Copying)
        meanwhile()
        content = {name: stream.read() for name, stream in copying.streams()}
        assert list(content) == [STREAM]
        manifest = Manifest(
            id="20261125T021500Z-3f9c21",
            service="dafnck",
            environment="own",
            target="state",
            kind="own-state",
            started_at=copying.snapshot_at,
            snapshot_at=copying.snapshot_at,
            finished_at=copying.snapshot_at,
            streams=(),
            facts=copying.facts(),
            recipients=(),
            tools=copying.tools(),
        )
    assert not list(stack.scratch.iterdir()), "nothing is left"
    return manifest, content[STREAM]


def of(content: bytes) -> StreamOf:
    @contextmanager
    def stream_of(name: str) -> Iterator[BinaryIO]:
        assert name == STREAM
        yield io.BytesIO(content)

    return stream_of


def restored(home: Path, manifest: Manifest, content: bytes) -> OwnStateRestore:
    there = OwnStateRestore(home)
    there.restore(manifest, of(content))
    return there


def test_it_is_restored_as_it_was(stack: Stack, tmp_path: Path) -> None:
    assert isinstance(OwnState(stack), BackupSource)
    manifest, content = taken(stack)
    there = restored(tmp_path / "new", manifest, content)
    assert isinstance(there, Restoring)
    assert there.differences(manifest) == []
    new = there.home
    assert sorted(path.name for path in new.iterdir()) == [
        *("artifacts", "keys", "ledger.db", "prefect", "secrets", "stack.json")
    ]
    assert json.loads((new / "stack.json").read_text())["web"] == 8899
    assert (new / "secrets" / "notify" / "ops").stat().st_mode & 0o777 == 0o600
    detail = manifest.facts.detail
    assert detail["serving"] == "shop-prod-1"
    assert detail["newest rollout"] == "1"
    assert {detail[f"rows of {name}"] for name in ("releases", "rollouts", "samples")} == {"1"}
    assert detail["keys"] == next((stack.home / "keys").iterdir()).stem
    assert NOT_IN_IT not in detail
    ledger = Ledger(str(new / "ledger.db"))
    assert ledger.stables()[0][:3] == ("shop", "prod", "shop-prod-1")
    assert ledger.samples(1) == [Sample(1.5, Counters(3, 1, {0.1: 2.0}), None, 20, {})]
    ledger.close()


def test_no_private_key_is_in_it_and_no_password(stack: Stack) -> None:
    for name in ("prefect-auth", "object-store.json", "recovery-key"):
        (stack.secrets / name).write_text("never told")
    private = (stack.secrets / "signing-key.pem").read_bytes()
    _, content = taken(stack)
    assert private not in content
    assert b"never told" not in content
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
    assert [name for name in names if name.startswith("secrets/")] == [
        *("secrets/object-store-url", "secrets/notify", "secrets/notify/ops")
    ]


def test_secrets_come_back_by_the_recovery_key_alone(stack: Stack, tmp_path: Path) -> None:
    SecretFiles(stack).put("shop/url", "hunter2")  # before there was a recovery key
    key = RecoveryKey(stack.secrets / "recovery-key.txt")
    key.make({})
    manifest, content = taken(stack)
    assert b"hunter2" not in content
    home = tmp_path / "new"
    assert restored(home, manifest, content).differences(manifest) == []
    there = Stack(home=home, ports=Ports(), ledger_url=str(home / "ledger.db"))
    shutil.copy(key.file, there.secrets / "recovery-key.txt")
    assert not (there.secrets / "values-key.txt").exists()
    assert SecretFiles(there).read("shop/url") == (1, "hunter2")
    assert SecretFiles(there).put("shop/url", "hunter3") == 2


def test_what_is_written_meanwhile_is_in_the_next_one(stack: Stack, tmp_path: Path) -> None:
    """Copied under writes, and no writer waits: the copy is of one moment."""
    ledger, stop = Ledger(stack.ledger_url), threading.Event()

    def write() -> None:
        while not stop.is_set():
            with ledger.act(1, "look"):
                pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            manifest, content = taken(stack)
            there = restored(tmp_path / f"new{number}", manifest, content)
            assert there.differences(manifest) == []
    finally:
        stop.set()
        writer.join()
        ledger.close()
    told = int(manifest.facts.detail["rows of intents"])
    assert 1 < told <= rows(Path(stack.ledger_url))["intents"]

    def one_more() -> None:
        later = Ledger(stack.ledger_url)
        with later.act(1, "later"):
            pass
        later.close()

    before = rows(Path(stack.ledger_url))["intents"]
    manifest, _ = taken(stack, one_more)
    assert manifest.facts.detail["rows of intents"] == str(before)


def test_a_home_in_use_is_refused(stack: Stack, tmp_path: Path) -> None:
    manifest, content = taken(stack)
    for name in ("ledger.db", "secrets", "stack.json"):
        home = tmp_path / f"has-{name}"
        home.mkdir()
        (home / name).touch()
        with pytest.raises(Refused, match=rf"is in use: {name} lies in it"):
            restored(home, manifest, content)
        assert [path.name for path in home.iterdir()] == [name]


@pytest.mark.parametrize("after", range(6))
def test_killed_at_any_move_the_next_one_is_whole(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    manifest, content = taken(stack)
    moved: list[Path] = []
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if len(moved) == after:
            raise KeyboardInterrupt
        moved.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        restored(tmp_path / "new", manifest, content)
    monkeypatch.undo()
    assert not (tmp_path / "new" / "stack.json").exists(), "no home before it is whole"
    assert restored(tmp_path / "new", manifest, content).differences(manifest) == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda home: (home / "keys").rename(home / "kept"), "files: count"),
        (lambda home: (home / "secrets" / "notify" / "ops").chmod(0o644), "files: digest"),
        (lambda home: (home / "artifacts/abc/app/shop.py").write_text("x"), "artifact abc of shop"),
        (lambda home: drop_a_row(home / LEDGER), "ledger: rows of samples"),
        (lambda home: spoil(home / LEDGER), "ledger.db"),
        (lambda home: (home / LEDGER).unlink(), "ledger.db"),
        (lambda home: spoil(home / "prefect" / "prefect.db"), "prefect/prefect.db"),
    ],
)
def test_differences_are_told(
    stack: Stack, tmp_path: Path, harm: Callable[[Path], object], words: str
) -> None:
    manifest, content = taken(stack)
    there = restored(tmp_path / "new", manifest, content)
    harm(there.home)
    assert any(one.what.startswith(words) for one in there.differences(manifest))


def drop_a_row(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("DELETE FROM samples")
        db.commit()


def spoil(file: Path) -> None:
    with file.open("r+b") as db:
        db.seek(file.stat().st_size // 4096 // 2 * 4096)
        db.write(b"\xff" * 2000)


def test_another_backup_than_the_manifests_is_noticed(stack: Stack, tmp_path: Path) -> None:
    _, content = taken(stack)
    ledger = Ledger(stack.ledger_url)
    with ledger.act(1, "later"):
        pass
    ledger.close()
    manifest, _ = taken(stack)
    told = [str(one) for one in restored(tmp_path / "new", manifest, content).differences(manifest)]
    assert "ledger: rows of intents: 1, the manifest says 2" in told


def test_a_damaged_ledger_is_not_backed_up(stack: Stack) -> None:
    Ledger(stack.ledger_url).close()
    spoil(Path(stack.ledger_url))
    with pytest.raises((NotApplied, Unreachable), match=r"is not whole|not copied"):
        taken(stack)
    assert not list(stack.scratch.iterdir())


def test_without_a_ledger_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    stack = Stack(home=tmp_path, ports=Ports(), ledger_url=str(tmp_path / "ledger.db"))
    with pytest.raises(Unreachable, match="there is no ledger"), OwnState(stack).begin():
        pass
    assert not (tmp_path / "ledger.db").exists()


def test_a_stream_that_is_not_read_to_its_end_is_no_backup(stack: Stack) -> None:
    (stack.artifacts / "abc" / "app" / "large").write_bytes(os.urandom(1 << 20))
    with OwnState(stack).begin() as copying:
        streams = copying.streams()
        next(streams)[1].read(10)
        with pytest.raises(NotApplied, match="was not copied"):
            next(streams)
        with pytest.raises(NotApplied, match="not read to its end"):
            copying.facts()


def test_what_no_recovery_gives_back_is_told(stack: Stack) -> None:
    shutil.rmtree(stack.artifacts / "abc")
    manifest, _ = taken(stack)
    assert manifest.facts.detail[NOT_IN_IT] == (
        "artifact abc of shop-prod-1: it is not in this home"
    )


def test_how_requests_are_shared_out_is_kept_where_a_rollout_is_frozen(
    stack: Stack, tmp_path: Path
) -> None:
    stack.dynamic.mkdir(parents=True)
    for name in ("shop-prod", "cart-prod"):
        (stack.dynamic / f"{name}.yaml").write_text("# dafnck: {}\n")
    ledger = Ledger(stack.ledger_url)
    token = ledger.take_lease("shop", "prod", "test")
    rollout = ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="2", strategy="canary"
    )
    ledger.add_release(a_release(), rollout.id)
    ledger.set_phase(rollout.id, Phase.SHIFTING)
    ledger.set_phase(rollout.id, Phase.FROZEN)
    ledger.close()
    manifest, content = taken(stack)
    assert manifest.facts.detail["serving"] == "shop-prod-1, shop-prod-2"
    there = restored(tmp_path / "new", manifest, content)
    assert [path.name for path in (there.home / "traefik" / "dynamic").iterdir()] == [
        "shop-prod.yaml"
    ]


def test_the_last_sign_of_life_is_known(stack: Stack) -> None:
    copy = stack.home / "copy.db"
    copy_ledger(stack.ledger_url, copy)
    assert (last_sign(copy) or 0) > 1_800_000_000.0


def test_a_ledger_goes_from_one_database_to_another_and_back(
    url: str,  # noqa: F811 - the fixture
    stack: Stack,
    tmp_path: Path,
) -> None:
    """By PostgreSQL as well: the same rows, and it goes on counting where it was."""
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    copy_ledger(stack.ledger_url, first)
    load_ledger(first, url)
    load_ledger(first, url)  # killed before it was written down: a second time changes nothing
    copy_ledger(url, second)
    assert rows(second) == rows(first)
    ledger = Ledger(url)
    assert ledger.samples(1) == [Sample(1.5, Counters(3, 1, {0.1: 2.0}), None, 20, {})]
    token = ledger.take_lease("shop", "prod", "test")
    new = ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="2", strategy="canary"
    )
    assert (new.id, new.stable_id) == (2, "shop-prod-1")
    with pytest.raises(Refused, match="holds something else already"):
        load_ledger(first, url)
    assert len(ledger.history()) == 2
    ledger.close()


@pytest.mark.parametrize("moved", [False, True])
def test_nothing_of_a_restored_home_goes_on_by_itself(
    stack: Stack, tmp_path: Path, moved: bool
) -> None:
    """No lease is held and no run waits for a worker; to be done twice changes nothing."""
    ledger = Ledger(stack.ledger_url)
    ledger.take_lease("shop", "prod", "release 2")
    ledger.close()
    manifest, content = taken(stack)
    home = restored(tmp_path / "new", manifest, content).home
    into = tmp_path / "elsewhere.db" if moved else home / "ledger.db"
    said = settle(home, str(into))
    assert any(one.startswith("the lease of release 2 (pid") for one in said)
    assert "2 runs of Prefect waited: removed" in said
    assert "2 runs of Prefect were under way: crashed" in said
    assert settle(home, str(into)) == []
    ledger = Ledger(str(into))
    assert ledger.leases() == []
    assert len(ledger.history()) == 1
    ledger.close()
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as db:
        left = db.execute("SELECT state_type, count(*) FROM flow_run GROUP BY 1 ORDER BY 1")
        assert left.fetchall() == [("COMPLETED", 1), ("CRASHED", 2)]
        states = db.execute("SELECT type, count(*) FROM flow_run_state GROUP BY 1 ORDER BY 1")
        assert states.fetchall() == [("COMPLETED", 1), ("CRASHED", 2)]
    assert (home / "ledger.db").exists() is not moved


@pytest.mark.live
def test_a_ledger_in_postgresql_is_backed_up_like_any_other(
    postgres: str,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    stack = Stack(home=home, ports=Ports(), ledger_url=postgres)
    filled(stack)
    (home / "ledger.db").unlink(missing_ok=True)
    manifest, content = taken(stack)
    assert manifest.facts.detail["ledger"] == "PostgreSQL"
    assert restored(tmp_path / "new", manifest, content).differences(manifest) == []
    assert postgres not in content.decode(errors="replace")


# -- the archive ------------------------------------------------------------------------------


def test_links_modes_and_names_come_back(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "a" / "empty").mkdir(parents=True)
    (there / "a" / "run").write_text("#!/bin/sh\n")
    (there / "a" / "run").chmod(0o755)
    (there / "a" / "größe\udcff").write_text("x")
    (there / "a" / "python").symlink_to("/usr/bin/python3")
    (there / "a" / "same").hardlink_to(there / "a" / "run")
    out = io.BytesIO()
    facts = pack(under(there, "a"), out)
    (tmp_path / "here").mkdir()
    unpack(io.BytesIO(out.getvalue()), tmp_path / "here")
    assert facts_of(under(tmp_path / "here", "a")) == facts
    assert facts.count == 4
    assert (tmp_path / "here" / "a" / "empty").is_dir()
    assert os.readlink(tmp_path / "here" / "a" / "python") == "/usr/bin/python3"


def an_archive(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", tarfile.REGTYPE, "")],
        [("/tmp/outside", tarfile.REGTYPE, "")],  # noqa: S108
        [("a/../../outside", tarfile.REGTYPE, "")],
        [("pipe", tarfile.FIFOTYPE, "")],
        [("twice", tarfile.REGTYPE, ""), ("twice", tarfile.REGTYPE, "")],
    ],
)
def test_nothing_is_written_elsewhere(
    tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(NotApplied, match="was not unpacked"):
        unpack(io.BytesIO(an_archive(*members)), tmp_path / "here")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_no_link_leads_out_while_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    members = [("a", tarfile.SYMTYPE, "../outside"), ("a/file", tarfile.REGTYPE, "")]
    with pytest.raises(NotApplied, match="was not unpacked"):
        unpack(io.BytesIO(an_archive(*members)), tmp_path / "here")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b""])
def test_rubbish_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NotApplied, match="was not unpacked"):
        unpack(io.BytesIO(content), tmp_path)


def test_facts_of_nothing() -> None:
    assert Facts(tree=facts_of([])).tree is not None
