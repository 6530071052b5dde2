"""The key that opens the backups: an age identity in a file, which people copy away.

    # dafnck recovery key; whoever has this file can read every backup
    # public key: age1…
    # trusted 5c1e…: -----BEGIN PUBLIC KEY-----|MCow…|-----END PUBLIC KEY-----
    AGE-SECRET-KEY-1…

The comments say whose signatures count, so that this file and the store are all that a recovery
needs; `age -d -i` reads the file as it is.
"""

from collections.abc import Mapping
from pathlib import Path

from blocks.age_key import SECRET, AgeKey
from blocks.files import write_atomically
from policy.errors import BadInput

TITLE = "# dafnck recovery key; whoever has this file can read every backup"
TRUSTED = "# trusted "


class RecoveryKey(AgeKey):
    def __init__(self, file: Path) -> None:
        super().__init__(file, TITLE, "recovery key", "dafnck backup key", "backups")

    def make(self, trusted: Mapping[str, str]) -> str:
        """A new one. `trusted`: key id -> PEM of the public keys whose signatures count. -> its
        recipient. Raises Refused when there is one: what it sealed would open no more."""
        return self.make_new(_comments(trusted))

    def trusted(self) -> dict[str, str]:
        """Key id -> PEM. Raises BadInput."""
        self.identity()
        found = {}
        for line in self._lines():
            if line.startswith(TRUSTED):
                name, _, text = line.removeprefix(TRUSTED).partition(": ")
                found[name] = text.replace("|", "\n") + "\n"
        return found

    def trust(self, trusted: Mapping[str, str]) -> None:
        """These signatures count as well. Raises BadInput."""
        with self._locked():
            both = {**self.trusted(), **trusted}
            others = [line for line in self._lines() if not line.startswith(TRUSTED)]
            at = next(at for at, line in enumerate(others) if line.startswith(SECRET))
            lines = [*others[:at], *_comments(both), *others[at:]]
            write_atomically(self.file, "\n".join(lines) + "\n", 0o600)


def _comments(trusted: Mapping[str, str]) -> list[str]:
    for name, text in trusted.items():
        if not text.strip().startswith("-----BEGIN PUBLIC KEY-----") or set("|:\n ") & set(name):
            raise BadInput(f"{name!r} is no public key")
    return [
        f"{TRUSTED}{name}: {'|'.join(text.strip().splitlines())}"
        for name, text in sorted(trusted.items())
    ]
