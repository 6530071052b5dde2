"""Trivy by subprocess: what it finds in a folder or an image, in our words.

Fails closed: without a database, with one that is too old, or with an answer that is not its own
report, nothing counts as scanned. It runs without network and without our secrets.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from blocks.confined import CannotRun, confined
from blocks.files import scratch, write_atomically
from blocks.trivy_database import BadDatabase, NoDatabase, collected, look_into_java, unpack
from blocks.trivy_report import (
    VERSION,
    Compliance,
    Report,
    configured,
    failed_controls,
    fatal,
    findings,
    passed_over,
)
from policy.findings import TRIVY, Finding, Scan, not_scanned, scanned
from policy.pipeline import COMPLIANCE
from policy.quantities import in_words

MAX_BYTES = 64 * 2**20  # of its report
# A lock file is read in a source tree, an installed package in a root file system.
WAYS = {"fs": ("vuln", "misconfig", "secret"), "rootfs": ("vuln", "license")}
OFFLINE = ("--skip-db-update", "--skip-java-db-update", "--skip-check-update", "--offline-scan")
REPORT = ("--format", "json", *OFFLINE, "--exit-code", "0")
BOM = ("--format", "cyclonedx", *OFFLINE)
# Layers are kept by the names that images give them, and an image may give a wrong one.
IMAGE = ("--cache-backend", "memory")

M = TypeVar("M", bound=BaseModel)


class Trivy:
    def __init__(
        self,
        cache: Path,
        *,
        program: str = TRIVY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`cache`: the folder with its database (`db/`), and with the snapshots of EPSS and KEV;
        ours to write in."""
        self.cache, self._program, self._clock = cache, program, clock

    def scan(
        self, source: Path, artifact: Path, *, database_age_seconds: float, within_seconds: float
    ) -> Scan:
        """Lock files, configuration and secrets in `source`; installed packages and their licences
        in `artifact`. Whatever keeps it from an answer is one: nothing was scanned, and why."""
        try:
            at = self._database(database_age_seconds)
            found: dict[Finding, None] = {}
            for way, folder in (("fs", source), ("rootfs", artifact)):
                found |= dict.fromkeys(self._find(way, WAYS[way], folder, within_seconds))
        except _NoAnswer as why:
            return not_scanned(TRIVY, str(why))
        return scanned(TRIVY, list(found), at)

    def scan_image(
        self, archive: Path, source: Path, *, database_age_seconds: float, within_seconds: float
    ) -> Scan:
        """The same, where the artifact is an image in an archive as `docker save` writes it: its
        packages, their licences, secrets in its files and in its configuration, and what that
        configuration does. No engine is asked."""
        try:
            at = self._database(database_age_seconds)
            found = dict.fromkeys(self._find("fs", WAYS["fs"], source, within_seconds))
            words = ["--scanners", "vuln,secret,license", *REPORT]
            words += ["--image-config-scanners", "misconfig,secret"]
            answer = self._run_image(archive, words, within_seconds)
            found |= dict.fromkeys(_of_image(_found(answer), archive))
        except _NoAnswer as why:
            return not_scanned(TRIVY, str(why))
        return scanned(TRIVY, list(found), at)

    def comply(
        self,
        name: str,
        source: Path,
        archive: Path | None,
        keep: Path,
        *,
        database_age_seconds: float,
        within_seconds: float,
    ) -> Scan:
        """One compliance report: of the image, where it is about images and there is one, else of
        the configuration in `source`. Whole in `keep`. Configuration of its kind must be there: a
        report about nothing has no failures."""
        kinds = COMPLIANCE[name]
        report = ["--compliance", name, "--report", "all", "--format", "json"]
        try:
            if archive and "dockerfile" in kinds:
                self._database(database_age_seconds)
                answer = self._run_image(archive, [*report, *OFFLINE], within_seconds)
            else:
                words = ["--scanners", "misconfig", *REPORT, "--", str(source.absolute())]
                if not configured(_report(self._run("fs", words, within_seconds)), kinds):
                    raise _NoAnswer(f"there is no configuration for {' or '.join(kinds)}")
                words = [*report, "--skip-check-update", "--", str(source.absolute())]
                answer = self._run("config", words, within_seconds)
            controls = _read(Compliance, answer)
            if controls.id != name:
                raise _NoAnswer(f"it made another report, {controls.id}")
        except _NoAnswer as why:
            return not_scanned(name, str(why))
        keep.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(keep, answer.decode())
        failed = list(failed_controls(controls))
        scan = scanned(name, _of_image(failed, archive) if archive else failed)
        return replace(scan, controls=len(controls.controls))

    def sbom(self, artifact: Path, *, within_seconds: float) -> bytes:
        """The installed packages of a folder, as CycloneDX JSON; it needs no database. Raises
        NoSbom."""
        try:
            words = [*BOM, "--", str(artifact.absolute())]
            return _bom(self._run("rootfs", words, within_seconds))
        except _NoAnswer as why:
            raise NoSbom(f"{TRIVY} wrote no list of packages: {why}") from None

    def sbom_of_image(self, archive: Path, *, within_seconds: float) -> bytes:
        """The same of an image, in an archive as `docker save` writes it. Raises NoSbom."""
        try:
            return _bom(self._run_image(archive, [*BOM], within_seconds))
        except _NoAnswer as why:
            raise NoSbom(f"{TRIVY} wrote no list of packages: {why}") from None

    def database_at(self, folder: str = "db") -> float | None:
        """When the vulnerabilities of the database were collected; None without one. `java-db`: the
        names of Java archives."""
        try:
            return collected(self.cache, folder)
        except NoDatabase:
            return None

    def import_database(self, archive: Path) -> tuple[str, float]:
        """Take over a database from a tar archive (`trivy.db` or `trivy-java.db`, and
        `metadata.json`, as Trivy's own OCI artifacts hold them). -> (its folder, of when it is).
        Raises BadDatabase; what was there stays then."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with scratch(self.cache, "import") as fresh:
            folder = unpack(archive, fresh)
            try:
                at = collected(fresh, folder)
            except NoDatabase as why:
                raise BadDatabase(f"{archive}: {why}") from None
            if folder == "db":
                self._try_out(fresh, archive)
            else:
                look_into_java(fresh, archive)
            if (self.cache / folder).exists():
                (self.cache / folder).rename(fresh / "old")
            (fresh / folder).rename(self.cache / folder)
        return folder, at

    def _try_out(self, cache: Path, archive: Path) -> None:
        """Trivy itself must be able to read it, before it takes the place of one that works."""
        (cache / "nothing").mkdir()
        other = Trivy(cache, program=self._program, clock=self._clock)
        try:
            other._find("fs", ("vuln",), cache / "nothing", 60)
        except _NoAnswer as why:
            raise BadDatabase(f"{archive}: {why}") from None

    def _database(self, age_seconds: float) -> float:
        try:
            at = collected(self.cache)
        except NoDatabase as why:
            raise _NoAnswer(str(why)) from None
        if (age := self._clock() - at) < -86400:
            raise _NoAnswer("its vulnerability database is from the future; look at the clock")
        if age > age_seconds:
            raise _NoAnswer(
                f"its vulnerability database is {in_words(age // 3600 * 3600)} old, at most "
                f"{in_words(age_seconds)} is allowed; bring a newer one: dafnck scan-db import FILE"
            )
        return at

    def _find(
        self, way: str, scanners: tuple[str, ...], folder: Path, within_seconds: float
    ) -> list[Finding]:
        words = ["--scanners", ",".join(scanners), *REPORT, "--", str(folder.absolute())]
        unread: list[Finding] = []
        answer = self._run(way, words, within_seconds, unread)
        # In an artifact it takes libraries for programs in Go, and says that it cannot read them.
        return [*_found(answer), *(unread if way == "fs" else ())]

    def _run_image(self, archive: Path, words: list[str], within_seconds: float) -> bytes:
        """It writes files of the image to its temporary folder, where they may be large."""
        try:
            size = archive.stat().st_size
        except OSError as error:
            raise _NoAnswer(f"{archive} cannot be read: {error.strerror}") from None
        words = [*words, *IMAGE, "--input", str(archive.absolute())]
        return self._run("image", words, within_seconds, file_bytes=size)

    def _run(
        self,
        way: str,
        words: list[str],
        within_seconds: float,
        unread: list[Finding] | None = None,
        file_bytes: int = 0,
    ) -> bytes:
        """-> its answer; into `unread` what it passed over, because it could not read it."""
        program = shutil.which(self._program)
        if program is None:
            raise _NoAnswer(
                f"there is no program {self._program}; install Trivy (https://trivy.dev)"
            )
        argv = [program, way, "--cache-dir", str(self.cache.absolute())]
        argv.append("--quiet" if unread is None else "--debug")  # it tells that in no other way
        argv += ["--timeout", f"{within_seconds:.0f}s", *words]
        self.cache.mkdir(parents=True, exist_ok=True)
        try:
            with confined(
                argv, self.cache, within_seconds=within_seconds, file_bytes=file_bytes
            ) as ended:
                if ended.code:
                    ended = replace(ended, last_words=fatal(ended.errors) or ended.last_words)
                if ended.code != 0:
                    raise _NoAnswer(f"it {ended.why(within_seconds)}")
                if unread is not None:
                    unread += passed_over(ended.errors)
                if ended.answer.stat().st_size > MAX_BYTES:
                    raise _NoAnswer(f"its answer is larger than {MAX_BYTES >> 20} MiB")
                return ended.answer.read_bytes()
        except CannotRun as error:
            raise _NoAnswer(str(error)) from None


class _Bom(BaseModel):
    bomFormat: str  # CycloneDX's own word


class NoSbom(Exception):
    """No list of packages, and why."""


class _NoAnswer(Exception):
    """Why nothing was scanned."""


def _bom(answer: bytes) -> bytes:
    if _read(_Bom, answer).bomFormat != "CycloneDX":
        raise _NoAnswer("its answer is no CycloneDX document")
    return answer


def _of_image(found: list[Finding], archive: Path) -> list[Finding]:
    """What it says of the image it says of the archive, which lies elsewhere the next time: then no
    waiver would hold."""
    name = str(archive.absolute())
    return [
        replace(f, target="image") if f.target == name or f.target.startswith(f"{name} (") else f
        for f in found
    ]


def _report(answer: bytes) -> Report:
    report = _read(Report, answer)
    if report.schema_version != VERSION:
        raise _NoAnswer(f"its report has version {report.schema_version}; {VERSION} can be read")
    return report


def _found(answer: bytes) -> list[Finding]:
    return list(findings(_report(answer)))


def _read(model: type[M], answer: bytes) -> M:
    try:
        return model.model_validate_json(answer)
    except ValidationError as error:
        what = error.errors()[0]
        place = ".".join(map(str, what["loc"])) or "JSON"
        raise _NoAnswer(f"its answer is not a report ({place}: {what['msg']})") from None
