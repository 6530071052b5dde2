"""One act of scanning: a real Trivy, on folders and on images, with snapshots and waivers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Clock, a_site
from image_archives import image_archive
from test_blocks_snapshots import EPSS, KEV
from test_blocks_trivy import (  # noqa: F401 - fixtures
    COLLECTED,
    DAY,
    PACKAGE,
    cache,
    metadata,
    program,
)

from blocks.builder import Builder
from blocks.snapshots import Snapshots
from blocks.trivy import Trivy
from policy.evidence import Evidence
from policy.gates import Gates, judge
from policy.service_file import ServiceFile
from tasks.scan import Scanned, scan_artifact
from tasks.site import Site

WAIVER = """waivers:
- {id: CVE-2019-10906, package: jinja2, reason: templates are our own, owner: anna,
   expires: 2026-12-31}
"""


class ImageBuilder(Builder):
    """Its artifacts are images, made by hand."""

    @contextmanager
    def image_archive(self, digest: str) -> Iterator[Path | None]:
        archive = self.scratch / f"{digest}.tar"
        archive.parent.mkdir(exist_ok=True)
        yield image_archive(archive, {PACKAGE: metadata()})


@pytest.fixture
def site(tmp_path: Path, program: str, cache: Path) -> Site:  # noqa: F811
    clock = Clock(COLLECTED + DAY)
    site = a_site(tmp_path, clock)
    site.trivy = Trivy(cache, program=program, clock=clock)
    return site


def scanned(site: Site, folder: Path, **scan: Any) -> Scanned:
    """Of an artifact that is built from `folder`."""
    wanted = ServiceFile.model_validate(
        {
            "version": 1,
            "service": "shop",
            "build": {"command": "cp * {out}", "source": "source"},
            "run": {"command": "serve {port}", "health": "/"},
            "scan": scan,
        }
    )
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "Dockerfile").write_text("FROM scratch\nUSER web\nHEALTHCHECK CMD /ok\n")
    digest, _ = site.builder.build(wanted.build, folder)
    token = site.ledger.take_lease("shop", "prod", "test")
    rollout = site.ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="1", strategy="blue-green"
    )
    site.ledger.free_lease(token)
    return scan_artifact.fn(
        site, rollout.id, wanted, folder / "dafnck.yaml", digest, folder / "kept"
    )


def test_an_artifact_that_is_an_image_is_looked_at_as_one(site: Site, tmp_path: Path) -> None:
    site.builder = ImageBuilder(tmp_path / "artifacts")
    answer = scanned(site, tmp_path, compliance=["docker-cis-1.6.0"])
    assert [scan.tool for scan in answer.scans or ()] == ["trivy", "docker-cis-1.6.0"]
    found = {(finding.id, finding.about) for finding in answer.waived.open}
    assert found >= {
        ("CVE-2019-10906", "Jinja2"),
        ("DS002", "image"),
        ("docker-cis-1.6.0/4.1", "image"),
    }
    kept = json.loads((tmp_path / "kept" / "docker-cis-1.6.0.json").read_text())
    assert kept["ID"] == "docker-cis-1.6.0"


def test_one_that_is_none_is_looked_at_as_a_folder(site: Site, tmp_path: Path) -> None:
    answer = scanned(site, tmp_path, compliance=["docker-cis-1.6.0"])
    assert answer.waived.open == ()
    assert "could not" not in " ".join(map(str, answer.scans or ()))


def test_snapshots_and_waivers(site: Site, tmp_path: Path) -> None:
    site.builder = ImageBuilder(tmp_path / "artifacts")
    asks = {"findings": {"known_exploited": True, "epss_at_least": "90%"}}

    def closed(answer: Scanned) -> str:
        evidence = Evidence(scans=answer.scans, waived=answer.waived, snapshots=answer.snapshots)
        results = judge(Gates.model_validate(asks), evidence)
        return next(r.reason for r in results if r.gate == "findings")

    assert "there is no snapshot of KEV" in closed(scanned(site, tmp_path))
    for name, text in (("epss.csv", EPSS), ("kev.json", json.dumps(KEV))):
        (tmp_path / name).write_text(text)
        Snapshots(site.trivy.cache).import_file(tmp_path / name)
    known = closed(scanned(site, tmp_path))
    assert known.startswith("CVE-2019-10906 Jinja2 (high, exploited, EPSS 94.3%, mended in 2.10.1)")
    assert "KEV is 3d 8h old" in closed(scanned(site, tmp_path, priority_age="1d"))
    (tmp_path / "waivers.yaml").write_text(WAIVER)
    waived = scanned(site, tmp_path, waivers="waivers.yaml").waived
    assert [finding.id for finding, _ in waived.waived] == ["CVE-2019-10906"]
    assert "CVE-2019-10906" not in {finding.id for finding in waived.open}


def test_pip_audit_without_trivy(site: Site, tmp_path: Path) -> None:
    answer = scanned(site, tmp_path, trivy=False, pip_audit=True)
    [audit] = answer.scans or ()
    assert audit.reason == "no Python packages are installed in the artifact"
