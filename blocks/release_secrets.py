"""What the releases of this machine run with: the values of their secrets, as they were when each
began, sealed; an old release that is started again has what it had.

    values/.releases/<release id>.age     variable -> value
    values/.releases/<release id>.json    variable -> reference and version; no value

Invariant: no value is on a disk in the clear. A value whose credential was closed is never kept:
what starts then is given the current one.
"""

import json
from pathlib import Path

from blocks.files import write_atomically, write_bytes_atomically
from blocks.redaction import Redactor
from blocks.secret_files import Seal
from blocks.secret_sources import SecretSources
from blocks.stack import Stack
from policy.errors import DafnckError
from policy.release import Release
from policy.secrets import read_reference


class ReleaseSecrets:
    def __init__(self, stack: Stack) -> None:
        self._folder = stack.values / ".releases"
        self._seal = Seal(stack)
        self._sources = SecretSources(stack)

    def due(self, release: Release) -> bool:
        """Must they be read? What it has stays while all of it counts."""
        has = self.versions(release.id).values()
        return bool(release.run.secrets) and not (has and all(map(self._counts, has)))

    def provide(self, release: Release) -> None:
        """Read them, for a release that is not running. Raises as its sources do, with the
        variable, and that what serves still serves."""
        wanted = release.run.secrets
        values, versions = {}, {}
        for variable, text in wanted.items():
            try:
                version, value = self._sources.read(read_reference(text))
            except DafnckError as error:
                raise type(error)(
                    f"run.secrets: {variable}: {error}. Nothing was started, what serves still "
                    "serves"
                ) from None
            values[variable] = value
            versions[variable] = {"reference": text, "version": version}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sealed = self._seal.close(json.dumps(values).encode())
        write_bytes_atomically(self.file(release.id), sealed, 0o600)
        write_atomically(self._said(release.id), json.dumps(versions) + "\n", 0o600)

    def values(self, release_id: str) -> dict[str, str]:
        """Variable -> value; none when it has none. Raises NotAllowed when no key opens them."""
        try:
            sealed = self.file(release_id).read_bytes()
        except FileNotFoundError:
            return {}
        opened = self._seal.open(sealed, f"the secrets of {release_id}")
        return {str(name): str(value) for name, value in json.loads(opened).items()}

    def versions(self, release_id: str) -> dict[str, dict[str, str]]:
        """Variable -> its `reference` and `version`."""
        try:
            said = json.loads(self._said(release_id).read_text())
        except FileNotFoundError:
            return {}
        return dict(said)

    def redactor(self, release_id: str) -> Redactor:
        """Takes its values out of what it says. Raises nothing: without keys nothing of what it
        says may be told."""
        try:
            return Redactor(self.values(release_id).values())
        except (DafnckError, OSError):
            return Redactor.of_everything()

    def to_open(self, release_id: str) -> dict[str, object]:
        """For the process that becomes the replica: the file, and those that hold the keys."""
        return {
            "file": str(self.file(release_id)),
            "keys": [str(path) for path in self._seal.files()],
        }

    def forget(self, release_id: str) -> None:
        self._said(release_id).unlink(missing_ok=True)
        self.file(release_id).unlink(missing_ok=True)

    def file(self, release_id: str) -> Path:
        return self._folder / f"{release_id}.age"

    def _said(self, release_id: str) -> Path:
        return self._folder / f"{release_id}.json"

    def _counts(self, one: dict[str, str]) -> bool:
        return self._sources.counts(read_reference(one["reference"]), one["version"])
