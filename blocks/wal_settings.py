"""What `archive_command` and `restore_command` of a PostgreSQL server need to know, as one small
file, and the commands themselves. Paths and public keys alone: no secret is in it.

The server's own user must be able to read it, what it names, and this Python.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from policy.errors import BadInput

NOT_THERE = 44  # exit code of a fetch: the log in the archive ends before it


@dataclass(frozen=True)
class WalSettings:
    vault: str  # url
    prefix: str  # of the target's keys: shop/prod/database
    recipients: tuple[str, ...]  # age public keys
    credentials: str | None = None  # file of the store's keys
    identity: str | None = None  # file of the age private key; only a restore needs it
    lock_days: int | None = None  # nobody can delete a segment so many days long

    def write(self, file: Path) -> None:
        from blocks.files import write_atomically

        write_atomically(file, json.dumps(asdict(self), indent=2) + "\n", 0o644)

    @staticmethod
    def read(file: Path) -> "WalSettings":
        """Raises BadInput."""
        try:
            read = json.loads(file.read_text())
            return WalSettings(**{**read, "recipients": tuple(read["recipients"])})
        except OSError as error:
            raise BadInput(
                f"{file} cannot be read ({error.strerror}); the user that PostgreSQL runs as must "
                "be able to"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(
                f"{file} holds no settings of a WAL archive ({type(error).__name__}: {error}); "
                "a backup of the target writes it anew"
            ) from None


def archive_command(file: Path) -> str:
    """For postgresql.conf: stores the segment %p; PostgreSQL runs it by /bin/sh."""
    return f"{_program()} push {_word(file)} %p %f"


def restore_command(file: Path) -> str:
    """For postgresql.conf: has the segment %f at %p. Exit code 1 is the end of a recovery, so a
    Python that does not even start must not leave with it."""
    fetch = f"{_program()} fetch {_word(file)} %f %p"
    return f"{fetch}; case $? in 0) exit 0;; {NOT_THERE}) exit 1;; *) exit 255;; esac"


def quoted(value: str) -> str:
    """As a string of postgresql.conf."""
    return "'" + value.replace("'", "''") + "'"


def _program() -> str:
    # -P: PostgreSQL runs it in its data directory, from which no module may be taken.
    return f"{_word(Path(sys.executable))} -P -m blocks.wal_command"


def _word(path: Path) -> str:
    """For the shell, and PostgreSQL's own %."""
    return shlex.quote(str(path.absolute())).replace("%", "%%")
