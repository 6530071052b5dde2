"""People hear of what happens; nothing waits for them; the URLs of their services stay secret."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_for
from fakes import FakeNotifier, a_site, serving

from blocks.notifications import Notifications, without_secrets
from blocks.ports import Notifier
from blocks.stack import Ports, Stack
from policy.errors import BadInput, NotApplied, Refused
from policy.notice import Event, Notice, Notify
from policy.release import RolloutRecord
from tasks.notify import tell, wanted_by
from tasks.outbox import Outbox
from tasks.site import Site

SECRET = "s3cr3t-T0ken/With%20Space"  # noqa: S105
NOTICE = Notice(
    Event.FAIL, "shop in prod: 2 fails", (("reason", "errors\n4%"), ("serves now", "1"))
)


class Webhook:
    """An HTTP server on loopback that keeps what it is told; `hang` makes it answer nobody."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.answer.set()
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.asked.set()
                hook.answer.wait()
                hook.bodies.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"json://127.0.0.1:{self._server.server_port}/{SECRET}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.close()


@pytest.fixture
def notifications(tmp_path: Path) -> Notifications:
    return Notifications(Stack(home=tmp_path, ports=Ports(), ledger_url="x"))


def pieces() -> list[str]:
    return ["s3cr3t-T0ken", "With%20Space", "With Space"]


def test_both_are_notifiers(notifications: Notifications) -> None:
    assert isinstance(notifications, Notifier)
    assert isinstance(FakeNotifier(), Notifier)


def test_a_stored_target_is_told_and_its_url_is_its_owners_alone(
    notifications: Notifications, webhook: Webhook, tmp_path: Path
) -> None:
    notifications.add("team-slack", webhook.url)
    file = tmp_path / "secrets" / "notify" / "team-slack"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert notifications.names() == ["team-slack"]
    notifications.send("team-slack", [NOTICE])
    assert webhook.bodies[0]["title"] == "shop in prod: 2 fails"
    assert webhook.bodies[0]["message"] == "reason: errors\n4%\nserves now: 1"
    assert webhook.bodies[0]["type"] == "failure"
    file.chmod(0o644)
    with pytest.raises(Refused, match="others may read"):
        notifications.send("team-slack", [NOTICE])
    notifications.remove("team-slack")
    with pytest.raises(Refused, match="there is no target team-slack; add it: dafnck notify add"):
        notifications.send("team-slack", [NOTICE])


def test_a_target_in_the_environment(
    notifications: Notifications, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"\$HOOK_URL is not set"):
        notifications.send("$HOOK_URL", [NOTICE])
    monkeypatch.setenv("HOOK_URL", webhook.url)
    notifications.send("$HOOK_URL", [NOTICE])
    assert len(webhook.bodies) == 1


@pytest.mark.parametrize("how", ["refuses", "is down", "hangs", "is unknown"])
def test_no_failure_tells_the_url(
    how: str,
    notifications: Notifications,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Not in the exception nor what it was raised from, not in a log, not in the outbox."""
    caplog.set_level(logging.DEBUG)
    url = webhook.url
    if how == "refuses":
        webhook.status = 500
    if how == "is down":
        url = f"json://user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}"
    if how == "hangs":
        webhook.answer.clear()
    if how == "is unknown":
        with pytest.raises(BadInput) as unknown:
            notifications.add("hook", f"nosuch://{SECRET}")
        assert not [piece for piece in pieces() if piece in str(unknown.value)]
        assert notifications.names() == []
        url = f"nosuch://{SECRET}"
    file = tmp_path / "secrets" / "notify" / "hook"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(url)
    file.chmod(0o600)
    with pytest.raises(NotApplied, match="hook did not take it") as refused:
        notifications.send("hook", [NOTICE])
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    outbox = Outbox(notifications)
    outbox.put(["hook"], NOTICE.event, lambda: NOTICE)
    outbox.close(30)
    assert "notification of fail not sent: hook did not take it" in caplog.text
    said = (
        f"{refused.value!r} {caplog.text} {(tmp_path / 'logs' / 'notifications.log').read_text()}"
    )
    assert not [piece for piece in [*pieces(), url] if piece in said]


def test_every_piece_of_a_url_is_taken_out() -> None:
    url = "slack://Abc123/Def%21456/xyz?token=tok"
    said = without_secrets(f"POST {url} failed: abc123 Def!456 DEF%21456 tok xyz", url)
    assert not [piece for piece in ("abc123", "def", "456", "tok", "xyz") if piece in said.lower()]


@pytest.mark.parametrize("name", ["../x", "A", "", "slack://token", "a b", "x" * 64, "$A", "$1"])
def test_what_is_no_name_is_refused_without_repeating_it(
    name: str, notifications: Notifications
) -> None:
    with pytest.raises(BadInput) as refused:
        notifications.add(name, "json://127.0.0.1")
    assert "slack://token" not in str(refused.value)


def a_rollout(site: Site, notify: Notify | None) -> RolloutRecord:
    serving(site)
    token = site.ledger.take_lease("shop", "prod", "test")
    return site.ledger.open_rollout(
        *("shop", "prod"),
        token=token,
        kind="release",
        version="2",
        strategy="canary",
        notify=wanted_by(notify),
        freeze_override="the shop is down",
        freeze_override_by="ada",
    )


def fake_of(site: Site) -> FakeNotifier:
    site.outbox.close()
    notifier = site.outbox._notifier
    assert isinstance(notifier, FakeNotifier)
    return notifier


def test_targets_hear_of_the_events_that_they_want(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    rollout = a_rollout(site, Notify.model_validate({"to": ["ops"], "on": ["fail", "crash"]}))
    for event in Event:
        tell(site, rollout, event, "because")
    heard = fake_of(site)
    assert [(to, notice.event) for to, notice in heard.sent] == [
        ("ops", Event.FAIL),
        ("ops", Event.CRASH),
    ]
    assert [notice.event for notice in heard.recorded] == [*Event]
    assert heard.sent[0][1].title == "shop in prod: 2 fails"
    assert dict(heard.sent[0][1].facts) == {
        "service": "shop",
        "environment": "prod",
        "version": "2",
        "release": "not built yet",
        "serves now": "1.0 (shop-prod-1)",
        "reason": "because",
        "freeze overridden": "the shop is down (ada)",
    }


def test_without_targets_the_log_alone_is_told(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    tell(site, a_rollout(site, None), Event.START, "canary")
    heard = fake_of(site)
    assert (len(heard.sent), len(heard.recorded)) == (0, 1)


def test_telling_never_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = a_site(tmp_path)
    rollout = a_rollout(site, Notify.model_validate({"to": ["ops"]}))
    fake_of(site).down = True
    tell(site, rollout, Event.START, "canary")
    site.outbox.close()
    assert "notification of start not sent: ops did not take it" in caplog.text
    site.ledger.close()
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    tell(site, rollout, Event.CRASH, "its process died")
    heard = fake_of(site)
    assert dict(heard.recorded[-1].facts)["serves now"].startswith("unknown")


def test_telling_does_not_wait_for_the_ledger(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    rollout = a_rollout(site, Notify.model_validate({"to": ["ops"]}))
    answers = threading.Event()
    ask = site.ledger.rollout

    def slow(rollout_id: int) -> RolloutRecord:
        answers.wait(30)
        return ask(rollout_id)

    site.ledger.rollout = slow  # type: ignore[method-assign]
    tell(site, rollout, Event.FAIL, "bad")
    notifier = site.outbox._notifier
    assert isinstance(notifier, FakeNotifier)
    assert notifier.sent == []
    answers.set()
    assert [notice.event for _, notice in fake_of(site).sent] == [Event.FAIL]


def test_a_target_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, notifications: Notifications, webhook: Webhook
) -> None:
    """While it hangs, all others hear everything, and whoever told goes on."""
    other = Webhook()
    try:
        notifications.add("hangs", webhook.url)
        notifications.add("works", other.url)
        webhook.answer.clear()
        outbox = Outbox(notifications)
        outbox.put(["hangs", "works"], NOTICE.event, lambda: NOTICE)
        outbox.put(["hangs", "works"], NOTICE.event, lambda: NOTICE)
        wait_for(webhook.asked.is_set, "the first is on its way")
        wait_for(lambda: len(other.bodies) == 2, "the other heard both")
        assert webhook.bodies == []
        outbox.close(0.1)
        assert webhook.bodies == [], "closing waited no longer than it said"
    finally:
        other.close()


def test_a_process_ends_while_a_target_hangs(tmp_path: Path, webhook: Webhook) -> None:
    webhook.answer.clear()
    code = (
        "from blocks.notifications import Notifications; from blocks.stack import Ports, Stack\n"
        "from policy.notice import Event, Notice; from tasks.outbox import Outbox\n"
        "import os, pathlib\n"
        "stack = Stack(home=pathlib.Path(os.environ['AT']), ports=Ports(), ledger_url='x')\n"
        "outbox = Outbox(Notifications(stack))\n"
        "outbox.put(['$HOOK'], Event.START, lambda: Notice(Event.START, 'a', ()))\n"
        "outbox.close(0.5)\n"
    )
    env = {**os.environ, "AT": str(tmp_path), "HOOK": webhook.url}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False)
    assert done.returncode == 0
    assert webhook.bodies == [], "it ended before it was answered"
