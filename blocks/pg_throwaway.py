"""A PostgreSQL server of our own, for as long as it is needed, that nobody else can reach.

Invariant: whatever ends us, nothing of it runs on, and its folder is removed. It listens on a unix
socket in a folder that only its user may enter, and on no address.
"""

import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from blocks import pg_keeper
from blocks.files import remove_half_written, scratch
from blocks.postgres import Server, pg_tool, tool_major
from blocks.processes import marked
from policy.errors import NotApplied, Unreachable

ROOMY = Path("/var/tmp")  # noqa: S108 - folders in it have random names, and are ours alone
USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
SOCKET_NAME_BYTES = 107 - len("/.s.PGSQL.5432.lock")
# Of any server: it is alone, sends nothing, and takes nobody's preloaded libraries, which may not
# be on this machine, nor their certificates.
ALONE = {
    "listen_addresses": "",
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "shared_preload_libraries": "",
    "primary_conninfo": "",
    "fsync": "off",
    "autovacuum": "off",
    "huge_pages": "off",
    # Containers have 64 MB in /dev/shm, which parallel builds of indexes do not fit in.
    "dynamic_shared_memory_type": "mmap",
}
# Of a new one, that is only filled and read: what it holds may be lost.
QUICK = {
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",  # tables that are made and filled in one transaction write no log
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "20",
    "max_locks_per_transaction": "8192",  # thousands of tables in one transaction
    "jit": "off",
    "lc_messages": "C",
}


@contextmanager
def throwaway(
    place: Path,
    *,
    at_least: int | None = None,
    major: int | None = None,
    data: Path | None = None,
    settings: Mapping[str, str] | None = None,
    user: str = "postgres",
    within_seconds: float = 60.0,
) -> Iterator[Server]:
    """`place`: where its folder is made; where its user could not get there (homes are 0700), in
    /var/tmp. `at_least`: of this major version or a newer one; `major`: of this one. `data`: an
    existing data directory, in a `server_folder`, whose configuration files are not used but for
    postgresql.auto.conf. `settings`: as in postgresql.conf; they win. `user`: a superuser of it.
    `within_seconds`: how long it may take until it answers.

    Raises Unreachable when PostgreSQL is not installed, NotApplied with its last words when it
    does not start."""
    postgres = pg_tool("postgres", at_least, exactly=major)
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder(place))
        sockets = folder
        if len(os.fsencode(folder)) > SOCKET_NAME_BYTES:
            sockets = stack.enter_context(server_folder(Path(tempfile.gettempdir())))
        remove = [str(folder), str(sockets)]
        given = data is not None
        if data is None:
            data = folder / "data"
            initdb = [str(postgres.parent / "initdb"), "-D", str(data), "-U", user, "--no-sync"]
            initdb += ["-A", "trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
            with _kept(initdb, folder / "initdb.log", remove) as run:
                if run.wait(within_seconds) != 0:
                    raise _not_started("initdb", folder / "initdb.log")
        else:
            own_by_server_user(data)
        hba, configuration = folder / "hba.conf", folder / "postgresql.conf"
        _write_new(hba, "local all all trust\nlocal replication all trust\n")
        _write_new(configuration, "")
        chosen: dict[str, str] = {
            **ALONE,
            **({} if given else QUICK),
            "config_file": str(configuration),
            "hba_file": str(hba),
            "ident_file": str(configuration),
            "data_directory": str(data),
            "unix_socket_directories": str(sockets),
            "port": "5432",
            **(settings or {}),
        }
        if tool_major(postgres) < 15:
            chosen.pop("archive_library", None)
        argv = [str(postgres), "-D", str(data)]
        for name, value in chosen.items():
            argv += ["-c", f"{name}={value}"]
        log = folder / "log"
        server = Server({"host": str(sockets), "port": "5432", "user": user, "dbname": "postgres"})
        with _kept(argv, log, remove) as run:
            _wait_until_it_answers(server, run, log, within_seconds)
            yield server


@contextmanager
def server_folder(place: Path) -> Iterator[Path]:
    """A folder that the user of our servers owns and can get to, gone after the body: in `place`,
    or in /var/tmp where the way to `place` is closed to it."""
    where = place if _open_to_server_user(place) else ROOMY
    remove_half_written(where)
    with scratch(where, "dafnck-pg") as folder:
        own_by_server_user(folder)
        yield folder


def own_by_server_user(path: Path) -> None:
    """Give it, and all in it, to the user of our servers, to nobody else."""
    if (who := _server_user()) is None:
        if path.is_dir():
            path.chmod(0o700)
        return
    os.chown(path, who.uid, who.gid, follow_symlinks=False)
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError:
        return
    try:
        os.fchmod(top, 0o700)
        # By handles: who owns a folder may turn a part of its path into a link meanwhile.
        for _, folders, files, where in os.fwalk(dir_fd=top):
            for name in (*folders, *files):
                os.chown(name, who.uid, who.gid, dir_fd=where, follow_symlinks=False)
    finally:
        os.close(top)


def _write_new(path: Path, text: str) -> None:
    """In a folder of another user: no link of its is followed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        if (who := _server_user()) is not None:
            os.fchown(handle, who.uid, who.gid)


@dataclass(frozen=True)
class _User:
    uid: int
    gid: int


def _server_user() -> _User | None:
    """None: the one that we are."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return _User(found.pw_uid, found.pw_gid)
    raise Unreachable(
        "PostgreSQL does not run as root, and this machine has no user postgres or nobody. "
        "Nothing was done. Run this as an ordinary user"
    )


def _open_to_server_user(place: Path) -> bool:
    """May it pass each folder on the way? By the plain rights; lists of rights (ACL) may allow
    more, and then /var/tmp does as well."""
    who = _server_user()
    if who is None:
        return True
    place.mkdir(parents=True, exist_ok=True)
    for folder in (place.resolve(), *place.resolve().parents):
        found = folder.stat()
        if found.st_uid == who.uid:
            passable = found.st_mode & 0o100
        elif found.st_gid == who.gid:
            passable = found.st_mode & 0o010
        else:
            passable = found.st_mode & 0o001
        if not passable:
            return False
    return True


@contextmanager
def _kept(argv: list[str], log: Path, remove: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs while the body does. What it says is in `log`."""
    who = _server_user()
    order = {
        "argv": argv,
        "cwd": str(log.parent),
        "log": str(log),
        "uid": who.uid if who else None,
        "gid": who.gid if who else None,
        "remove": remove,
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-S", pg_keeper.__file__, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=marked({"PATH": os.defpath, "LC_ALL": "C"}),
        cwd="/",
        start_new_session=True,
    ) as run:
        try:
            yield run
        finally:
            assert run.stdin is not None
            run.stdin.close()
            run.wait()


def _wait_until_it_answers(
    server: Server, run: "subprocess.Popen[bytes]", log: Path, within_seconds: float
) -> None:
    give_up = time.monotonic() + within_seconds
    pause = 0.02
    while True:
        try:
            server.connect().close()
            return
        except Unreachable:
            if run.poll() is not None:
                raise _not_started("PostgreSQL", log) from None
            if time.monotonic() > give_up:
                raise _not_started(
                    f"PostgreSQL did not answer within {within_seconds:g}s and", log
                ) from None
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)


def _not_started(what: str, log: Path) -> NotApplied:
    try:
        words = log.read_text(errors="replace").strip().splitlines()[-8:]
    except OSError:
        words = []
    return NotApplied(
        f"{what} did not start: {' | '.join(words) or 'it said nothing'}. What it was started for "
        "was not done, and nothing of it is left"
    )
