"""Which commit of which repository a file is, in words that another machine can follow."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from policy.errors import BadInput

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SCHEMES = ("https", "http", "ssh", "git", "file")
SCP_LIKE = re.compile(r"(?:\w[\w.-]*@)?\w[\w.-]*:[^:]+")  # git@host:path


@dataclass(frozen=True)
class GitSource:
    url: str
    commit: str  # full id
    path: str  # of the file, within the repository
    doubts: tuple[str, ...] = ()  # how the file and its neighbours differ from the commit
    here: bool = False  # the work tree around the file is this commit


def git_source(file: Path, url: str | None = None, commit: str | None = None) -> GitSource:
    """What is not given is asked of the repository around the file. Raises BadInput."""
    prefix, said = _git(file.parent, "rev-parse", "--show-prefix")
    if prefix is None:
        if not url or not commit:
            raise BadInput(f"{file}: {said}; name its repository by --git and --commit")
        if file.is_absolute() and not file.is_relative_to(Path.cwd()):
            raise BadInput(f"{file}: {said}; give its path within the repository of --git")
        path = str(file.relative_to(Path.cwd()) if file.is_absolute() else file)
        return GitSource(checked_url(url, "--git"), full_commit(commit), path)
    path = prefix.strip() + file.name
    if url is None:
        named, said = _git(file.parent, "remote", "get-url", "origin")
        if named is None:
            raise BadInput(f"{file}: {said}; name the repository by --git")
        url = checked_url(named.strip(), "the remote origin")
    resolved, _ = _git(
        file.parent,
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{commit or 'HEAD'}^{{commit}}",
    )
    if resolved is None and commit is None:
        raise BadInput(f"{file}: its repository has no commit yet")
    full = full_commit(resolved.strip() if resolved else str(commit))
    head, _ = _git(file.parent, "rev-parse", "HEAD")
    doubts = []
    committed, _ = _git(file.parent, "show", f"{full}:{path}")
    if resolved and committed is None:
        doubts.append(f"{path} is not in commit {full[:12]}: it is sent as it is here")
    elif committed is not None and committed != file.read_text(encoding="utf-8"):
        doubts.append(f"{path} is not as in commit {full[:12]}: it is sent as it is here")
    here = bool(head) and str(head).strip() == full
    changed, _ = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    others = [line[3:] for line in (changed or "").splitlines() if line[3:] != path]
    if here and others:
        doubts.append(f"released is the commit, without your changes to {', '.join(others[:3])}")
    return GitSource(checked_url(url, "--git"), full, path, tuple(doubts), here)


def checked_url(url: str, whose: str) -> str:
    """Raises BadInput, without the URL, for one that holds a secret or leads nowhere."""
    if url.startswith("/"):
        return f"file://{url}"
    parts = None
    if "://" in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise BadInput(f"the URL of {whose} cannot be read") from None
    if parts is None:
        if SCP_LIKE.fullmatch(url):
            return url
        raise BadInput(f"the URL of {whose} is none that another machine can reach")
    if parts.scheme not in SCHEMES:
        raise BadInput(
            f"the URL of {whose} must begin with {'://, '.join(SCHEMES)}:// or git@host:"
        )
    user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    if colon or (user and parts.scheme != "ssh") or parts.query or parts.fragment:
        raise BadInput(
            f"the URL of {whose} holds a password or token, which would lie in Prefect's database: "
            "give the plain URL by --git, and give the worker credentials of its own (a git "
            "credential helper, or an ssh key)"
        )
    return url


def full_commit(commit: str) -> str:
    if not COMMIT.fullmatch(commit.lower()):
        raise BadInput(f"commit {commit!r}: the full id is needed, 40 hexadecimal digits")
    return commit.lower()


def _git(folder: Path, *words: str) -> tuple[str | None, str]:
    """-> (what git says, or None when it refuses; why)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError:
        return None, "there is no git here"
    why = (done.stderr.strip().splitlines() or ["git says no"])[0].removeprefix("fatal: ")
    return (done.stdout if done.returncode == 0 else None), why
