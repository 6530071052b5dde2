"""The day of the disaster: on an empty machine, from a store and the key file alone.

Plain functions, no Prefect: its server is among what was lost. Killable at any point: the same
command goes on with what recovery/recovery.json in the new home says; what is done stays done.
`STEPS` is what is done, in that order, and what the runbook in docs is written from.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blocks.backup_catalogue import Catalogue, Entry, Place
from blocks.files import locked_if_free, write_atomically
from blocks.own_state import LEDGER, NOT_IN_IT, PLACES, OwnStateRestore
from blocks.own_state_home import WAITING, settle
from blocks.own_state_ledger import last_sign, serving
from blocks.recovery_key import RecoveryKey
from blocks.secret_files import SecretFiles
from blocks.signing import Keys
from blocks.stack import Ports, Stack, listens, open_stack, stack_at
from blocks.vaults import vault
from policy.backup import OWN, OWN_TARGET
from policy.errors import BadInput, DafnckError, Damaged, Refused
from policy.recovery import Recovery, Wanted, held_back, wanted
from policy.release import Release
from tasks.backup_site import OWN_STATE, BackupSite, Store, have_key, key_of
from tasks.drill import streams_of
from tasks.recover_data import Job, bring_back, missing_for
from tasks.recover_page import write_page
from tasks.recover_server import start_server
from tasks.recover_services import serve_again

Said = Callable[[str], None]


class Recovering:
    """One recovery under way, and what is known of it so far."""

    def __init__(
        self,
        store: str,
        key: Path,
        home: Path,
        *,
        bring_up: Callable[[Path, Said], Stack],
        said: Said,
        to_time: float | None = None,
        without: frozenset[str] = frozenset(),
        data: Mapping[str, Path] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`to_time`: not later than this, in seconds since the epoch. `without`: targets whose loss
        is accepted. `data`: target -> directory of a whole server."""
        self.store, self.home = store, home
        self.key = RecoveryKey(key)
        self.to_time, self.without, self.data = to_time, without, data or {}
        self.bring_up, self.said, self.clock = bring_up, said, clock
        self.place = home / "recovery"
        self.state = self.place / "state"  # of the home, until it is one
        self.told = Recovery(store=store, host=platform.node(), began_at=clock(), to_time=to_time)

    @property
    def catalogue(self) -> Catalogue:
        return self.catalogue_of(self.store)

    def catalogue_of(self, store: str) -> Catalogue:
        """Whose signatures count is said by the key file."""
        trusted = self.place / "keys"
        for key_id, pem in self.key.trusted().items():
            write_atomically(trusted / f"{key_id}.pem", pem)
        return Catalogue(vault(store), Keys(self.place / "secrets", trusted))

    def site(self, place: Place) -> BackupSite:
        """Of dafnck's own state."""
        stack = stack_at(self.home, Ports())
        return BackupSite(
            stack,
            place,
            OWN_STATE,
            self.catalogue,
            None,
            self.key,
            (),
            None,
            Store(self.store, None),
        )

    def job(self, one: Wanted) -> Job:
        stores = dict.fromkeys([self.store, *one.stores])
        return Job(
            stack_at(self.home, Ports()),
            self.key,
            [self.catalogue_of(store) for store in stores],
            one,
            self.to_time,
            data=self.data.get(one.key),
        )

    @property
    def ledger_file(self) -> Path:
        """As it was restored: a copy, since the one of the home goes on, or into a server."""
        return self.place / LEDGER

    def now_known(self, **what: Any) -> None:
        """Written down before anything else is done."""
        self.told = self.told.model_copy(update=what)
        write_atomically(self.place / "recovery.json", self.told.model_dump_json(indent=1), 0o600)

    def go_on(self) -> None:
        """With what an earlier attempt did. Raises BadInput for one of something else."""
        try:
            before = Recovery.model_validate_json((self.place / "recovery.json").read_text())
        except FileNotFoundError:
            self.now_known()
            return
        except ValidationError as error:
            raise BadInput(
                f"{self.place}/recovery.json cannot be read ({error.error_count()} errors); "
                "nothing was changed. Name an empty home"
            ) from None
        if (before.store, before.to_time) != (self.store, self.to_time):
            raise BadInput(
                f"in {self.home} a recovery from {before.store} is under way; nothing was changed. "
                "Go on with that, by the same command, or name another home"
            )
        self.told = before
        self.now_known(attempts=before.attempts + 1)

    def sign_of_life(self, at: float | None) -> None:
        """The newest one is when the machine was lost, as far as anybody knows."""
        if at is not None and at > (self.told.lost_at or 0.0):
            self.now_known(lost_at=at)

    def note(self, words: str) -> None:
        if words not in self.told.notes:
            self.now_known(notes=(*self.told.notes, words))


# -- the steps: their first paragraphs are the runbook's words --------------------------------


def find(job: Recovering) -> None:
    """Open the store and look which backups of dafnck's own state are in it: whole, signed by a
    key that the key file trusts, not proved bad by a drill."""
    job.key.recipient()
    if not _own_backups(job):
        before = " that is old enough" if job.to_time else ""
        raise Refused(
            f"{job.store} holds no backup of dafnck's own state that counts{before}; nothing was "
            "changed. Is it the right store, and does the key file trust whoever signed it?"
        )


def state(job: Recovering) -> None:
    """Restore the newest of them beside the new home, and compare it with its manifest: rows of
    every table of the ledger, every file, every artifact with its signature. One that is damaged is
    told, and the next older one taken."""
    for entry in _own_backups(job):
        manifest = entry.manifest
        assert manifest is not None
        shutil.rmtree(job.state, ignore_errors=True)
        there = OwnStateRestore(job.state)
        try:
            there.restore(manifest, streams_of(job.site(entry.place), manifest))
        except Damaged as error:
            job.note(f"{entry.id} of dafnck's own state was passed over: {error}")
            continue
        if differences := there.differences(manifest):
            job.note(f"{entry.id} of dafnck's own state was passed over: {differences[0]}")
            continue
        shutil.copyfile(job.state / LEDGER, job.ledger_file)
        job.now_known(own_backup=entry.id, own_until=manifest.snapshot_at)
        job.sign_of_life(manifest.finished_at)
        job.sign_of_life(last_sign(job.ledger_file))
        if lacks := manifest.facts.detail.get(NOT_IN_IT):
            job.note(f"not in the backup: {lacks}")
        return
    raise Refused(
        f"no backup of dafnck's own state in {job.store} is whole; nothing was changed. "
        + "; ".join(job.told.notes)
    )


def ask(job: Recovering) -> None:
    """Look whether everything is there that the services need: the variables and files that say
    where their databases are, servers that let us in, PostgreSQL's programs, directories for whole
    servers, the interpreters of their environments. What is missing is told all at once; nothing
    was changed by then."""
    if unknown := {*job.without, *job.data} - {one.key for one in _wanted(job)}:
        raise BadInput(f"{', '.join(sorted(unknown))}: nothing of that name is backed up")
    missing = [
        words
        for one in _wanted(job)
        if one.key not in job.without
        for words in missing_for(one, job.data.get(one.key), _secrets(job))
    ]
    missing += list(_interpreters(job))
    if missing:
        raise BadInput(
            "not everything is there that the services need; nothing was changed yet. Then run "
            "the same command again:\n" + "\n".join(f"  {words}" for words in missing)
        )


def home(job: Recovering) -> None:
    """Make what was restored the home of this machine. Leases of the lost one are removed, and
    runs of Prefect that waited there: nothing goes on by itself. A new signing key is made; what
    the lost one signed still counts."""
    for name in PLACES:  # the last one makes it a home
        if (job.state / name).exists():
            (job.state / name).rename(job.home / name)
    stack = open_stack(job.home)
    for words in settle(job.home, stack.ledger_url):
        job.note(words)
    keys = Keys(stack.secrets, stack.keys)
    if not keys.there():
        keys.make()
    if not key_of(stack).there():
        write_atomically(key_of(stack).file, job.key.file.read_text(), 0o600)
    for key_id, pem in job.key.trusted().items():  # also whoever signed since that backup
        write_atomically(stack.keys / f"{key_id}.pem", pem)
    have_key(stack)  # it trusts the new signing key from now on
    SecretFiles(stack).reseal()  # to the keys of this machine
    job.note("the signing key is new: dafnck backup key --copy-to FILE, and keep FILE elsewhere")


def data(job: Recovering) -> None:
    """Restore what each service backs up, databases first, then buckets, then files; each from its
    newest backup that counts, and compared with its manifest. What cannot be restored is told at
    the end, and then no service is started: `--without` accepts a loss."""
    for one in _wanted(job):
        before = next((came for came in job.told.came if came.key == one.key), None)
        if (before is not None and before.good) or one.key in job.without:
            continue
        job.said(f"{one.key} ({one.kind})")
        came = bring_back(job.job(one))
        job.told = job.told.has(came)
        job.now_known()
        job.sign_of_life(came.until)
    if failed := held_back(job.told, job.without):
        words = "\n".join(f"  {one.key}: {one.trouble}" for one in failed)
        names = " ".join(f"--without {one.key}" for one in failed)
        raise Refused(
            f"not all data is there, so no service was started:\n{words}\nMend it and run the same "
            f"command again; or accept the loss: {names}"
        )

    for one in _wanted(job):
        if one.target.is_physical and one.key not in job.without:
            if words := start_server(one, job.data.get(one.key), _secrets(job)):
                job.note(words)


def serve(job: Recovering) -> None:
    """Start the stack and every release that was the stable one, with the configuration that it
    had; where a rollout stood frozen, the requests are shared out as they were."""
    try:
        job.bring_up(job.home, job.said)
    except DafnckError as error:
        if not _is_up(job):
            raise
        job.note(f"while all was started: {error}")  # of one service; `check` tells which


def check(job: Recovering) -> None:
    """Ask every service: are its replicas ready, does the router send it all requests, and do its
    smoke tests pass?"""
    job.now_known(served=tuple(serve_again(open_stack(job.home))))


def report(job: Recovering) -> None:
    """Write down what came back, what was lost (RPO) and how long it took (RTO), as a page in
    reports/."""
    job.now_known(finished_at=job.clock())
    path = write_page(job.told, open_stack(job.home).reports)
    job.said(str(path))


@dataclass(frozen=True)
class Step:
    do: Callable[[Recovering], None]
    title: str
    by_hand: tuple[str, ...] = ()  # commands that do the same, for a day on which this one does not

    @property
    def name(self) -> str:
        return self.do.__name__

    @property
    def words(self) -> str:
        return " ".join((self.do.__doc__ or "").split())


STEPS: tuple[Step, ...] = (
    Step(
        find,
        "Find the newest backup of dafnck's own state",
        (
            "aws s3 ls --recursive s3://BUCKET/PREFIX/backups/dafnck/",
            "ls -R FOLDER/backups/dafnck/",
        ),
    ),
    Step(
        state,
        "Restore dafnck's own state",
        ("age --decrypt -i KEY state.zst.age | zstd -d | tar --extract --directory HOME",),
    ),
    Step(ask, "Ask for what is missing", ('psql "$VARIABLE" --command "SELECT 1"',)),
    Step(
        home,
        "Make it the home",
        (
            'sqlite3 HOME/ledger.db "DELETE FROM leases"',
            f'sqlite3 HOME/prefect/prefect.db "{WAITING}"',
            "DAFNCK_HOME=HOME dafnck keygen",
        ),
    ),
    Step(
        data,
        "Restore the data",
        (
            "age --decrypt -i KEY dump.zst.age | zstd -d | pg_restore --exit-on-error --dbname URL",
            "age --decrypt -i KEY files.zst.age | zstd -d | tar --extract --directory /",
        ),
    ),
    Step(serve, "Release the last good versions", ("DAFNCK_HOME=HOME dafnck up",)),
    Step(check, "Check what serves", ("dafnck status", "dafnck verify RELEASE")),
    Step(report, "Say what was lost"),
)


def recover(job: Recovering, steps: Sequence[Step] = STEPS) -> Recovery:
    """All of it, or what an earlier attempt left. Raises Refused for a home in use, BadInput for
    what a person must say first."""
    if not (job.place / "recovery.json").exists():
        if used := [name for name in PLACES if (job.home / name).exists()]:
            raise Refused(
                f"{job.home} is in use: {used[0]} lies in it. Nothing was changed. Name an empty "
                "home: --home"
            )
    job.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked_if_free(job.place / "lock") as free:
        if not free:
            raise Refused(f"another process recovers to {job.home} right now; nothing was changed")
        job.go_on()
        for step in steps:
            if step.name not in job.told.done:
                job.said(step.title)
                with _timed(job, step):
                    step.do(job)
    return job.told


@contextmanager
def _timed(job: Recovering, step: Step) -> Iterator[None]:
    began = job.clock()
    yield
    job.now_known(done=job.told.done | {step.name: job.clock() - began})


# -- what the steps look at -------------------------------------------------------------------


def _own_backups(job: Recovering) -> list[Entry]:
    """Newest first."""
    catalogue = job.catalogue
    places = [one for one in catalogue.places() if (one.service, one.target) == (OWN, OWN_TARGET)]
    found = [entry for place in places for entry in catalogue.whole(place)]
    return [
        one
        for one in sorted(found, key=lambda entry: entry.id, reverse=True)
        if one.manifest and (job.to_time is None or one.manifest.snapshot_at <= job.to_time)
    ]


def _serving(job: Recovering) -> list[Release]:
    return serving(job.ledger_file)


def _secrets(job: Recovering) -> SecretFiles:
    """As they came back, in the home or on their way there."""
    home = Stack(home=_restored(job, "values"), ports=Ports(), ledger_url="")
    return SecretFiles(home, also=(job.key,))


def _restored(job: Recovering, name: str) -> Path:
    """Where this part of the home lies: in it, or still on its way there."""
    return job.home if (job.home / name).exists() else job.state


def _wanted(job: Recovering) -> list[Wanted]:
    return wanted(_serving(job))


def _interpreters(job: Recovering) -> Iterator[str]:
    """An environment of Python is a link to the interpreter that it was made with."""
    for release in _serving(job):
        there = _restored(job, "artifacts") / "artifacts" / release.artifact
        link = there / "venv" / "bin" / "python"
        if link.is_symlink() and not link.exists():
            yield (
                f"{release.id} runs with {os.readlink(link)}, which is not here: install that "
                "Python there, or link yours to it"
            )


def _is_up(job: Recovering) -> bool:
    stack = open_stack(job.home)
    return listens(stack.ports.web) and listens(stack.ports.prefect)
