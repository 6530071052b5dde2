"""What a machine must have to go on as this dafnck, as one backup.

    ledger.db                    the ledger, of one moment; also of one that PostgreSQL keeps
    prefect/prefect.db           Prefect's history, where it is SQLite in the home
    stack.json                   ports
    keys/                        public keys whose signatures count
    secrets/object-store-url     where the artifacts of all releases are
    secrets/notify/              URLs that notifications go to
    values/                      secrets of services, sealed to the recovery key as well
    traefik/dynamic/             how the requests are shared out where a rollout stands frozen
    artifacts/                   what the stable releases run: an artifact that the store of the
                                 stack has is lost when that store was on this machine as well

All else that a release needs (configuration, routing, environment, what it backs up) is in its
record in the ledger.

What it holds is secret: the targets of notifications, the environment of releases and their files
with it. Whoever writes it down encrypts it. Private keys are not in it: a signing key is made anew
and what the old one signed still counts, Prefect's password is made anew, and the credentials of
stores and the URL of a ledger come from the person who recovers.

What no backup of this gives back is said in its facts (`not in it`): images that were pushed
nowhere, and artifacts that were not there.
"""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from blocks.attestations import Attestations
from blocks.files import remove_half_written, scratch
from blocks.images import read_image
from blocks.own_state_ledger import (
    copy_ledger,
    copy_sqlite,
    frozen_places,
    head_of_audit,
    newest_rollout,
    rows,
    serving,
    sqlite_file,
    sqlite_trouble,
)
from blocks.own_state_tar import facts_of, pack, under, unpack
from blocks.ports import StreamOf
from blocks.secret_files import SecretFiles
from blocks.signing import Keys
from blocks.stack import STORE_URL, Stack
from policy.backup_manifest import BackupKind, Difference, Facts, Manifest, TreeFacts
from policy.errors import NotApplied, Refused, Unreachable
from policy.release import Release

STREAM = "state"
LEDGER, PREFECT, VALUES = "ledger.db", "prefect/prefect.db", "values"
COPIES = (LEDGER, PREFECT)
FROM_HOME = ("stack.json", "keys", STORE_URL, "secrets/notify")
PLACES = ("artifacts", "keys", LEDGER, "prefect", "secrets", "traefik", VALUES, "stack.json")
ROWS, NEWEST, NOT_IN_IT = "rows of ", "newest rollout", "not in it"
HEAD = "head of the audit"


class OwnState:
    """The state of this stack. A ledger that PostgreSQL keeps is copied row by row, so that a
    recovery needs no PostgreSQL of the same version, or none."""

    kind: BackupKind = "own-state"

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @contextmanager
    def begin(self) -> Iterator["_Copied"]:
        ledger = sqlite_file(self._stack.ledger_url)
        if ledger is not None and not ledger.exists():
            raise Unreachable(f"there is no ledger {ledger}; start the stack: dafnck up")
        with scratch(self._stack.scratch, "own-state") as here:
            snapshot_at = time.time()
            copy_ledger(self._stack.ledger_url, here / LEDGER)
            (here / PREFECT).parent.mkdir()
            if (prefect := self._stack.home / PREFECT).exists():
                copy_sqlite(prefect, here / PREFECT)
            SecretFiles(self._stack).copy_to(here / VALUES)
            yield _Copied(self._stack, here, snapshot_at)


class _Copied:
    def __init__(self, stack: Stack, here: Path, snapshot_at: float) -> None:
        self._stack, self._here, self.snapshot_at = stack, here, snapshot_at
        self._tree: TreeFacts | None = None
        self._serving = serving(here / LEDGER)

    def streams(self) -> Iterator[tuple[str, BinaryIO]]:
        read, write = os.pipe()
        with ThreadPoolExecutor(1, "own-state") as pool, os.fdopen(read, "rb") as end:
            packed = pool.submit(self._pack, write)
            yield STREAM, end
            end.close()  # whoever did not read it to its end has no whole copy
            try:
                self._tree = packed.result()
            except OSError as error:
                raise NotApplied(f"the state of {self._stack.home} was not copied: {error}") from (
                    None
                )

    def _pack(self, write: int) -> TreeFacts:
        with os.fdopen(write, "wb") as out:
            return pack(self._items(), out)

    def _items(self) -> Iterator[tuple[str, Path]]:
        for name in (*COPIES, VALUES):
            yield from under(self._here, name)
        for name in FROM_HOME:
            yield from under(self._stack.home, name)
        for service, environment in frozen_places(self._here / LEDGER):
            yield from under(self._stack.home, f"traefik/dynamic/{service}-{environment}.yaml")
        for digest in self._artifacts():
            yield from under(self._stack.home, f"artifacts/{digest}")

    def _artifacts(self) -> list[str]:
        """Only whole ones: one that is being built is not what serves."""
        found = {release.artifact for release in self._serving}
        return sorted(one for one in found if (self._at(one) / "artifact.json").exists())

    def _at(self, artifact: str) -> Path:
        return self._stack.artifacts / artifact

    def facts(self) -> Facts:
        if self._tree is None:
            raise NotApplied("the stream was not read to its end: nothing can be said of it")
        ledger = self._here / LEDGER
        detail = {
            "host": platform.node(),
            "home": str(self._stack.home),
            "ledger": "SQLite" if sqlite_file(self._stack.ledger_url) else "PostgreSQL",
            "serving": ", ".join(release.id for release in self._serving) or "nothing",
            NEWEST: str(newest_rollout(ledger)),
            HEAD: head_of_audit(ledger),
            "keys": ", ".join(sorted(path.stem for path in self._stack.keys.glob("*.pem"))),
        }
        detail |= {ROWS + name: str(count) for name, count in rows(ledger).items()}
        if missing := list(self._missing()):
            detail[NOT_IN_IT] = "; ".join(missing)
        return Facts(tree=self._tree, detail=detail)

    def _missing(self) -> Iterator[str]:
        there = self._artifacts()
        for release in self._serving:
            if release.artifact not in there:
                yield f"artifact {release.artifact} of {release.id}: it is not in this home"
                continue
            image = read_image(self._at(release.artifact))
            if image is not None and not image.repository:
                yield f"the image of {release.id}: it was pushed nowhere"

    def tools(self) -> dict[str, str]:
        return {"dafnck": version("dafnck")}


class OwnStateRestore:
    """Into a home of nobody. Killed meanwhile, the next `restore` begins anew."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._begun = home / ".restoring"  # there while what lies in it is half of it

    def restore(self, manifest: Manifest, stream_of: StreamOf) -> None:
        """Raises Refused for a home in which something lies that is in use."""
        self._room()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begun.touch()
        with scratch(self.home, "own-state") as here:
            with stream_of(STREAM) as archive:
                unpack(archive, here)
            for name in PLACES:  # the last of them makes it a home
                if (here / name).exists():
                    (here / name).rename(self.home / name)
        self._begun.unlink()

    def _room(self) -> None:
        """Remove what an earlier attempt left; nothing else."""
        remove_half_written(self.home)
        there = [self.home / name for name in PLACES if os.path.lexists(self.home / name)]
        if there and not self._begun.exists():
            raise Refused(
                f"{self.home} is in use: {there[0].name} lies in it. Nothing was changed. Name an "
                "empty folder, or move it away if all in it is lost anyway"
            )
        for path in there:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def differences(self, manifest: Manifest) -> list[Difference]:
        """As long as nobody began to work in it."""
        return [*self._of_files(manifest), *self._of_ledger(manifest), *self._of_artifacts()]

    def _of_files(self, manifest: Manifest) -> Iterator[Difference]:
        wanted, found = manifest.facts.tree, facts_of(self._items())
        if wanted is None:
            yield Difference(what="files", wanted="none told", found=f"{found.count} files")
            return
        for name in TreeFacts.model_fields:
            before, now = getattr(wanted, name), getattr(found, name)
            if before != now:
                yield Difference(what=f"files: {name}", wanted=str(before), found=str(now))

    def _items(self) -> Iterator[tuple[str, Path]]:
        for name in PLACES:
            yield from under(self.home, name)

    def _of_ledger(self, manifest: Manifest) -> Iterator[Difference]:
        for name in COPIES:
            file = self.home / name
            if file.exists() and (trouble := sqlite_trouble(file)):
                yield Difference(what=name, wanted="whole", found=trouble)
                return
        ledger = self.home / LEDGER
        if not ledger.exists():
            yield Difference(what=LEDGER, wanted="a ledger", found="none")
            return
        told = manifest.facts.detail
        found = {ROWS + name: str(count) for name, count in rows(ledger).items()}
        found[NEWEST] = str(newest_rollout(ledger))
        of_ledger = [key for key in told if key.startswith(ROWS) or key == NEWEST]
        for key in sorted({*of_ledger, *found}):
            if told.get(key) != found.get(key):
                yield Difference(
                    what=f"ledger: {key}",
                    wanted=told.get(key, "not there"),
                    found=found.get(key, "not there"),
                )

    def _of_artifacts(self) -> Iterator[Difference]:
        """Are they what was built and signed, by the keys that came with them?"""
        keys = Keys(self.home / "secrets", self.home / "keys")
        said = Attestations(self.home / "artifacts", keys)
        for release in self._serving():
            if (self.home / "artifacts" / release.artifact).exists():
                try:
                    said.verify(release.artifact, release.content or None)
                except Refused as why:
                    yield Difference(
                        what=f"artifact {release.artifact} of {release.id}",
                        wanted="as it was built and signed",
                        found=str(why).partition(";")[0],
                    )

    def _serving(self) -> list[Release]:
        ledger = self.home / LEDGER
        return serving(ledger) if ledger.exists() and not sqlite_trouble(ledger) else []
