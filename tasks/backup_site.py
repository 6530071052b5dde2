"""Everything that one backup, restore or drill acts on: vaults, keys, room for scratch files."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

from blocks.backup_catalogue import Catalogue, Place
from blocks.files import locked_if_free, remove_half_written, scratch
from blocks.ports import BackupSource, Vault
from blocks.postgres import Server, server_of
from blocks.recovery_key import RecoveryKey
from blocks.secret_files import SecretFiles
from blocks.signing import Keys
from blocks.stack import Stack
from blocks.vaults import vault
from policy.backup import OWN, OWN_TARGET, Backup, Target
from policy.errors import BadInput, Refused

BUCKET = "dafnck-backups"  # of the stack's own object store


class Store(NamedTuple):
    """How a vault is reached."""

    url: str
    credentials: Path | None  # file of the stack's own store; None: boto3 finds them


class BackupSite:
    """Of one target; `target` has only its rules for the state of dafnck itself. No dataclass: into
    those Prefect looks, to find what a task waits for, and puts them together anew."""

    def __init__(
        self,
        stack: Stack,
        place: Place,
        target: Target,
        catalogue: Catalogue,
        second: Catalogue | None,
        key: RecoveryKey,
        recipients: tuple[str, ...],
        lock_days: int | None,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stack, self.place, self.target = stack, place, target
        self.catalogue, self.second = catalogue, second
        self.key, self.recipients, self.lock_days = key, recipients, lock_days
        self.store, self.clock = store, clock

    def but(self, **others: Any) -> "BackupSite":
        """The same with other attributes."""
        site = copy(self)
        vars(site).update(others)
        return site

    @property
    def vault(self) -> Vault:
        return self.catalogue.vault

    @property
    def server(self) -> Server:
        """Of a database. Raises BadInput, NotAllowed."""
        assert self.target.postgres
        return server_of(self.target.postgres, SecretFiles(self.stack))

    @property
    def is_own(self) -> bool:
        return self.place.service == OWN

    def __repr__(self) -> str:
        return str(self.place)


def own_place(stack: Stack) -> Place:
    return Place(OWN, "stack", OWN_TARGET)


def key_of(stack: Stack) -> RecoveryKey:
    return RecoveryKey(stack.secrets / "recovery-key.txt")


def have_key(stack: Stack) -> RecoveryKey:
    """Made at the first need; `dafnck backup key` has it copied away."""
    key = key_of(stack)
    trusted = {path.stem: path.read_text() for path in sorted(stack.keys.glob("*.pem"))}
    if not key.there():
        key.make(trusted)
    elif set(trusted) - set(key.trusted()):
        key.trust(trusted)
    return key


def default_store(stack: Stack) -> Store:
    if stack.store_url:
        return Store(stack.store_url, None)
    own = f"s3://{BUCKET}?endpoint=http://127.0.0.1:{stack.ports.object_store}"
    return Store(own, stack.store_credentials)


def credentials_for(stack: Stack, bucket: str) -> Path | None:
    """Of the stack's own object store; of any other boto3 finds them."""
    own = f"http://127.0.0.1:{stack.ports.object_store}"
    own_store = stack.store_url is None and parse_qs(urlsplit(bucket).query).get("endpoint") == [
        own
    ]
    return stack.store_credentials if own_store else None


def default_vault(stack: Stack) -> Vault:
    return vault(*default_store(stack))


def site_of_target(
    stack: Stack, place: Place, backup: Backup | None, target: Target | None = None
) -> BackupSite:
    """`backup`: the part of the service file; None: for the state of dafnck itself."""
    keys, key = Keys(stack.secrets, stack.keys), have_key(stack)
    store = Store(backup.to, None) if backup and backup.to else default_store(stack)
    second = vault(backup.copy_to) if backup and backup.copy_to else None
    target = target or (backup.targets[place.target] if backup else OWN_STATE)
    return BackupSite(
        stack,
        place,
        target,
        Catalogue(vault(*store), keys),
        Catalogue(second, keys) if second else None,
        key,
        tuple(dict.fromkeys([key.recipient(), *(backup.recipients if backup else [])])),
        backup.lock_days if backup else None,
        store,
    )


# Only its rules count: how long it stays, how old and how slow it may be.
OWN_STATE = Target(files=[OWN_TARGET])


def source_of(site: BackupSite) -> BackupSource:
    """Raises BadInput for a reference that leads nowhere."""
    target = site.target
    if site.is_own:
        from blocks.own_state import OwnState

        return OwnState(site.stack)
    if target.postgres:
        if target.is_physical:
            from tasks.physical import source

            return source(site)
        from blocks.pg_dump import LogicalSource

        return LogicalSource(site.server)
    if target.bucket:
        from blocks.bucket_source import BucketSource

        return BucketSource(target.bucket, credentials_for(site.stack, target.bucket))
    from blocks.tree_source import TreeSource

    return TreeSource([Path(path) for path in target.files or []])


@contextmanager
def alone(site: BackupSite) -> Iterator[None]:
    """Nobody else on this machine writes or removes backups of this target meanwhile."""
    place = site.place
    name = f"{place.service}-{place.environment}-{place.target}.lock"
    with locked_if_free(site.stack.home / "backups" / "locks" / name) as free:
        if not free:
            raise Refused(
                f"somebody backs up, copies or prunes {place} already; nothing was changed. Wait "
                "for it"
            )
        yield


def in_place_of(site: BackupSite, in_place: bool, confirm: str | None) -> None:
    """Raises BadInput unless whoever wants to overwrite says what."""
    name = f"{site.place.service}/{site.place.environment}/{site.place.target}"
    if in_place and confirm != name:
        raise BadInput(
            f"{site.place} would be replaced, by a backup of another time; say so: "
            f"--confirm {name}. Nothing was changed"
        )


@contextmanager
def scratch_of(site: BackupSite) -> Iterator[Path]:
    """Room for a restored copy: in $DAFNCK_DRILL_FOLDER, else in the home, or in /var/tmp when we
    are root: PostgreSQL then runs as a user that does not get into the home. Gone afterwards, also
    what a death left there."""
    own = site.stack.home / "drills"
    if os.getuid() == 0:
        own = Path("/var/tmp") / f"dafnck-drills-{crc32(str(own).encode())}"  # noqa: S108
    folder = Path(os.environ.get("DAFNCK_DRILL_FOLDER") or own)
    folder.mkdir(parents=True, exist_ok=True)
    if folder == own:
        folder.chmod(0o711)  # whatever the umask
    remove_half_written(folder)
    try:
        with scratch(folder, site.place.target) as here:
            here.chmod(0o711)
            yield here
    finally:
        if folder == own:
            with suppress(OSError):  # somebody else's is there
                folder.rmdir()


def salt() -> bytes:
    return os.urandom(16)
