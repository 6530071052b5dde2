"""Trivy's databases, as they lie in its cache and in archives: of vulnerabilities, and of the
names of Java archives, without which it looks at nothing where it meets one."""

import json
import shutil
import sqlite3
import tarfile
import zlib
from contextlib import closing
from datetime import datetime
from pathlib import Path

DATABASES = {"db": "trivy.db", "java-db": "trivy-java.db"}  # by folder


class NoDatabase(Exception):
    """There is none that can be used, and what to do."""


class BadDatabase(Exception):
    """It cannot be taken over."""


def collected(cache: Path, folder: str = "db") -> float:
    """When what it holds was, epoch seconds. Raises NoDatabase."""
    metadata, database = cache / folder / "metadata.json", cache / folder / DATABASES[folder]
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


def unpack(archive: Path, cache: Path) -> str:
    """The two files that a database consists of, and nothing else that an archive may hold. -> the
    folder of the cache that they are in now. Raises BadDatabase."""
    here = cache / "unpacked"
    here.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in ("metadata.json", *DATABASES.values()):
                    continue
                source = tar.extractfile(member)
                assert source is not None
                with source, (here / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise BadDatabase(f"{archive} cannot be read: {error}") from None
    found = [folder for folder, name in DATABASES.items() if (here / name).exists()]
    if len(found) != 1:
        raise BadDatabase(f"{archive} holds none of {', '.join(DATABASES.values())}, or both")
    here.rename(cache / found[0])
    return found[0]


def look_into_java(cache: Path, archive: Path) -> None:
    """Of one that it cannot read Trivy says nothing, and knows no archive by it. Raises
    BadDatabase."""
    file = cache / "java-db" / DATABASES["java-db"]
    asked = "SELECT 1 FROM indices JOIN artifacts ON artifacts.id = indices.artifact_id LIMIT 1"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute(asked).fetchone() is None:
                raise BadDatabase(f"{archive} names no Java archive")
    except sqlite3.Error as error:
        raise BadDatabase(f"{archive} cannot be read: {error}") from None
