"""Sources from git at a commit: a clean checkout each, in a folder that nothing changes afterwards.

    checkouts/<key>/src/     the work tree, submodules included
                    used     touched at each use

Git's own credentials are used (a credential helper, an ssh key); none is asked for, none is stored.
"""

import json
import os
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from blocks.files import locked, scratch, write_atomically
from blocks.git_source import checked_url, full_commit
from blocks.processes import marked
from policy.errors import BadInput, NotAllowed, Refused, Unreachable
from policy.provenance import Revision

WITHIN_SECONDS = 600.0
SETTINGS = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
# Of a repository that somebody else works in, as in a hook; and our own secrets.
NOT_PASSED_ON = ("PREFECT_", "DAFNCK_", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
# What git prints for an answer; anything else may be another one in a second.
NO_SUCH_COMMIT = ("not our ref", "couldn't find remote ref", "unadvertised object", "not a tree")
NOT_ALLOWED = (
    "Authentication failed",
    "could not read Username",
    "could not read Password",
    "Permission denied",
    "Host key verification failed",
)
NO_REPOSITORY = ("does not appear to be a git repository", "not found", "does not exist")


class Checkouts:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def service_file(
        self, url: str, commit: str, service_file: str, content: str | None = None
    ) -> Path:
        """The service file in a checkout. Raises BadInput, and as `checkout` does."""
        if content is not None and not content.strip():
            raise BadInput(f"{service_file}: its content is empty; nothing was changed")
        name = Path(service_file)
        if name.is_absolute() or ".." in name.parts:
            raise BadInput(
                f"{service_file}: write its path within the repository {without_secret(url)}; "
                "nothing was changed"
            )
        root = self.checkout(url, commit, file=service_file, content=content)
        file = root / name
        if not file.resolve().is_relative_to(root.resolve()):
            raise BadInput(f"{service_file} leads out of the repository; nothing was changed")
        return file

    def checkout(
        self, url: str, commit: str, *, file: str = "", content: str | None = None
    ) -> Path:
        """-> the work tree of this commit. With `content` its file `file` says that instead.

        Raises BadInput for an URL or commit that cannot be meant, Refused when the repository has
        no such commit, NotAllowed when it does not let us in, Unreachable when it is away."""
        url, commit = checked_url(url, "git"), full_commit(commit)
        key = sha256(json.dumps([url, commit, file, content]).encode()).hexdigest()[:24]
        target = self._folder / key
        with locked(self._folder / "locks" / f"{key}.lock"):
            if not (target / "used").exists():
                shutil.rmtree(target, ignore_errors=True)
                with scratch(self._folder, "checkout") as here:
                    source = here / "whole" / "src"
                    source.mkdir(parents=True)
                    _fetch(url, commit, source)
                    if content is not None:
                        _write_inside(source, file, content)
                    os.rename(here / "whole", target)
            (target / "used").touch()
        return target / "src"

    def remove_unused(self, in_use: set[str], *, idle_seconds: float = 3600.0) -> list[str]:
        """Remove what no release was made from and nobody asked for of late. `in_use`: folders of
        service files."""
        removed = []
        for mark in sorted(self._folder.glob("*/used")):
            folder = mark.parent
            if any(Path(name).is_relative_to(folder) for name in in_use):
                continue
            if time.time() - mark.stat().st_mtime < idle_seconds:
                continue
            with locked(self._folder / "locks" / f"{folder.name}.lock"):
                if time.time() - mark.stat().st_mtime < idle_seconds:
                    continue  # somebody asked for it just now
                mark.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
        return removed


def without_secret(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc and parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.password:
        host = f"{parts.username}@{parts.netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(netloc=host))
    return url


def revision(folder: Path) -> Revision:
    """What git knows of the source in this folder."""
    told = git(folder, "log", "-1", "--format=%H%x00%at%x00%an <%ae>")
    if not told:
        return Revision()
    commit, at, author = told.decode(errors="replace").strip("\n").split("\0")
    uri = (git(folder, "remote", "get-url", "origin") or b"").decode(errors="replace").strip()
    changed = git(folder, "status", "--porcelain", "--", ".")
    return Revision(without_secret(uri), commit, float(at), author, dirty=changed != b"")


def version_of(folder: Path) -> str:
    """What git calls the source; 'unversioned' outside of a repository."""
    described = git(folder, "describe", "--always", "--dirty", "--tags")
    return described.decode().strip() if described else "unversioned"


def git(folder: Path, *words: str) -> bytes | None:
    """What git says of a folder; None outside of a repository and where there is no git."""
    if not shutil.which("git"):
        return None
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _fetch(url: str, commit: str, source: Path) -> None:
    _run(source, "init", "--quiet")
    _run(source, "remote", "add", "origin", url)
    try:
        _run(source, "fetch", "--quiet", "--depth=1", "origin", commit, of=url)
    except Refused:
        # A server need not serve what no branch or tag points at; then all of them are asked for.
        everything = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        _run(source, "fetch", "--quiet", "origin", *everything, of=url)
    _run(source, "checkout", "--quiet", "--detach", commit, of=url)
    if (source / ".gitmodules").exists():
        # Git keeps submodules from local paths unless the repository itself is one.
        is_local = urlsplit(url).scheme == "file"
        local = ("-c", "protocol.file.allow=always") if is_local else ()
        words = ("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
        _run(source, *local, *words, of=url)


def _run(source: Path, *words: str, of: str = "") -> None:
    program = shutil.which("git")
    if program is None:
        raise Unreachable("there is no git on this machine; install it: apt-get install git")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(NOT_PASSED_ON)}
    if not (git(source, "config", "core.sshCommand") or "GIT_SSH_COMMAND" in inherited):
        inherited["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes"  # nobody is there to be asked
    try:
        done = subprocess.run(
            [program, "-C", str(source), *words],
            env=marked({**inherited, **SETTINGS}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WITHIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"git {words[0]} of {of} did not end within {WITHIN_SECONDS:g}s; nothing was changed"
        ) from None
    if done.returncode == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said.sort(key=lambda line: not line.startswith(("fatal:", "error:", "remote:")))
    last = said[0] if said else f"exit code {done.returncode}"
    if any(words in done.stderr for words in NO_SUCH_COMMIT):
        raise Refused(f"{of} has no such commit ({last}); nothing was changed. Was it pushed?")
    if any(words in done.stderr for words in NOT_ALLOWED):
        raise NotAllowed(
            f"{of} does not let this worker in ({last}); nothing was changed. Give git on the "
            "worker credentials for it"
        )
    if any(words in done.stderr for words in NO_REPOSITORY):
        raise Refused(f"there is no repository {of} ({last}); nothing was changed")
    raise Unreachable(f"git cannot fetch from {of} ({last}); nothing was changed")


def _write_inside(source: Path, file: str, content: str) -> None:
    """Never through a link that the repository holds, out of it."""
    path = source / file
    if not path.parent.resolve().is_relative_to(source.resolve()) or path.is_symlink():
        raise BadInput(f"{file} leads out of the repository; nothing was changed")
    if not path.exists() or path.read_text() != content:
        write_atomically(path, content)
