"""The key that opens the backups: an age identity in a file, which people copy away.

    # dafnck recovery key; whoever has this file can read every backup
    # public key: age1…
    # trusted 5c1e…: -----BEGIN PUBLIC KEY-----|MCow…|-----END PUBLIC KEY-----
    AGE-SECRET-KEY-1…

The comments say whose signatures count, so that this file and the store are all that a recovery
needs; `age -d -i` reads the file as it is.

Invariant: what the file holds is told to nobody, and nobody else may read it.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.files import locked, write_atomically
from policy.errors import BadInput, Refused

TITLE = "# dafnck recovery key; whoever has this file can read every backup"
TRUSTED = "# trusted "
SECRET = "AGE-SECRET-KEY-1"  # noqa: S105  how a line of it begins


class RecoveryKey:
    def __init__(self, file: Path) -> None:
        self.file = file

    def there(self) -> bool:
        return self.file.exists()

    def make(self, trusted: Mapping[str, str]) -> str:
        """A new one. `trusted`: key id -> PEM of the public keys whose signatures count. -> its
        recipient. Raises Refused when there is one: what it sealed would open no more."""
        from pyrage import x25519

        lock = self.file.with_name(f".{self.file.name}.lock")
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(lock):
            if self.there():
                raise Refused(
                    f"{self.file} exists: backups that were sealed for it would never open again. "
                    "Nothing was changed; move it away yourself if that is what you want"
                )
            identity = x25519.Identity.generate()
            recipient = str(identity.to_public())
            lines = [TITLE, f"# public key: {recipient}", *_comments(trusted), str(identity)]
            write_atomically(self.file, "\n".join(lines) + "\n", 0o600)
        return recipient

    def recipient(self) -> str:
        """The public half. Raises BadInput when the file is no key, or others may read it."""
        return str(self._identity().to_public())

    def trusted(self) -> dict[str, str]:
        """Key id -> PEM. Raises BadInput."""
        self._identity()
        found = {}
        for line in self._lines():
            if line.startswith(TRUSTED):
                name, _, text = line.removeprefix(TRUSTED).partition(": ")
                found[name] = text.replace("|", "\n") + "\n"
        return found

    def trust(self, trusted: Mapping[str, str]) -> None:
        """These signatures count as well. Raises BadInput."""
        with locked(self.file.with_name(f".{self.file.name}.lock")):
            both = {**self.trusted(), **trusted}
            others = [line for line in self._lines() if not line.startswith(TRUSTED)]
            at = next(at for at, line in enumerate(others) if line.startswith(SECRET))
            lines = [*others[:at], *_comments(both), *others[at:]]
            write_atomically(self.file, "\n".join(lines) + "\n", 0o600)

    def _identity(self) -> Any:
        from pyrage import IdentityError, x25519

        secrets = [line for line in self._lines() if line.startswith(SECRET)]
        if len(secrets) == 1:
            try:
                return x25519.Identity.from_str(secrets[0])
            except IdentityError:
                pass  # its words are not told: they could hold a part of it
        raise BadInput(f"{self.file} holds no recovery key: dafnck backup key makes one")

    def _lines(self) -> list[str]:
        try:
            with self.file.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise BadInput(
                        f"others may read {self.file}, or write it: chmod 600 {self.file}. Whoever "
                        "read it can read the backups"
                    )
                return file.read(2**20).decode().splitlines()
        except FileNotFoundError:
            raise BadInput(f"there is no {self.file}: dafnck backup key makes one") from None
        except OSError as error:
            raise BadInput(f"{self.file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{self.file} holds no recovery key") from None


def _comments(trusted: Mapping[str, str]) -> list[str]:
    for name, text in trusted.items():
        if not text.strip().startswith("-----BEGIN PUBLIC KEY-----") or set("|:\n ") & set(name):
            raise BadInput(f"{name!r} is no public key")
    return [
        f"{TRUSTED}{name}: {'|'.join(text.strip().splitlines())}"
        for name, text in sorted(trusted.items())
    ]
