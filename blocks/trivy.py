"""Trivy by subprocess: what it finds in a folder, in our words.

Fails closed: without a database, with one that is too old, or with an answer that is not its own
report, nothing counts as scanned. It runs without network and without our secrets.
"""

import json
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from blocks.confined import CannotRun, confined
from blocks.files import scratch
from policy.findings import TRIVY, Finding, Scan, Severity, not_scanned, scanned, severity
from policy.quantities import in_words

MAX_BYTES = 64 * 2**20  # of its report
# A lock file is read in a source tree, an installed package in a root file system.
WAYS = {"fs": ("vuln", "misconfig", "secret"), "rootfs": ("vuln", "license")}
OFFLINE = ("--skip-db-update", "--skip-java-db-update", "--skip-check-update", "--offline-scan")


class _Vulnerability(BaseModel):
    id: str = Field(alias="VulnerabilityID")
    package: str = Field(alias="PkgName")
    installed: str = Field("", alias="InstalledVersion")
    fixed: str = Field("", alias="FixedVersion")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    url: str = Field("", alias="PrimaryURL")
    path: str = Field("", alias="PkgPath")


class _Cause(BaseModel):
    line: int | None = Field(None, alias="StartLine")


class _Misconfiguration(BaseModel):
    id: str = Field(alias="ID")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    status: str = Field("FAIL", alias="Status")
    url: str = Field("", alias="PrimaryURL")
    cause: _Cause = Field(default_factory=lambda: _Cause.model_validate({}), alias="CauseMetadata")


class _Secret(BaseModel):
    id: str = Field(alias="RuleID")
    severity: str = Field("UNKNOWN", alias="Severity")
    title: str = Field("", alias="Title")
    line: int | None = Field(None, alias="StartLine")


class _License(BaseModel):
    name: str = Field(alias="Name")
    severity: str = Field("UNKNOWN", alias="Severity")
    category: str = Field("", alias="Category")
    package: str = Field("", alias="PkgName")
    path: str = Field("", alias="FilePath")


class _Result(BaseModel):
    target: str = Field(alias="Target")
    vulnerabilities: list[_Vulnerability] = Field(default_factory=list, alias="Vulnerabilities")
    misconfigurations: list[_Misconfiguration] = Field(
        default_factory=list, alias="Misconfigurations"
    )
    secrets: list[_Secret] = Field(default_factory=list, alias="Secrets")
    licenses: list[_License] = Field(default_factory=list, alias="Licenses")


class _Report(BaseModel):
    schema_version: int = Field(alias="SchemaVersion")
    results: list[_Result] | None = Field(None, alias="Results")


class Trivy:
    def __init__(
        self,
        cache: Path,
        *,
        program: str = TRIVY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`cache`: the folder that holds `db/trivy.db` and `db/metadata.json`; ours to write in."""
        self._cache, self._program, self._clock = cache, program, clock

    def scan(
        self, source: Path, artifact: Path, *, database_age_seconds: float, within_seconds: float
    ) -> Scan:
        """Lock files, configuration and secrets in `source`; installed packages and their licences
        in `artifact`. Whatever keeps it from an answer is one: nothing was scanned, and why."""
        try:
            collected = self._database(database_age_seconds)
            found: dict[Finding, None] = {}
            for way, folder in (("fs", source), ("rootfs", artifact)):
                found |= dict.fromkeys(self._run(way, WAYS[way], folder, within_seconds))
        except _NoAnswer as why:
            return not_scanned(TRIVY, str(why))
        return scanned(TRIVY, list(found), collected)

    def database_at(self) -> float | None:
        """When the vulnerabilities of the database were collected; None without one."""
        try:
            return _collected(self._cache)
        except _NoAnswer:
            return None

    def import_database(self, archive: Path) -> float:
        """Take over a database from a tar archive (`trivy.db` and `metadata.json`, as Trivy's own
        OCI artifact holds them). -> when it was collected. Raises BadDatabase; what was there
        stays then."""
        self._cache.mkdir(parents=True, exist_ok=True)
        with scratch(self._cache, "import") as fresh:
            (fresh / "db").mkdir()
            _unpack(archive, fresh / "db")
            try:
                collected = _collected(fresh)
            except _NoAnswer as why:
                raise BadDatabase(f"{archive}: {why}") from None
            self._try_out(fresh, archive)
            old = fresh / "old"
            if (self._cache / "db").exists():
                (self._cache / "db").rename(old)
            (fresh / "db").rename(self._cache / "db")
        return collected

    def _try_out(self, cache: Path, archive: Path) -> None:
        """Trivy itself must be able to read it, before it takes the place of one that works."""
        (cache / "nothing").mkdir()
        other = Trivy(cache, program=self._program, clock=self._clock)
        try:
            list(other._run("fs", ("vuln",), cache / "nothing", 60))
        except _NoAnswer as why:
            raise BadDatabase(f"{archive}: {why}") from None

    def _database(self, age_seconds: float) -> float:
        collected = _collected(self._cache)
        if (age := self._clock() - collected) < -86400:
            raise _NoAnswer("its vulnerability database is from the future; look at the clock")
        if age > age_seconds:
            raise _NoAnswer(
                f"its vulnerability database is {in_words(age // 3600 * 3600)} old, at most "
                f"{in_words(age_seconds)} is allowed; bring a newer one: dafnck scan-db import FILE"
            )
        return collected

    def _run(
        self, way: str, scanners: tuple[str, ...], folder: Path, within_seconds: float
    ) -> Iterator[Finding]:
        program = shutil.which(self._program)
        if program is None:
            raise _NoAnswer(
                f"there is no program {self._program}; install Trivy (https://trivy.dev)"
            )
        argv = [program, way, "--scanners", ",".join(scanners), "--format", "json", "--quiet"]
        argv += ["--cache-dir", str(self._cache.absolute()), "--timeout", f"{within_seconds:.0f}s"]
        argv += OFFLINE
        argv += ["--exit-code", "0", "--", str(folder.absolute())]
        try:
            with confined(argv, self._cache, within_seconds=within_seconds) as ended:
                if ended.code != 0:
                    raise _NoAnswer(f"it {ended.why(within_seconds)}")
                if ended.answer.stat().st_size > MAX_BYTES:
                    raise _NoAnswer(f"its answer is larger than {MAX_BYTES >> 20} MiB")
                report = _Report.model_validate_json(ended.answer.read_bytes())
        except CannotRun as error:
            raise _NoAnswer(str(error)) from None
        except ValidationError as error:
            what = error.errors()[0]
            raise _NoAnswer(
                f"its answer is not a report ({'.'.join(map(str, what['loc'])) or 'JSON'}: "
                f"{what['msg']})"
            ) from None
        if report.schema_version != 2:
            raise _NoAnswer(f"its report has version {report.schema_version}; 2 can be read")
        for result in report.results or ():
            yield from _findings(result)


class _NoAnswer(Exception):
    """Why nothing was scanned."""


class BadDatabase(Exception):
    """It cannot be taken over."""


def _findings(result: _Result) -> Iterator[Finding]:
    for v in result.vulnerabilities:
        yield Finding(
            TRIVY,
            "vulnerability",
            v.id,
            _severity(v.severity),
            v.title or v.id,
            v.path or result.target,
            package=v.package,
            installed=v.installed,
            fixed=v.fixed,
            url=v.url,
        )
    for m in result.misconfigurations:
        if m.status == "FAIL":
            yield Finding(
                TRIVY,
                "misconfiguration",
                m.id,
                _severity(m.severity),
                m.title,
                result.target,
                line=m.cause.line,
                url=m.url,
            )
    for s in result.secrets:
        yield Finding(
            TRIVY, "secret", s.id, _severity(s.severity), s.title, result.target, line=s.line
        )
    for one in result.licenses:
        yield Finding(
            TRIVY,
            "license",
            one.name,
            _severity(one.severity),
            f"{one.name} ({one.category})" if one.category else one.name,
            one.path or result.target,
            package=one.package,
        )


def _severity(name: str) -> Severity:
    """One that Trivy learns later counts as the worst: it must not slip through."""
    try:
        return severity(name)
    except ValueError:
        return Severity.CRITICAL


def _collected(cache: Path) -> float:
    metadata, database = cache / "db" / "metadata.json", cache / "db" / "trivy.db"
    missing = "there is no vulnerability database; bring one: dafnck scan-db import FILE"
    if not database.exists():
        raise _NoAnswer(missing)
    try:
        at = json.loads(metadata.read_text())["UpdatedAt"]
        return datetime.fromisoformat(at).timestamp()
    except FileNotFoundError:
        raise _NoAnswer(missing) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _NoAnswer(
            f"its database does not say of when it is ({metadata.name}: {error}); "
            "bring another: dafnck scan-db import FILE"
        ) from None


def _unpack(archive: Path, target: Path) -> None:
    """The two files that a database consists of, and nothing else that an archive may hold."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in ("trivy.db", "metadata.json"):
                    continue
                source = tar.extractfile(member)
                assert source is not None
                with source, (target / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise BadDatabase(f"{archive} cannot be read: {error}") from None
