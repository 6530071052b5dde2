"""A PostgreSQL of its own, for one use: on a unix socket alone, gone afterwards, also when we die.

It does not run as root: then it is the user `postgres`, or `nobody`, whose folder it gets. Nothing
that it writes must survive, so it does not wait for the disk.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blocks.postgres import Server, pg_tool
from policy.errors import NotApplied, Unreachable

START_SECONDS = 60
SUPERUSER = "postgres"
# It is thrown away: speed is all.
CARELESS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "256MB",
    "autovacuum": "off",
    "max_locks_per_transaction": "1024",
}
ALWAYS = {"listen_addresses": "", "archive_mode": "off", "logging_collector": "off"}


@contextmanager
def throwaway(
    place: Path,
    *,
    major: int | None = None,
    data: Path | None = None,
    settings: dict[str, str] | None = None,
    start_seconds: float = START_SECONDS,
) -> Iterator[Server]:
    """`place`: a folder for its data. `major`: of this version at least. `data`: an existing data
    directory instead, which stays. Raises Unreachable when there is no PostgreSQL, NotApplied when
    it does not start, with its own words."""
    program = pg_tool("postgres", major)
    who = _who()
    sockets = Path(tempfile.mkdtemp(prefix="dafnck-pg-", dir="/tmp"))
    try:
        _give(sockets, who)
        own = data is None
        if own:
            data = place / "data"
            place.mkdir(parents=True, exist_ok=True)
            _reachable(place)
            data.mkdir(mode=0o700)
            _give(data, who)
            _run([str(program.with_name("initdb")), "-D", str(data), "-U", SUPERUSER, *INITDB], who)
        assert data
        wanted = ALWAYS | (CARELESS if own else {}) | (settings or {})
        log = sockets / "log"
        with _started(program, data, sockets, wanted, who, log) as process:
            server = Server({"host": str(sockets), "user": SUPERUSER, "dbname": "postgres"})
            _wait(server, process, log, start_seconds)
            yield server
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")


def owner() -> tuple[int, int] | None:
    """Whose its files must be: (uid, gid) when we are root, else our own, as None."""
    who = _who()
    return (who.pw_uid, who.pw_gid) if who else None


def _who() -> pwd.struct_passwd | None:
    """Whom it runs as, when we are root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unreachable("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _give(path: Path, who: pwd.struct_passwd | None) -> None:
    if who:
        os.chown(path, who.pw_uid, who.pw_gid)


def _reachable(place: Path) -> None:
    """Its user must get to it, and see nothing of what else lies on the way."""
    if os.getuid() == 0:
        place.chmod(place.stat().st_mode | 0o011)


def _argv(argv: Sequence[str | Path], who: pwd.struct_passwd | None) -> list[str]:
    """As that user, and not longer alive than we are (`setpriv` of util-linux)."""
    wrapped = ["setpriv", "--pdeathsig", "QUIT"]
    if who:
        wrapped += [f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--init-groups"]
    return [*wrapped, *map(str, argv)]


ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def _run(argv: Sequence[str | Path], who: pwd.struct_passwd | None) -> None:
    done = subprocess.run(
        _argv(argv, who), env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())[-600:]
        raise NotApplied(f"{Path(argv[0]).name} ended with {done.returncode}: {words}")


@contextmanager
def _started(
    program: Path,
    data: Path,
    sockets: Path,
    settings: dict[str, str],
    who: pwd.struct_passwd | None,
    log: Path,
) -> Iterator["subprocess.Popen[bytes]"]:
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    argv = [str(program), "-D", str(data), "-k", str(sockets), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(
            _argv(argv, who),
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)  # a fast shutdown
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(
    server: Server, process: "subprocess.Popen[bytes]", log: Path, start_seconds: float
) -> None:
    give_up = time.monotonic() + start_seconds
    while True:
        try:
            server.connect().close()
            return
        except Unreachable as error:
            said = log.read_text(errors="replace")[-1500:].strip()
            if process.poll() is not None:
                raise NotApplied(f"PostgreSQL did not start: {said}") from None
            if time.monotonic() > give_up:
                raise NotApplied(
                    f"PostgreSQL did not start within {start_seconds:g}s ({error}): {said}"
                ) from None
            time.sleep(0.1)
