"""The secrets of this stack: each value a file that is sealed to the keys of the stack.

    values/<name>/<key>/versions.json    which versions there are; no value
    values/<name>/<key>/<number>.age     a value; `age -d -i KEY FILE` opens it without us
    secrets/values-key.txt               the key, 0600; not in the folder that holds the values

They are sealed to the recovery key as well, where there is one: a backup of dafnck's own state
holds `values/`, and whoever recovers brings that key.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from blocks.age_key import AgeKey
from blocks.files import locked, locked_if_free, write_atomically, write_bytes_atomically
from blocks.recovery_key import RecoveryKey
from blocks.stack import Stack
from policy.errors import NotAllowed, Refused
from policy.secrets import MAX_BYTES, Version, Versions

WITHIN_SECONDS = 30.0  # for the lock: nobody holds it longer than it takes to write some files


class SecretFiles:
    """`clock`: seconds since the epoch. `also`: keys that may open values, beside the stack's."""

    def __init__(
        self, stack: Stack, clock: Callable[[], float] = time.time, also: Sequence[AgeKey] = ()
    ) -> None:
        self._folder = stack.values
        self._seal = Seal(stack, also)
        self._clock = clock

    def names(self) -> list[str]:
        found = self._folder.glob("*/*/versions.json")
        names = sorted(str(path.parent.relative_to(self._folder)) for path in found)
        return [name for name in names if self.versions(name).current is not None]

    def versions(self, name: str) -> Versions:
        """Without any when there is no such secret."""
        try:
            said = json.loads((self._folder / name / "versions.json").read_text())
        except FileNotFoundError:
            return Versions(name)
        versions = tuple(Version(**one) for one in said["all"])
        return Versions(name, versions, said["current"], said["pending"], said.get("moved_at"))

    def read(self, name: str, number: int | None = None) -> tuple[int, str]:
        """-> number and value of the current version, or of this one. Raises Refused when there is
        none, NotAllowed when our keys do not open it."""
        versions = self.versions(name)
        number = versions.current if number is None else number
        if number is None or (one := versions.version(number)) is None:
            raise Refused(f"there is no secret {name}; make it: dafnck secret set {name}")
        if one.disabled_at is not None:
            raise Refused(f"version {number} of {name} was closed; its value is gone")
        try:
            sealed = self._value(name, number).read_bytes()
        except FileNotFoundError:
            raise Refused(
                f"the value of {name} is lost: there is no {self._value(name, number)}; set it "
                f"anew: dafnck secret set {name}"
            ) from None
        return number, self._seal.open(sealed, name).decode()

    def put(self, name: str, value: str) -> int:
        """It is the current value from now on, in place of one that is pending. -> its version.
        What was current stays readable for the releases that have it. The same value again is the
        same version."""
        with self._changing(name) as now:
            if now.current is not None and self._is(now, value):
                return now.current
            if now.pending is not None:
                now = self._dropped(now, now.pending)
            return self._promoted(self._with(now, value))

    def _is(self, now: Versions, value: str) -> bool:
        """Is it the current value? One that cannot be read is another one."""
        try:
            return self.read(now.name)[1] == value
        except Refused:
            return False

    def propose(self, name: str, value: str) -> int:
        """A value that is not current yet. Raises Refused while another one is pending."""
        with self._changing(name) as now:
            if now.pending is not None:
                raise Refused(f"version {now.pending} of {name} is pending already")
            now = self._with(now, value)
            self._write(now)
            assert now.pending is not None
            return now.pending

    def promote(self, name: str, number: int) -> None:
        """The pending one is current from now on. Idempotent."""
        with self._changing(name) as now:
            if now.pending == number:
                self._promoted(now)
            elif now.current != number:
                raise Refused(f"version {number} of {name} is not pending; nothing was changed")

    def drop(self, name: str, number: int) -> None:
        """Forget a pending one, or give an older one up, whatever it opens. Raises Refused for the
        current one, and for one that is not known."""
        if self.versions(name).version(number) is None:
            raise Refused(f"{name} has no version {number}: dafnck secret show {name}")
        if self.versions(name).pending != number:
            self.disable(name, number)
            return
        with self._changing(name) as now:
            if now.pending == number:
                self._dropped(now, number)

    def disable(self, name: str, number: int) -> None:
        """It opens nothing any more: its value is removed. Idempotent. Raises Refused for the
        current one."""
        with self._changing(name) as now:
            if number == now.current:
                raise Refused(f"version {number} of {name} is the current one")
            disabled = [
                replace(one, disabled_at=one.disabled_at or self._clock())
                if one.number == number
                else one
                for one in now.all
            ]
            self._write(replace(now, all=tuple(disabled)))
            self._value(name, number).unlink(missing_ok=True)

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """For whoever turns it over. -> whether nobody else does."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked_if_free(self._folder / f".{name.replace('/', '.')}.rotating") as free:
            yield free

    def remove(self, name: str) -> None:
        """All of its values; what there was stays known. Raises Refused when there is none."""
        with self._changing(name) as now:
            if now.current is None and now.pending is None:
                raise Refused(f"there is no secret {name}")
            at = self._clock()
            gone = tuple(replace(one, disabled_at=one.disabled_at or at) for one in now.all)
            self._write(Versions(name, gone))
            for path in (self._folder / name).glob("*.age"):
                path.unlink()

    def moved(self, name: str, at: float | None) -> None:
        """When all that serve were seen to have the current version; None: they have not."""
        with self._changing(name) as now:
            if now.moved_at != at:
                self._write(replace(now, moved_at=at))

    def reseal(self) -> None:
        """To the keys that there are now; what none of them opens stays as it is."""
        if self._folder.exists():
            with locked(self._folder / ".lock", WITHIN_SECONDS):
                for path in sorted(self._folder.rglob("*.age")):
                    write_bytes_atomically(path, self._sealed_anew(path.read_bytes()), 0o600)

    def copy_to(self, folder: Path) -> None:
        """All of it as it is at one moment, sealed to the keys that there are now; of a value that
        none of them opens the file as it is."""
        if not self._folder.exists():
            return
        with locked(self._folder / ".lock", WITHIN_SECONDS):
            for path in sorted(self._folder.rglob("*")):
                to = folder / path.relative_to(self._folder)
                if path.is_dir():
                    to.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif path.suffix == ".json":
                    write_bytes_atomically(to, path.read_bytes(), 0o600)
                elif path.suffix == ".age" and path.exists():  # a release may be forgotten now
                    write_bytes_atomically(to, self._sealed_anew(path.read_bytes()), 0o600)

    # ------------------------------------------------------------------------------------------

    def _sealed_anew(self, sealed: bytes) -> bytes:
        try:
            return self._seal.close(self._seal.open(sealed, "it"))
        except NotAllowed:
            return sealed

    @contextmanager
    def _changing(self, name: str) -> Iterator[Versions]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._folder / ".lock", WITHIN_SECONDS):
            yield self.versions(name)

    def _with(self, now: Versions, value: str) -> Versions:
        """Sealed on disk first: a version that is named has its value."""
        content = value.encode()
        if not content or len(content) > MAX_BYTES or "\0" in value:
            raise Refused(
                f"{now.name}: a value has 1 to {MAX_BYTES:,} bytes and no NUL; nothing was changed"
            )
        number = max((one.number for one in now.all), default=0) + 1
        sealed = self._seal.close(content)
        write_bytes_atomically(self._value(now.name, number), sealed, 0o600)
        made = Version(number, self._clock())
        return replace(now, all=(*now.all, made), pending=number)

    def _dropped(self, now: Versions, number: int) -> Versions:
        left = tuple(one for one in now.all if one.number != number)
        now = replace(now, all=left, pending=None)
        self._write(now)
        self._value(now.name, number).unlink(missing_ok=True)
        return now

    def _promoted(self, now: Versions) -> int:
        assert now.pending is not None
        versions = tuple(
            replace(one, current_since=self._clock()) if one.number == now.pending else one
            for one in now.all
        )
        self._write(Versions(now.name, versions, current=now.pending))
        return now.pending

    def _write(self, now: Versions) -> None:
        said = asdict(now)
        del said["name"]
        text = json.dumps(said, indent=1) + "\n"
        write_atomically(self._folder / now.name / "versions.json", text, 0o600)

    def _value(self, name: str, number: int) -> Path:
        return self._folder / name / f"{number}.age"


class Seal:
    """Seals small values to the keys of a stack."""

    def __init__(self, stack: Stack, also: Sequence[AgeKey] = ()) -> None:
        self._also = also
        self._own = AgeKey(
            stack.secrets / "values-key.txt",
            "# dafnck values key; whoever has this file can read the secrets of this stack",
            "key of the secrets",
            "dafnck secret set",
            "secrets",
        )
        self._recovery = RecoveryKey(stack.secrets / "recovery-key.txt")

    def close(self, content: bytes) -> bytes:
        """Raises BadInput for a key that others may read."""
        import pyrage

        if not self._own.there():
            self._own.make_new()
        identities = [key.identity() for key in self._there()]
        return bytes(pyrage.encrypt(content, [one.to_public() for one in identities]))

    def open(self, sealed: bytes, what: str) -> bytes:
        """Raises NotAllowed when no key of the stack opens it."""
        import pyrage

        try:
            return bytes(pyrage.decrypt(sealed, [key.identity() for key in self._there()]))
        except pyrage.DecryptError:
            raise NotAllowed(
                f"no key in {self._own.file.parent} opens {what}: it was sealed for another stack, "
                "or changed; set it anew: dafnck secret set"
            ) from None

    def files(self) -> list[Path]:
        """Of the keys that there are."""
        return [key.file for key in self._there()]

    def _there(self) -> list[AgeKey]:
        return [key for key in (self._own, self._recovery, *self._also) if key.there()]
