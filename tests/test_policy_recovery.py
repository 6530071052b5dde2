"""What comes back in which order, and what is said of it."""

from pathlib import Path

from fakes import a_release

from policy.backup import Backup
from policy.recovery import Came, Recovery, Served, held_back, wanted
from policy.release import Release
from tasks.recover_page import data_rows, verdict, write_page

BACKUP = Backup.model_validate(
    {
        "targets": {
            "uploads": {"files": ["/srv/uploads"]},
            "orders": {"postgres": "env://ORDERS_URL", "rpo": "5m", "rto": "30m"},
        }
    }
)


def a_recovery(**told: object) -> Recovery:
    return Recovery.model_validate(
        {"store": "s3://safe/prod", "host": "new", "began_at": 1000.0, "lost_at": 900.0, **told}
    )


def test_databases_come_first_and_files_last() -> None:
    releases = [a_release(backup=BACKUP, service="shop"), a_release(service="idle")]
    cart = Backup.model_validate({"targets": {"db": {"postgres": "file:///run/cart-url"}}})
    releases.append(a_release(backup=cart, service="cart"))
    found = wanted(releases)
    assert [one.key for one in found] == [
        *("cart/prod/db", "shop/prod/orders", "shop/prod/uploads")
    ]


def test_what_the_ledger_keeps_of_a_backup_part_is_read_again() -> None:
    release = a_release(backup=BACKUP)
    assert Release.model_validate_json(release.model_dump_json()) == release


def test_no_service_starts_while_data_is_missing_but_for_what_a_person_accepts() -> None:
    lost = Came(key="shop/prod/orders", kind="database", trouble="no backup counts")
    there = Came(key="cart/prod/db", kind="database", until=850.0)
    told = a_recovery().has(lost).has(there)
    assert held_back(told, frozenset()) == [lost]
    assert held_back(told, frozenset({"shop/prod/orders"})) == []
    told = told.has(lost.model_copy(update={"trouble": "", "until": 880.0}))
    assert held_back(told, frozenset()) == []
    assert len(told.came) == 2, "what was said of it before is replaced"


def test_what_is_lost_counts_from_the_newest_sign_of_life() -> None:
    told = a_recovery()
    assert told.lost_seconds(840.0) == 60.0
    assert told.lost_seconds(901.0) == 0.0
    assert told.lost_seconds(None) is None
    assert a_recovery(lost_at=None).lost_seconds(840.0) is None


def test_the_page_says_what_was_lost_and_is_self_contained(tmp_path: Path) -> None:
    came = Came(
        key="shop/prod/orders",
        kind="database",
        backup_id="20261125T021500Z-3f9c21",
        until=840.0,
        seconds=12.34,
        rpo=300.0,
        rto=1800.0,
    )
    bad = Served(
        service="shop",
        environment="prod",
        release="shop-prod-7",
        version="1.7",
        trouble="<b>0 of 2 replicas are ready",
    )
    told = a_recovery(finished_at=1075.0, done={"find": 0.5, "data": 12.4}).has(came)
    assert verdict(told) == "recovered"
    row = data_rows(told)[0]
    assert row["lost at most (RPO)"] == "1m"
    assert (row["took (RTO)"], row["objective"]) == ("12.3s", "30m")
    told = told.model_copy(update={"served": (bad,), "notes": ("the image was pushed nowhere",)})
    assert verdict(told) == "1 troubles"
    page = write_page(told, tmp_path).read_text()
    for words in ("lost at most (RPO)", "1m 15s", "&lt;b&gt;0 of 2", "pushed nowhere", "12.3s"):
        assert words in page
    assert "http" not in page
    assert told.troubles == ["shop-prod-7: <b>0 of 2 replicas are ready"]
    assert Recovery.model_validate_json(told.model_dump_json()) == told
