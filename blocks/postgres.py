"""PostgreSQL: how one database is reached, by us and by its own tools.

A password reaches the tools in a file of their own (PGPASSFILE, 0600), never by argument or
environment.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy.errors import BadInput, NotAllowed, Refused, Unreachable

if TYPE_CHECKING:
    from blocks.secret_files import SecretFiles

CONNECT_SECONDS = 10
DEBIAN = Path("/usr/lib/postgresql")
# Parameters of libpq and the variables by which its tools take them.
VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}


@dataclass(frozen=True)
class Server:
    """One database of a server, by parameters of libpq."""

    parameters: Mapping[str, str] = field(repr=False)

    @property
    def dbname(self) -> str:
        return self.parameters.get("dbname") or self.user

    @property
    def user(self) -> str:
        return self.parameters.get("user") or os.environ.get("PGUSER") or _login()

    def __str__(self) -> str:
        host = self.parameters.get("host") or "the local socket"
        return f"database {self.dbname} at {host}"

    def at(self, dbname: str) -> "Server":
        """Another database of the same server."""
        return Server({**self.parameters, "dbname": dbname})

    def connect(self, **more: Any) -> Any:
        """A psycopg connection. Raises NotAllowed or Unreachable, without the password."""
        import psycopg

        wanted = {"connect_timeout": CONNECT_SECONDS, "application_name": "dafnck", **more}
        try:
            return psycopg.connect(**{**wanted, **self.parameters})
        except psycopg.OperationalError as error:
            words = self.without_secrets(str(error))
            if re.search(r"password|authentication|pg_hba|permission", words):
                raise NotAllowed(f"{self} does not let us in: {words}") from None
            raise Unreachable(f"{self} does not answer: {words}") from None

    @contextmanager
    def tool_environment(self) -> Iterator[dict[str, str]]:
        """Of a program of PostgreSQL; good as long as the context is open."""
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TZ")}
        for name, value in self.parameters.items():
            if name != "password":
                environment[VARIABLES[name]] = value
        environment.setdefault("PGAPPNAME", "dafnck")
        environment.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_SECONDS))
        with tempfile.TemporaryDirectory(prefix="dafnck-pgpass-") as folder:
            if password := self.parameters.get("password"):
                file = Path(folder) / "pgpass"
                escaped = password.replace("\\", "\\\\").replace(":", "\\:")
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
                    out.write(f"*:*:*:*:{escaped}\n")
                environment["PGPASSFILE"] = str(file)
            yield environment

    def without_secrets(self, words: str) -> str:
        password = self.parameters.get("password")
        one_line = " ".join(words.split())
        return one_line.replace(password, "***") if password else one_line


def server_of(reference: str, secrets: "SecretFiles | None" = None) -> Server:
    """'secret://name/key' of `secrets`, 'env://NAME', 'file:///path' or a URL. Raises BadInput,
    which does not tell the value; NotAllowed when no key opens a secret."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    url, where = reference, "the URL of the database"
    if reference.startswith("env://"):
        name = reference.removeprefix("env://")
        url, where = os.environ.get(name, "").strip(), f"the variable {name}"
        if not url:
            raise BadInput(
                f"{name} is not set in the environment of this process; nothing was changed. The "
                "worker of `dafnck up` knows those that begin with DAFNCK_BACKUP_ and were set "
                "when it was started"
            )
    elif reference.startswith("secret://"):
        url, where = _secret(reference.removeprefix("secret://"), secrets), reference
    elif reference.startswith("file://"):
        path = Path(reference.removeprefix("file://"))
        where = str(path)
        try:
            if path.stat().st_mode & 0o007:
                raise BadInput(f"others may read {path}; not used. Mend it: chmod o= {path}")
            url = path.read_text().strip()
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; nothing was changed") from None
    try:
        read = conninfo_to_dict(url)
    except ProgrammingError:
        raise BadInput(f"{where} holds no URL of PostgreSQL; nothing was changed") from None
    parameters = {key: str(value) for key, value in read.items() if value is not None}
    if unknown := set(parameters) - set(VARIABLES) - {"password"}:
        raise BadInput(f"{where}: {', '.join(sorted(unknown))} is not known here")
    return Server(parameters)


def _secret(name: str, secrets: "SecretFiles | None") -> str:
    if secrets is None:
        raise BadInput(f"secret://{name}: there is no stack whose secret it could be")
    try:
        return secrets.read(name)[1].strip()
    except NotAllowed:
        raise
    except Refused as error:
        raise BadInput(f"{error}; nothing was changed") from None


@cache
def pg_tool(name: str, at_least: int | None = None, *, exactly: int | None = None) -> Path:
    """The newest there is, of this major version at least, or exactly of this one, as the files of
    a server want it. Raises Unreachable."""
    found: list[tuple[int, Path]] = []
    places = [path / "bin" / name for path in DEBIAN.glob("*")] if DEBIAN.is_dir() else []
    if in_path := shutil.which(name):
        places.append(Path(in_path))
    for path in places:
        if path.is_file() and (major := tool_major(path)):
            found.append((major, path))
    if not found:
        raise Unreachable(f"{name} of PostgreSQL is not there: apt-get install postgresql")
    if exactly is not None:
        fit = [path for major, path in found if major == exactly]
        if not fit:
            there = ", ".join(sorted({str(major) for major, _ in found}))
            raise Unreachable(
                f"{name} of PostgreSQL {exactly} is not there (of {there} it is): "
                f"apt-get install postgresql-{exactly}"
            )
        return fit[0]
    major, newest = max(found)
    if at_least is not None and major < at_least:
        raise Unreachable(
            f"{name} is of PostgreSQL {major} and the server of {at_least}: the tools must be as "
            f"new as the server: apt-get install postgresql-{at_least}"
        )
    return newest


def tool_version(path: Path) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)*", done.stdout)
    return found[0] if found else ""


def tool_major(path: Path) -> int:
    return int(tool_version(path).partition(".")[0] or 0)


def _login() -> str:
    from getpass import getuser

    return getuser()


def last_words(server: Server, program: str | Path, code: int, said: bytes) -> str:
    """Of a program that failed."""
    words = server.without_secrets(said.decode(errors="replace"))[-600:]
    return f"{Path(program).name} on {server} ended with {code}: {words or 'it said nothing'}"
