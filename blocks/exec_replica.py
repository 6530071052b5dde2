"""Becomes one process of ours or of a user: limits and environment from a file, then exec.

    python -I exec_replica.py SPEC.json

Run by supervisord, which then supervises the program itself. Standard library only, so that it
costs 20 ms; where there are secrets, pyrage opens them. The spec holds what must not be on a
command line and gives programs nothing of the environment of dafnck. A predecessor that outlived
its supervisor is ended first: it has the port. The pid file holds pid, start time and how often the
program was started.
"""

import json
import os
import resource
import signal
import sys
import time

AGAIN = "dafnck: started again, start"  # in the log, after the last words of the one that ended


def started(pid: int) -> str:
    """Start time of a process in clock ticks: with the pid it names a process for good."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]


def starts_so_far(pid_file: str) -> int:
    try:
        with open(pid_file) as file:
            return int(file.read().split()[2])
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def end_predecessor(pid_file: str, grace_seconds: float) -> None:
    try:
        with open(pid_file) as file:
            pid, start, _ = file.read().split()
        if int(pid) == os.getpid() or started(int(pid)) != start:
            return
        os.kill(int(pid), signal.SIGTERM)
        give_up = time.monotonic() + grace_seconds
        while started(int(pid)) == start:
            if time.monotonic() > give_up:
                os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return


def opened(file: str, keys: "list[str]") -> "dict[str, str]":
    """Variable -> value, as blocks/release_secrets.py sealed them."""
    import pyrage

    try:
        identities = []
        for key in filter(os.path.exists, keys):
            with open(key) as lines:
                secret = next(line for line in lines if line.startswith("AGE-SECRET-KEY-1"))
            identities.append(pyrage.x25519.Identity.from_str(secret.strip()))
        with open(file, "rb") as sealed:
            return dict(json.loads(pyrage.decrypt(sealed.read(), identities)))
    except (OSError, StopIteration, pyrage.IdentityError, pyrage.DecryptError) as error:
        print(f"dafnck: cannot open its secrets: {type(error).__name__}: {file}", file=sys.stderr)
        sys.exit(127)


def main(spec_file: str) -> None:
    with open(spec_file) as file:
        spec = json.load(file)
    pid_file = spec_file.removesuffix(".json") + ".pid"
    end_predecessor(pid_file, spec["grace_seconds"])
    starts = 1 + starts_so_far(pid_file)
    with open(pid_file, "w") as file:
        file.write(f"{os.getpid()} {started(os.getpid())} {starts}")
    if starts > 1:
        print(f"{AGAIN} {starts}", flush=True)
    for name, value in spec.get("limits", {}).items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))
    environment = spec["env"]
    if "secrets" in spec:
        environment |= opened(**spec["secrets"])
    os.chdir(spec["cwd"])
    os.umask(0o027)
    try:
        os.execvpe(spec["argv"][0], spec["argv"], environment)  # noqa: S606 - its purpose
    except OSError as error:
        print(f"dafnck: cannot start {spec['argv'][0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1])
