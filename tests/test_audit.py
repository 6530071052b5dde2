"""The audit: appended to by what changes the ledger, whole, and found when it is not."""

import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fakes import a_site, serving
from hypothesis import given
from hypothesis import strategies as st
from test_blocks_ledger import postgres, url  # noqa: F401 - fixtures
from test_tasks_put_back import under_way

from blocks.ledger import Ledger
from policy.audit import FIRST, Entry, first_break, sealed
from policy.errors import LeaseLost
from policy.release import Phase

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
details = st.dictionaries(texts, texts | st.integers(-(2**53), 2**53) | st.none(), max_size=3)


def chain(acts: list[tuple[str, dict[str, Any]]]) -> list[Entry]:
    entries: list[Entry] = []
    for number, (action, detail) in enumerate(acts, 1):
        before = entries[-1].hash if entries else FIRST
        entries.append(sealed(number, number / 7, "ada", action, "shop in prod", detail, before))
    return entries


def head_of(entries: list[Entry]) -> tuple[int, str]:
    return (entries[-1].number, entries[-1].hash) if entries else (0, FIRST)


@given(st.lists(st.tuples(texts, details), max_size=6), st.data())
def test_any_change_is_found(acts: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    entries = chain(acts)
    head = head_of(entries)
    assert first_break(entries, head=head) == ""
    if not entries:
        return
    at = data.draw(st.integers(0, len(entries) - 1))
    one = entries[at]
    changes: list[dict[str, Any]] = [
        {"actor": "eve"},
        {"at": one.at + 1e-3},
        {"action": one.action + "x"},
        {"subject": "shop in staging"},
        {"detail": one.detail | {"more": "x"}},
        {"number": one.number + 1},
        {"before": "f" * 64},
        {"hash": "f" * 64},
    ]
    changed = [*entries]
    changed[at] = replace(one, **data.draw(st.sampled_from(changes)))
    assert first_break(changed, head=head)
    assert first_break([*entries[:at], *entries[at + 1 :]], head=head)
    # Written anew from there on, every hash right: the head that was kept apart tells.
    forged = chain([*acts[:at], ("forged", {}), *acts[at + 1 :]])
    assert first_break(forged, head=head)


def actions(ledger: Ledger) -> list[tuple[str, str]]:
    return [(entry.actor, entry.action) for entry in ledger.audit()]


def test_what_changes_the_ledger_is_in_it(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    serving(site)
    ledger = site.ledger
    token = ledger.take_lease("shop", "prod", "test")
    rollout = ledger.open_rollout(
        *("shop", "prod"),
        token=token,
        kind="release",
        version="2",
        strategy="canary",
        by="ada",
        freeze_override="the shop is down",
        freeze_override_by="ada",
    )
    ledger.approve(rollout.id, "bob")
    ledger.abort(rollout.id, "aborted by ada", "ada")
    ledger.set_phase(rollout.id, Phase.STARTING)
    ledger.set_phase(rollout.id, Phase.FAILED, "aborted by ada")
    ledger.set_phase(rollout.id, Phase.FAILED, "again")
    ledger.record("ada", "set", "secret shop/url", version=1)
    told = actions(ledger)[-5:]
    assert told == [
        ("ada", "release"),
        ("bob", "approve"),
        ("ada", "abort"),
        ("dafnck", "failed"),
        ("ada", "set"),
    ]
    began = list(ledger.audit("shop in prod"))[-4]
    assert began.detail["freeze_override"] == "the shop is down"
    assert [entry.subject for entry in ledger.audit("secret")] == ["secret shop/url"]
    assert ledger.audit_break() == ""


def test_a_head_that_was_never_made_is_made_when_it_is_opened(tmp_path: Path) -> None:
    """Killed between the table and its row."""
    file = tmp_path / "ledger.db"
    ledger = Ledger(str(file))
    ledger.record("ada", "act", "all")
    ledger.close()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("DELETE FROM audit_head")
        db.execute("DROP TRIGGER audit_no_delete")
    again = Ledger(str(file))
    again.record("ada" * 100, "act", "all" * 200)
    assert [entry.number for entry in again.audit()] == [1, 2]
    assert again.audit_break() == ""
    with pytest.raises(sa.exc.IntegrityError), again._engine.begin() as db:
        db.execute(sa.text("DELETE FROM audit"))


def test_what_a_promotion_passes_over_is_told(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    serving(site)
    _, _, old = under_way(site, 50)
    site.ledger.free_lease(site.ledger.lease("shop", "prod").token)  # type: ignore[union-attr]
    _, _, new = under_way(site, 50, version="3")
    site.ledger.promote(new.id, "healthy")
    told = [(e.action, e.detail["rollout"]) for e in site.ledger.audit("shop in prod")]
    assert ("rolled back", old.id) in told
    assert told[-1] == ("promote", new.id)


def test_an_act_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    nobodys = str(tmp_path)
    with pytest.raises(LeaseLost, match="lease lapsed"):
        ledger.open_rollout(
            *("shop", "prod"), token=nobodys, kind="release", version="1", strategy="canary"
        )
    assert list(ledger.audit()) == []
    assert ledger.audit_head() == (0, FIRST)


def test_many_at_once_make_one_chain(url: str) -> None:  # noqa: F811
    def write(name: str) -> None:
        ledger = Ledger(url)
        for number in range(10):
            ledger.record(name, "act", "all", number=number)
        ledger.close()

    threads = [threading.Thread(target=write, args=(f"p{n}",)) for n in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    ledger = Ledger(url)
    assert ledger.audit_break() == ""
    assert [entry.number for entry in ledger.audit()] == list(range(1, 61))
    for name in {entry.actor for entry in ledger.audit()}:
        assert [e.detail["number"] for e in ledger.audit(actor=name)] == list(range(10))
    ledger.close()


def test_nobody_changes_an_entry_by_a_slip(url: str) -> None:  # noqa: F811
    ledger = Ledger(url)
    ledger.record("ada", "act", "all")
    for statement in ("UPDATE audit SET actor = 'eve'", "DELETE FROM audit"):
        # SQLite refuses, PostgreSQL does nothing.
        with suppress(sa.exc.IntegrityError), ledger._engine.begin() as db:
            db.execute(sa.text(statement))
    assert [entry.actor for entry in ledger.audit()] == ["ada"]
    ledger.close()


@pytest.mark.parametrize(
    ("forgery", "found"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE number = 2", "entry 2 was changed"),
        ("DELETE FROM audit WHERE number = 2", "after entry 1 comes 3"),
        ("DELETE FROM audit WHERE number = 3", "ends at entry 2, and 3 were written"),
        ("DELETE FROM audit", "ends at entry 0, and 3 were written"),
    ],
)
def test_who_goes_around_that_is_found(tmp_path: Path, forgery: str, found: str) -> None:
    file = tmp_path / "ledger.db"
    ledger = Ledger(str(file))
    for number in range(3):
        ledger.record("ada", "act", "all", number=number)
    kept = ledger.audit_head()
    ledger.close()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("DROP TRIGGER audit_no_update")
        db.execute("DROP TRIGGER audit_no_delete")
        db.execute(forgery)
    assert found in Ledger(str(file)).audit_break()
    with closing(sqlite3.connect(file)) as db, db:  # and the head with it
        db.execute("DROP TRIGGER audit_no_delete")
        db.execute("DELETE FROM audit")
        db.execute("UPDATE audit_head SET number = 0, hash = ?", (FIRST,))
    again = Ledger(str(file))
    for number in range(4):
        again.record("eve", "act", "all", number=number)
    assert again.audit_break() == ""
    assert "entry 3 is not the one that was kept" in again.audit_break(kept)
