"""Trivy's database of vulnerabilities, as it lies in its cache and in archives."""

import json
import shutil
import tarfile
import zlib
from datetime import datetime
from pathlib import Path


class NoDatabase(Exception):
    """There is none that can be used, and what to do."""


class BadDatabase(Exception):
    """It cannot be taken over."""


def collected(cache: Path) -> float:
    """When its vulnerabilities were, epoch seconds. Raises NoDatabase."""
    metadata, database = cache / "db" / "metadata.json", cache / "db" / "trivy.db"
    missing = "there is no vulnerability database; bring one: dafnck scan-db import FILE"
    if not database.exists():
        raise NoDatabase(missing)
    try:
        at = json.loads(metadata.read_text())["UpdatedAt"]
        return datetime.fromisoformat(at).timestamp()
    except FileNotFoundError:
        raise NoDatabase(missing) from None
    except (ValueError, KeyError, TypeError) as error:
        raise NoDatabase(
            f"its database does not say of when it is ({metadata.name}: {error}); "
            "bring another: dafnck scan-db import FILE"
        ) from None


def unpack(archive: Path, target: Path) -> None:
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
