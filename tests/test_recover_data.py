"""The steps of a recovery up to the data, by real backups: killed anywhere, damaged, refused."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import a_release, a_site, serving
from recover_stage import ROWS, VARIABLE, backed_up, drop, fill, server, sql, url_of  # noqa: F401

from blocks.ledger import Ledger
from blocks.own_state_tar import facts_of, under
from blocks.postgres import Server
from blocks.signing import Keys
from blocks.stack import Ports, Stack, open_stack, stack_at
from policy.backup import Backup
from policy.errors import BadInput, Refused
from tasks.backup_site import have_key, key_of
from tasks.recover import STEPS, Recovering, recover

pytestmark = pytest.mark.live


@dataclass
class Lost:
    """A machine as it was: what its store and its key file hold is all that is left of it."""

    folder: Path
    store: str
    key: Path
    ids: dict[str, str]
    rows: Any
    files: object
    server: Server

    def job(self, home: Path, **more: Any) -> Recovering:
        def never(place: Path, said: object) -> Stack:
            raise AssertionError("nothing is started here")

        said = more.pop("said", lambda words: None)
        return Recovering(self.store, self.key, home, bring_up=never, said=said, **more)


@pytest.fixture
def lost(
    tmp_path: Path,
    server: Server,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> Lost:
    """A release with a database and files is in the ledger, was backed up, and all of it is
    gone."""
    monkeypatch.setenv(VARIABLE, url_of(server))
    home, uploads = tmp_path / "old", tmp_path / "srv" / "uploads"
    store = f"file://{tmp_path / 'store'}"
    monkeypatch.setenv("DAFNCK_OBJECT_STORE_URL", store)
    uploads.mkdir(parents=True)
    (uploads / "menu.txt").write_text("tea\n")
    (uploads / "cup").symlink_to("menu.txt")
    site = a_site(home)
    site.ledger.close()
    site.ledger = Ledger(str(home / "ledger.db"))
    backup = Backup.model_validate(
        {
            "targets": {
                "orders": {"postgres": f"env://{VARIABLE}"},
                "uploads": {"files": [str(uploads)]},
            }
        }
    )
    serving(site, a_release(content=site.attestations.content("abc"), backup=backup))
    site.ledger.close()
    (home / "artifacts" / "abc" / "artifact.json").write_text("{}")
    stack = stack_at(home, Ports())
    stack.save()
    fill(server)
    ids = backed_up(stack)
    rows = sql(server, ROWS)
    drop(server)
    files = facts_of(under(uploads.parent, "uploads"))
    key = tmp_path / "safe" / "key.txt"
    key.parent.mkdir()
    shutil.copy(key_of(stack).file, key)
    shutil.rmtree(home)
    shutil.rmtree(uploads)
    return Lost(tmp_path, store, key, ids, rows, files, server)


DATA = STEPS[:5]  # what follows starts a stack


def all_is_there(lost: Lost, home: Path) -> None:
    assert sql(lost.server, ROWS) == lost.rows
    uploads = lost.folder / "srv" / "uploads"
    assert facts_of(under(uploads.parent, "uploads")) == lost.files
    assert not [path for path in uploads.parent.iterdir() if path != uploads], "nothing is left"
    stack = open_stack(home)
    ledger = Ledger(stack.ledger_url)
    assert [one.version for one in ledger.history()] == ["1"]
    assert ledger.stable("shop", "prod") == "shop-prod-1"
    assert ledger.leases() == []
    ledger.close()
    keys = Keys(stack.secrets, stack.keys)
    keys.check()
    assert len(list(stack.keys.iterdir())) >= 2, "those of lost ones, and a new one"
    assert set(have_key(stack).trusted()) == {path.stem for path in stack.keys.iterdir()}


def test_it_comes_back_whatever_write_it_was_killed_at(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each time that it writes down what is known, then run again."""
    home, real = lost.folder / "new", Recovering.now_known
    allowed, done = 0, 0
    while True:
        job, left = lost.job(home), allowed

        def dies(self: Recovering, **what: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(self, **what)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(Recovering, "now_known", dies)
                told = recover(job, DATA)
            break
        except KeyboardInterrupt:
            came = len(job.told.done) + len(job.told.came)
            allowed, done = (1 if came > done else allowed + 1), max(done, came)
    all_is_there(lost, home)
    assert [one.key for one in told.came] == ["shop/prod/orders", "shop/prod/uploads"]
    assert told.attempts > 5
    assert told.own_backup == lost.ids["state"]


def test_each_of_its_steps_is_done_once(lost: Lost) -> None:
    home, said = lost.folder / "new", []
    told = recover(lost.job(home, said=said.append), DATA)
    all_is_there(lost, home)
    assert list(told.done) == ["find", "state", "ask", "home", "data"]
    assert told.troubles == []
    orders = told.came[0]
    assert (orders.backup_id, orders.trouble) == (lost.ids["orders"], "")
    lost_seconds = told.lost_seconds(orders.until)
    assert lost_seconds is not None
    assert 0 <= lost_seconds < 60
    again: list[str] = []
    assert recover(lost.job(home, said=again.append), DATA).done == told.done
    assert again == []


def test_into_a_ledger_that_postgresql_keeps(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy in the home is gone as soon as the server has it; what comes after reads it all the
    same, also the next time."""
    with lost.server.at("postgres").connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE ledger")
    host = lost.server.parameters["host"]
    url = f"postgresql+psycopg://{lost.server.user}@/ledger?host={host}&port=5432"
    monkeypatch.setenv("DAFNCK_LEDGER_URL", url)
    home = lost.folder / "new"
    told = recover(lost.job(home), DATA)
    assert [one.good for one in told.came] == [True, True]
    assert not (home / "ledger.db").exists()
    assert recover(lost.job(home), DATA).done == told.done


def test_what_is_missing_is_told_at_once_and_nothing_is_changed(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = lost.folder / "new"
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(BadInput, match=f"{VARIABLE} is not set") as refused:
        recover(lost.job(home), DATA)
    assert refused.value.exit_code == 2
    assert [path.name for path in home.iterdir()] == ["recovery"]
    assert not (lost.folder / "srv" / "uploads").exists()


def test_nothing_is_written_over(lost: Lost) -> None:
    uploads = lost.folder / "srv" / "uploads"
    uploads.mkdir()
    (uploads / "other").write_text("mine\n")
    with lost.server.at("postgres").connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop")
    sql(lost.server, "CREATE TABLE mine (a int)")
    home = lost.folder / "new"
    with pytest.raises(Refused, match="no service was started") as refused:
        recover(lost.job(home), DATA)
    words = str(refused.value)
    assert "shop/prod/orders: database shop at" in words
    assert "is not empty" in words
    assert f"{uploads} is there and holds something else" in words
    assert "--without shop/prod/orders --without shop/prod/uploads" in words
    assert (uploads / "other").read_text() == "mine\n"
    shutil.rmtree(uploads)
    accepted = frozenset({"shop/prod/orders"})
    told = recover(lost.job(home, without=accepted), DATA)
    assert facts_of(under(uploads.parent, "uploads")) == lost.files
    assert [one.good for one in told.came] == [False, True]
    assert sql(lost.server, "SELECT count(*) FROM mine") == (0,)


def test_a_damaged_backup_is_passed_over_for_an_older_one(lost: Lost) -> None:
    """Of dafnck's own state as well as of data."""
    home = lost.folder / "first"
    recover(lost.job(home), DATA)
    later = backed_up(open_stack(home))  # signed by the new key
    shutil.copy(key_of(open_stack(home)).file, lost.key)
    for target, place in (("state", "dafnck/stack/state"), ("orders", "shop/prod/orders")):
        folder = lost.folder / "store" / "backups" / place / later[target]
        (stream,) = [one for one in folder.glob("*.zst.age") if one.stem[:4] in ("stat", "dump")]
        content = bytearray(stream.read_bytes())
        content[len(content) // 2] ^= 1
        stream.write_bytes(content)
    shutil.rmtree(lost.folder / "srv" / "uploads")
    drop(lost.server)
    told = recover(lost.job(lost.folder / "second"), DATA)
    all_is_there(lost, lost.folder / "second")
    assert told.own_backup == lost.ids["state"]
    assert {one.key: one.backup_id for one in told.came} == {
        "shop/prod/orders": lost.ids["orders"],
        "shop/prod/uploads": later["uploads"],
    }
    assert any(later["state"] in words and "passed over" in words for words in told.notes)
    assert later["orders"] in told.came[0].notes[0]


def test_it_can_be_as_it_was_then(lost: Lost) -> None:
    with pytest.raises(Refused, match="counts that is old enough; nothing was changed"):
        recover(lost.job(lost.folder / "new", to_time=time.time() - 3600), DATA)
    told = recover(lost.job(lost.folder / "newer", to_time=time.time()), DATA)
    all_is_there(lost, lost.folder / "newer")
    with pytest.raises(BadInput, match=r"a recovery from .* is under way"):
        recover(lost.job(lost.folder / "newer"), DATA)
    assert told.to_time


def test_a_key_file_that_trusts_nobody_recovers_nothing(lost: Lost) -> None:
    lines = lost.key.read_text().splitlines(keepends=True)
    lost.key.write_text("".join(line for line in lines if not line.startswith("# trusted")))
    with pytest.raises(Refused, match="does the key file trust whoever signed it"):
        recover(lost.job(lost.folder / "new"), DATA)


def test_a_home_in_use_is_left_alone(lost: Lost) -> None:
    home = lost.folder / "used"
    home.mkdir()
    (home / "ledger.db").touch()
    with pytest.raises(Refused, match=r"is in use: ledger\.db lies in it"):
        recover(lost.job(home), DATA)
    assert [path.name for path in home.iterdir()] == ["ledger.db"]
