"""`python -m blocks.wal_command`: what PostgreSQL runs as its archive_command and restore_command.

push SETTINGS PATH [NAME]    0: it is stored; 1: it is not
fetch SETTINGS NAME PATH     0: it is there; 44: the log in the archive ends before it; 255: trouble
"""

import sys
import time
from pathlib import Path

from blocks.wal_settings import NOT_THERE, WalSettings
from policy.errors import BadInput, DafnckError

# Both are told by `restore_command` to PostgreSQL, for which 1 to 125 are the end of the log.
TROUBLE = 255


def main(words: list[str]) -> int:
    """`push SETTINGS PATH [NAME]`, `fetch SETTINGS NAME PATH`. -> the exit code, for PostgreSQL."""
    code = TROUBLE
    try:
        match words:
            case ["push", settings, path, *name] if len(name) < 2:
                code = 1
                _push(Path(settings), Path(path), name[0] if name else None)
                return 0
            case ["fetch", settings, name, path]:
                return 0 if _fetch(Path(settings), name, Path(path)) else NOT_THERE
        raise BadInput("write: push SETTINGS PATH [NAME], or fetch SETTINGS NAME PATH")
    except DafnckError as error:
        print(f"dafnck wal {words[0] if words else ''}: {error}", file=sys.stderr)
    except Exception as error:
        print(f"dafnck wal: {type(error).__name__}: {error}", file=sys.stderr)
    return code


def _push(settings_file: Path, path: Path, name: str | None) -> None:
    from blocks.vaults import vault
    from blocks.wal_archive import push

    settings = WalSettings.read(settings_file)
    place = vault(settings.vault, _path(settings.credentials))
    days = settings.lock_days
    locked = time.time() + days * 86400 if days else None
    push(place, settings.prefix, path, settings.recipients, name=name, locked_until=locked)


def _fetch(settings_file: Path, name: str, path: Path) -> bool:
    from blocks.vaults import vault
    from blocks.wal_archive import fetch

    settings = WalSettings.read(settings_file)
    if settings.identity is None:
        raise BadInput(f"{settings_file} names no identity, the age private key to restore with")
    place = vault(settings.vault, _path(settings.credentials))
    return fetch(place, settings.prefix, name, path, Path(settings.identity))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
