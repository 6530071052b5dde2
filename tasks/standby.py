"""Business continuity: what one environment had, in another one beside it: the data of its newest
backups and the version that served there last, with the other one's own configuration.

Nothing of the environment that is taken over from is touched. What its stand-in held is kept aside.
"""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from blocks.attestations import Attestations
from blocks.backup_catalogue import Catalogue, Place
from blocks.files import scratch, write_atomically
from blocks.ledger import Ledger
from blocks.own_state import LEDGER, OwnStateRestore
from blocks.own_state_ledger import last_sign, serving
from blocks.recovery_key import RecoveryKey
from blocks.signing import Keys
from blocks.stack import Stack
from blocks.vaults import vault
from policy.backup import OWN, OWN_TARGET
from policy.errors import BadInput, Damaged, Refused
from policy.recovery import wanted
from policy.release import Release
from tasks import put_back
from tasks.backup_site import OWN_STATE, BackupSite, Store, default_vault, have_key
from tasks.drill import streams_of
from tasks.recover_data import Job
from tasks.site import Site

log = logging.getLogger("dafnck")


@dataclass(frozen=True)
class Other:
    """The environment that is taken over from, as its backups show it."""

    stack: Stack  # of the stand-in
    key: RecoveryKey
    store: str | None  # None: each target's own, or the stack's
    service: str
    environment: str
    to_time: float | None = None

    def catalogue(self, store: str | None) -> Catalogue:
        """Whose signatures count: those that this home trusts; with another key file, its own."""
        return Catalogue(vault(store) if store else default_vault(self.stack), self.keys)

    @property
    def keys(self) -> Keys:
        if self.key.file.parent == self.stack.secrets:
            return Keys(self.stack.secrets, self.stack.keys)
        trusted = self.stack.home / "recovery" / "keys"
        shutil.rmtree(trusted, ignore_errors=True)
        for key_id, pem in self.key.trusted().items():
            write_atomically(trusted / f"{key_id}.pem", pem)
        return Keys(self.stack.home / "recovery" / "secrets", trusted)

    def jobs(self, stand_in: Release) -> list[Job]:
        """One for each target of the stand-in: to where its own file says."""
        jobs = []
        for one in wanted([stand_in], of=self.environment):
            stores = dict.fromkeys([self.store, *one.stores])
            catalogues = [self.catalogue(store) for store in stores if store or not one.stores]
            jobs.append(Job(self.stack, self.key, catalogues, one, self.to_time, instead=True))
        return jobs


def other(
    stack: Stack,
    service: str,
    environment: str,
    *,
    store: str | None,
    key_file: str | None,
    to_time: float | None,
) -> Other:
    key = RecoveryKey(Path(key_file)) if key_file else have_key(stack)
    key.recipient()
    return Other(stack, key, store, service, environment, to_time)


def stand_in(site: Site) -> Release:
    """What was released last to where it shall be. Raises Refused when nothing was: nobody knows
    its configuration, and where its data goes."""
    ledger = site.ledger
    stable = ledger.stable(site.service, site.environment)
    newest = [stable] if stable else ledger.releases(site.service, site.environment, promoted=True)
    if not newest:
        raise Refused(
            f"nothing was ever released to {site}: nobody knows where its data goes. Once: dafnck "
            f"release FILE --env {site.environment}"
        )
    return ledger.release(newest[0])


@dataclass(frozen=True)
class Found:
    """What is known of the environment that is taken over from."""

    release: Release | None  # that served there last
    seen_at: float | None  # its newest sign of life, in seconds since the epoch
    here: bool  # it lives in this home


def not_the_same(mine: Release, found: Found) -> None:
    """Raises BadInput when the two share data: it would be replaced under the other one."""
    theirs = found.release
    if not found.here or theirs is None or theirs.backup is None or mine.backup is None:
        return
    for name, target in mine.backup.targets.items():
        there = theirs.backup.targets.get(name)
        if there is None or (target.postgres, target.files) != (there.postgres, there.files):
            continue
        raise BadInput(
            f"{name} of {mine.service} is the same in {mine.environment} and in "
            f"{theirs.environment}; nothing was changed. Give it a place of its own: "
            f"environments.{mine.environment}.backup.targets.{name}, and release it there"
        )


def last_good(other: Other, ledger: Ledger) -> Found:
    """By this ledger when it lives here, else by the newest backup of its dafnck; its artifact is
    in this home then."""
    stable = ledger.stable(other.service, other.environment)
    if stable is not None:
        return Found(ledger.release(stable), time.time(), True)
    with scratch(other.stack.home / "recovery", "other") as here:
        return _from_backup(other, here)


def _from_backup(other: Other, here: Path) -> Found:
    catalogue = other.catalogue(other.store)
    for place in catalogue.places():
        if (place.service, place.target) != (OWN, OWN_TARGET):
            continue
        for entry in catalogue.whole(place):
            manifest = entry.manifest
            if manifest is None or (other.to_time and manifest.snapshot_at > other.to_time):
                continue
            home = OwnStateRestore(here / entry.id)
            try:
                home.restore(manifest, streams_of(_own(other, place, catalogue), manifest))
                if found := home.differences(manifest):
                    raise Damaged(str(found[0]))
            except Damaged as error:
                log.warning("%s of its dafnck was passed over: %s", entry.id, error)
                continue
            ledger = home.home / LEDGER
            seen = max(manifest.finished_at, last_sign(ledger) or 0.0)
            for release in serving(ledger):
                if (release.service, release.environment) == (other.service, other.environment):
                    _have_artifact(other, home.home, release)
                    return Found(release, seen, False)
            return Found(None, seen, False)
    return Found(None, None, False)


def _own(other: Other, place: Place, catalogue: Catalogue) -> BackupSite:
    return BackupSite(
        other.stack, place, OWN_STATE, catalogue, None, other.key, (), None, Store("", None)
    )


def _have_artifact(other: Other, home: Path, release: Release) -> None:
    """With the keys that signed it: the backup that it came in was signed by one that we trust."""
    theirs, here = home / "artifacts" / release.artifact, other.stack.artifacts / release.artifact
    if here.exists() or not theirs.exists():
        return
    Attestations(home / "artifacts", Keys(home / "secrets", home / "keys")).verify(
        release.artifact, release.content or None
    )
    for pem in (home / "keys").glob("*.pem"):
        if not (other.stack.keys / pem.name).exists():
            write_atomically(other.stack.keys / pem.name, pem.read_text())
    here.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(theirs, here)
    os.utime(here / "artifact.json")  # it was not built just now, and is not unused either


def in_its_place(mine: Release, theirs: Release | None, now: float) -> Release:
    """The other one's version with our configuration; ours again when nobody knows theirs."""
    if theirs is None:
        return mine.model_copy(update={"created_at": now})
    taken = ("version", "artifact", "content", "image", "workdir")
    return mine.model_copy(
        update={name: getattr(theirs, name) for name in taken}
        | {"created_at": now, "migration": None}
    )


def make_way(site: Site, rollout_id: int) -> None:
    """No requests and no replicas while its data is replaced."""
    ledger, workloads = site.ledger, site.platform.workloads
    known = ledger.releases(site.service, site.environment)
    running = sorted(set(known) & set(workloads.running()))
    with ledger.act(rollout_id, "make way", releases=running):
        site.platform.router.set_shares({})
        for release_id in running:
            put_back.drain(site, release_id)
            workloads.stop(release_id, ledger.release(release_id).run.grace)
