"""An age identity in a file of ours, with comments; `age -d -i FILE` reads it as it is.

Invariant: what the file holds is told to nobody, and nobody else may read it.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.files import locked, write_atomically
from policy.errors import BadInput, Refused

SECRET = "AGE-SECRET-KEY-1"  # noqa: S105  how a line of it begins


class AgeKey:
    """`title`: the first line. `what` it is, `made_by` what, and what it `opens`: for messages."""

    def __init__(self, file: Path, title: str, what: str, made_by: str, opens: str) -> None:
        self.file = file
        self._title, self._what, self._made_by, self._opens = title, what, made_by, opens

    def there(self) -> bool:
        return self.file.exists()

    def make_new(self, comments: Sequence[str] = ()) -> str:
        """-> its recipient. Raises Refused when there is one: what it sealed would open no more."""
        from pyrage import x25519

        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            if self.there():
                raise Refused(
                    f"{self.file} exists: {self._opens} that were sealed for it would never open "
                    "again. Nothing was changed; move it away yourself if that is what you want"
                )
            identity = x25519.Identity.generate()
            recipient = str(identity.to_public())
            lines = [self._title, f"# public key: {recipient}", *comments, str(identity)]
            write_atomically(self.file, "\n".join(lines) + "\n", 0o600)
        return recipient

    def recipient(self) -> str:
        """The public half. Raises BadInput when the file is no key, or others may read it."""
        return str(self.identity().to_public())

    def identity(self) -> Any:
        """As pyrage takes it. Raises BadInput."""
        from pyrage import IdentityError, x25519

        secrets = [line for line in self._lines() if line.startswith(SECRET)]
        if len(secrets) == 1:
            try:
                return x25519.Identity.from_str(secrets[0])
            except IdentityError:
                pass  # its words are not told: they could hold a part of it
        raise BadInput(f"{self.file} holds no {self._what}: {self._made_by} makes one")

    def _locked(self) -> Any:
        return locked(self.file.with_name(f".{self.file.name}.lock"))

    def _lines(self) -> list[str]:
        try:
            with self.file.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise BadInput(
                        f"others may read {self.file}, or write it: chmod 600 {self.file}. Whoever "
                        f"read it can read the {self._opens}"
                    )
                return file.read(2**20).decode().splitlines()
        except FileNotFoundError:
            raise BadInput(f"there is no {self.file}: {self._made_by} makes one") from None
        except OSError as error:
            raise BadInput(f"{self.file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{self.file} holds no {self._what}") from None
