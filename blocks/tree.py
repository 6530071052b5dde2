"""A list of all files of a folder, a line each, whose digest is the digest of the folder.

    file 9f86d081…  app/shop.py
    exec 2c26b46b…  venv/bin/gunicorn
    link fcde2b2e…  venv/bin/python      (SHA-256 of where it points)

Sorted by name; names are percent-encoded where they hold more than letters, digits and `._-/+@`.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote


def listing(folder: Path, parts: tuple[str, ...]) -> str:
    """Of these files and folders within it."""
    found = [path for part in parts for path in _under(folder / part)]
    lines = {quoted(str(path.relative_to(folder))): _line(path) for path in found}
    return "".join(f"{lines[name]}  {name}\n" for name in sorted(lines))


def quoted(name: str) -> str:
    return quote(name, safe="/._-+@")


def differences(before: str, now: str) -> list[str]:
    """What changed from one listing to another, in words: 'app/shop.py was changed'."""
    old, new = _by_name(before), _by_name(now)
    words = [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
    words += [f"{name} was added" for name in sorted(new.keys() - old.keys())]
    words += [f"{n} was changed" for n in sorted(old.keys() & new.keys()) if old[n] != new[n]]
    return words


def _under(path: Path) -> Iterator[Path]:
    if path.is_symlink() or path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path, onerror=_raise):
        here = Path(folder)
        yield from (here / name for name in files)
        yield from (here / name for name in folders if (here / name).is_symlink())


def _raise(error: OSError) -> None:
    """What cannot be listed cannot be vouched for. That there is no such folder is no secret."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _line(path: Path) -> str:
    if path.is_symlink():
        return f"link {hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()}"
    if not path.is_file():
        return f"special {'0' * 64}"  # a pipe or socket: to read it is to wait for ever
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        executable = os.fstat(file.fileno()).st_mode & 0o100
    return f"{'exec' if executable else 'file'} {digest}"


def _by_name(listed: str) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in listed.splitlines())
    return {unquote(parts[-1]): parts[0] for parts in lines}
