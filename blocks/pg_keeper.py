"""Runs one program of PostgreSQL for as long as the process that started this one lives.

A script of the standard library alone, in a process of its own: the other end of its standard
input closes when its starter ends, however that ends (a signal at the death of a parent would come
when the thread that started it ends). Then the program is stopped, and its folders are removed.
When this process itself is killed, the kernel stops the program.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10.0


def main() -> int:
    order = json.loads(sys.argv[1])  # argv, cwd, log, uid, gid (or null), remove
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    us = os.getpid()
    program = os.fork()
    if program == 0:
        try:
            _become(order, us)
        finally:
            os._exit(127)
    ended = os.pidfd_open(program)
    ready, _, _ = select.select([0, ended], [], [])
    if ended not in ready:
        _stop(program, ended)
        _remove(order["remove"])
    _, status = os.waitpid(program, 0)
    return min(abs(os.waitstatus_to_exitcode(status)), 255)


def _become(order: dict[str, object], keeper: int) -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        uid, gid = order["uid"], order["gid"]
        if isinstance(uid, int) and isinstance(gid, int):
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        os.umask(0o077)
        # After the change of user, which clears it. SIGQUIT: PostgreSQL ends at once, and frees
        # its shared memory; its processes see the end of the first one.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
        if os.getppid() != keeper:
            return
        os.chdir(str(order["cwd"]))
        argv = order["argv"]
        assert isinstance(argv, list)
        os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start: {error}\n".encode())


def _stop(program: int, ended: int) -> None:
    for number, seconds in ((signal.SIGQUIT, STOP_SECONDS), (signal.SIGKILL, None)):
        signal.pidfd_send_signal(ended, number)
        if select.select([ended], [], [], seconds)[0]:
            return


def _remove(folders: list[str]) -> None:
    """What still writes there is about to end: it saw the first process end."""
    give_up = time.monotonic() + STOP_SECONDS
    for folder in folders:
        while os.path.lexists(folder) and time.monotonic() < give_up:
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.lexists(folder):
                time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
