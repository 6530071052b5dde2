"""EPSS and KEV are taken over whole or not at all, with their date."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.snapshots import BadSnapshot, Snapshots

DAY = 86400.0
SCORED = datetime(2026, 11, 23, 12, 55, tzinfo=UTC).timestamp()
RELEASED = datetime(2026, 11, 20, 15, 0, 1, tzinfo=UTC).timestamp()
EPSS = """#model_version:v2025.03.14,score_date:2026-11-23T12:55:00Z
cve,epss,percentile
CVE-2019-10906,0.94321,0.99
CVE-2018-18074,0.00042,0.05
"""
KEV = {
    "title": "CISA Catalog of Known Exploited Vulnerabilities",
    "catalogVersion": "2026.11.20",
    "dateReleased": "2026-11-20T15:00:01.0000Z",
    "count": 1,
    "vulnerabilities": [{"cveID": "CVE-2019-10906", "vendorProject": "Pallets"}],
}


def kept(tmp_path: Path) -> Snapshots:
    snapshots = Snapshots(tmp_path / "cache")
    (tmp_path / "epss.csv").write_text(EPSS)
    (tmp_path / "kev.json").write_text(json.dumps(KEV))
    for name in ("epss.csv", "kev.json"):
        assert snapshots.import_file(tmp_path / name)
    return snapshots


def test_both_are_found_again_with_their_dates(tmp_path: Path) -> None:
    snapshots = kept(tmp_path)
    assert snapshots.dates() == {"EPSS": SCORED, "KEV": RELEASED}
    ids = ["CVE-2019-10906", "CVE-2018-18074", "CVE-1"]
    epss, kev, said = snapshots.look_up(ids, SCORED + DAY, 7 * DAY)
    assert epss == {"CVE-2019-10906": 0.94321, "CVE-2018-18074": 0.00042}
    assert kev == {"CVE-2019-10906"}
    assert [one.unusable for one in said] == ["", ""]


def test_a_packed_list_and_a_date_alone(tmp_path: Path) -> None:
    text = EPSS.replace("T12:55:00Z", "")
    (tmp_path / "epss.csv.gz").write_bytes(gzip.compress(text.encode()))
    taken = Snapshots(tmp_path).import_file(tmp_path / "epss.csv.gz")
    assert taken
    assert taken.at == datetime(2026, 11, 23, tzinfo=UTC).timestamp()


def test_none_and_an_old_one_say_so_and_an_old_one_is_shown(tmp_path: Path) -> None:
    none = Snapshots(tmp_path / "none").look_up(["CVE-1"], SCORED, DAY)
    assert none[:2] == ({}, set())
    assert all(one.unusable.startswith("there is no snapshot") for one in none[2])
    epss, _, (old, older) = kept(tmp_path).look_up(["CVE-2018-18074"], SCORED + 8 * DAY, 7 * DAY)
    assert epss
    assert "EPSS is 8d old, at most 7d is allowed" in old.unusable
    assert "KEV is 10d" in older.unusable
    assert "future" in kept(tmp_path).look_up([], SCORED - 2 * DAY, 7 * DAY)[2][0].unusable


@pytest.mark.parametrize(
    "text",
    [
        EPSS.replace(",score_date:2026-11-23T12:55:00Z", ""),
        EPSS.replace("2026-11-23T", "some day "),
        EPSS.replace("0.94321", "7"),
        EPSS.replace("0.94321", "much"),
        EPSS.replace("cve,epss", "id,score"),
        EPSS[: EPSS.index("CVE-2019")],
        json.dumps({**KEV, "vulnerabilities": []}),
        json.dumps({**KEV, "vulnerabilities": [{"id": 3}]}),
        json.dumps({**KEV, "dateReleased": 20261120}),
        json.dumps({"UpdatedAt": "2026-11-23T00:00:00Z"}),
        json.dumps(KEV)[:-9],
    ],
)
def test_what_is_half_a_list_is_none_and_the_last_good_one_stays(tmp_path: Path, text: str) -> None:
    snapshots = kept(tmp_path)
    (tmp_path / "bad").write_text(text)
    with pytest.raises(BadSnapshot):
        snapshots.import_file(tmp_path / "bad")
    assert snapshots.dates() == {"EPSS": SCORED, "KEV": RELEASED}
    assert snapshots.look_up(["CVE-2019-10906"], SCORED, DAY)[1]


def test_a_half_packed_one(tmp_path: Path) -> None:
    (tmp_path / "half.gz").write_bytes(gzip.compress(EPSS.encode() * 50)[:60])
    with pytest.raises(BadSnapshot):
        Snapshots(tmp_path).import_file(tmp_path / "half.gz")


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"trivy.db\0\0", gzip.compress(b"trivy.db", mtime=0)]
)
def test_what_is_neither_is_left_to_others(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert Snapshots(tmp_path).import_file(tmp_path / "file") is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"at": 1.0}', '{"at": "x", "held": {}}'])
def test_one_that_broke_in_the_cache_is_none(tmp_path: Path, content: str) -> None:
    snapshots = kept(tmp_path)
    (tmp_path / "cache" / "kev.json").write_text(content)
    assert "there is no" in snapshots.look_up(["CVE-2019-10906"], SCORED, DAY)[2][1].unusable
