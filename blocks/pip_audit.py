"""pip-audit by subprocess: known vulnerabilities of installed Python packages.

It asks a service over the network; what it could not ask about was not looked at.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from blocks.confined import CannotRun, Ended, confined
from blocks.files import read_plain_file
from policy.findings import Finding, Scan, Severity, not_scanned, scanned
from policy.pipeline import PIP_AUDIT, PipAudit

MAX_BYTES = 64 * 2**20
PLACES = ("site-packages", "dist-packages")


class _Vulnerability(BaseModel):
    id: str
    fix_versions: list[str] = []
    aliases: list[str] = []
    description: str = ""


class _Dependency(BaseModel):
    name: str
    version: str = ""
    skip_reason: str | None = None
    vulns: list[_Vulnerability] = []


class _Answer(BaseModel):
    dependencies: list[_Dependency] = Field(min_length=1)


def audit(wanted: PipAudit, artifact: Path, place: Path, *, program: str | None = None) -> Scan:
    """Of all packages that are installed in the artifact; `place`: for its home and answer."""
    folders = list(_package_folders(artifact))
    if not folders:
        return not_scanned(PIP_AUDIT, "no Python packages are installed in the artifact")
    beside = Path(sys.executable).parent / PIP_AUDIT
    found = shutil.which(program or PIP_AUDIT) or (None if program else shutil.which(beside))
    if found is None:
        return not_scanned(
            PIP_AUDIT, f"there is no program {program or PIP_AUDIT}; pip install pip-audit"
        )
    argv = [found, "--format", "json", "--progress-spinner", "off"]
    if wanted.osv:
        argv += ["--vulnerability-service", "osv", "--osv-url", wanted.osv]
    for folder in folders:
        argv += ["--path", str(folder)]
    try:
        with confined(argv, place, within_seconds=wanted.within, network=True) as ended:
            return _read(ended, wanted, artifact)
    except CannotRun as error:
        return not_scanned(PIP_AUDIT, str(error))


def _read(ended: Ended, wanted: PipAudit, artifact: Path) -> Scan:
    # 1: it found something, or it failed; only then there is no answer.
    if ended.code not in (0, 1) or not ended.answer.stat().st_size:
        return not_scanned(PIP_AUDIT, f"it {ended.why(wanted.within)}")
    try:
        answer = _Answer.model_validate_json(read_plain_file(ended.answer, MAX_BYTES))
    except (OSError, ValidationError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        return not_scanned(PIP_AUDIT, f"its answer cannot be read: {what}")
    private = {_plain(name) for name in wanted.private}
    skipped = [
        f"{one.name} ({one.skip_reason})"
        for one in answer.dependencies
        if one.skip_reason is not None and _plain(one.name) not in private
    ]
    if skipped:
        return not_scanned(
            PIP_AUDIT,
            f"its source does not know {len(skipped)} of {len(answer.dependencies)} packages: "
            f"{skipped[0]}; name those of your own under scan.pip_audit.private",
        )
    return scanned(PIP_AUDIT, list(_findings(answer)))


def _findings(answer: _Answer) -> Iterator[Finding]:
    for dependency in answer.dependencies:
        for one in dependency.vulns:
            names = [one.id, *one.aliases]
            yield Finding(
                PIP_AUDIT,
                "vulnerability",
                # By its CVE: so do other scanners, waivers, EPSS and KEV.
                next((name for name in names if name.startswith("CVE-")), one.id),
                Severity.HIGH,
                (one.description.strip() or one.id).splitlines()[0][:300],
                "installed packages",
                package=dependency.name,
                installed=dependency.version,
                fixed=", ".join(one.fix_versions),
                url=f"https://osv.dev/vulnerability/{one.id}",
            )


def _package_folders(artifact: Path) -> Iterator[Path]:
    for folder, folders, _ in os.walk(artifact.absolute()):
        for name in PLACES:
            here = Path(folder) / name
            if name in folders and not here.is_symlink() and any(here.glob("*-info")):
                yield here


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-").replace(".", "-")
