"""Notifications by apprise (Slack, Teams, mail, webhooks, …), sent by a child process.

A target's URL holds a secret. It goes to the child by its standard input, and nothing that the
child or apprise says reaches a log before every piece of the URL is taken out of it. A service that
hangs is given up with its child; apprise is loaded there and nowhere else.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from urllib.parse import unquote

from blocks.files import write_atomically
from blocks.stack import Stack
from policy.errors import BadInput, NotApplied, Refused
from policy.notice import Event, Notice, target

SECONDS = 10  # for one notification
START_SECONDS = 30  # for the child to load apprise, on a machine with much else to do
KINDS = {
    Event.FAIL: "failure",
    Event.CRASH: "failure",
    Event.BACKUP: "failure",
    Event.SECRET: "failure",
    Event.PAUSE: "warning",
    Event.ROLLBACK: "warning",
    Event.PROMOTE: "success",
}


class Notifications:
    """The targets of one home folder and its log of notifications."""

    def __init__(self, stack: Stack) -> None:
        self._folder = stack.home / "secrets" / "notify"
        self._log = stack.logs / "notifications.log"

    def send(self, to: str, notices: Sequence[Notice]) -> None:
        messages = [
            {"title": one.title, "body": one.body, "notify_type": KINDS.get(one.event, "info")}
            for one in notices
        ]
        _child(to, self._url(to), messages)

    def record(self, notice: Notice) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._log.open("a") as log:
            log.write(f"{at} {notice.line}\n")

    def add(self, name: str, url: str) -> None:
        """Store the URL of a target, readable by its owner alone. Raises BadInput for a name that
        is none and for a URL that apprise does not know."""
        if name.startswith("$"):
            raise BadInput(f"{name} is read from the environment; there is nothing to store")
        self._named(name)
        try:
            _child(name, url, [])
        except NotApplied:
            raise BadInput(
                f"what was given for {name} is no URL that apprise knows, such as "
                "slack://… or mailtos://…; nothing was stored"
            ) from None
        write_atomically(self._folder / name, url + "\n", 0o600)
        self._folder.chmod(0o700)

    def remove(self, name: str) -> None:
        try:
            (self._folder / self._named(name)).unlink()
        except FileNotFoundError:
            raise BadInput(self._unknown(name)) from None

    def names(self) -> list[str]:
        found = self._folder.iterdir() if self._folder.is_dir() else []
        return sorted(path.name for path in found if not path.name.startswith("."))

    def _named(self, name: str) -> str:
        try:
            return target(name)
        except ValueError as error:
            raise BadInput(f"this {error}") from None

    def _url(self, name: str) -> str:
        if name.startswith("$"):
            if url := os.environ.get(name[1:], "").strip():
                return url
            raise Refused(f"{name} is not set in the environment of this process")
        file = self._folder / self._named(name)
        try:
            if file.stat().st_mode & 0o077:
                raise Refused(f"others may read {file}; not used. Mend it: chmod 600 {file}")
            return file.read_text().strip()
        except FileNotFoundError:
            raise Refused(self._unknown(name)) from None

    def _unknown(self, name: str) -> str:
        known = ", ".join(self.names()) or "none"
        return f"there is no target {name}; add it: dafnck notify add {name}. There is: {known}"


def _child(name: str, url: str, messages: list[dict[str, str]]) -> None:
    """Have them sent; none: only look whether the URL is one. Raises NotApplied."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "blocks.notifications"],
            input=json.dumps({"url": url, "messages": messages}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=START_SECONDS + SECONDS * len(messages) + 2,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"no answer in {SECONDS}s"
    else:
        if done.returncode == 0:
            return
        why = f"no answer in {SECONDS}s" if done.returncode < 0 else done.stdout.strip()
    # Not chained: the child's input, which holds the URL, is in the exception.
    raise NotApplied(f"{name} did not take it: {why}") from None


def without_secrets(words: str, url: str) -> str:
    """The words without any piece of the URL, as it is written or as it is meant."""
    pieces = {p for text in (url, unquote(url)) for p in re.split(r"[/:@?&=#,+]+", text)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 2:
            words = re.sub(re.escape(piece), "***", words, flags=re.IGNORECASE)
    return words


def _main() -> None:
    """The child: what `_child` gave it on its input. It ends in time also when its parent died."""
    signal.alarm(START_SECONDS)
    order = json.load(sys.stdin)
    import logging

    import apprise

    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger = logging.getLogger("apprise")
    logger.addHandler(Ear(logging.WARNING))
    logger.propagate = False
    asset = apprise.AppriseAsset(app_id="dafnck", app_desc="dafnck", async_mode=False)
    service = apprise.Apprise(asset=asset)
    good = bool(service.add(order["url"]))
    for message in order["messages"] if good else []:
        signal.alarm(SECONDS)
        good = bool(service.notify(**message)) and good
    if not good:
        why = " ".join(" ".join(heard).split()) or "apprise says no reason"
        print(without_secrets(why, order["url"])[:300])
    sys.exit(not good)


if __name__ == "__main__":
    _main()
