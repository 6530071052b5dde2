"""Freeze windows, contract migrations and notifications, on the real local stack."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck, Released, wait_for
from test_live_release import (
    CANARY,
    JUDGED,
    Service,
    alone,
    at_share,
    begin,
    ended,
    no_request_failed,
    under_load,
    who_answers,
)
from test_notifications import Webhook

from blocks.ledger import Ledger
from blocks.notifications import Notifications
from blocks.stack import Stack
from policy.release import Phase, RolloutRecord

pytestmark = pytest.mark.live
ALWAYS = ["Mon - Sun"]
CONTRACT: dict[str, Any] = {"migration": "contract"}


@pytest.fixture
def hook(stack: Stack) -> Iterator[Webhook]:
    hook = Webhook()
    Notifications(stack).add("hook", hook.url)
    yield hook
    hook.close()
    Notifications(stack).remove("hook")


def heard(hook: Webhook, text: str) -> dict[str, str]:
    """The facts of the first notification with this in its title."""

    def look() -> dict[str, str] | None:
        found = [body for body in hook.bodies if text in body["title"]]
        facts = [line.partition(": ") for line in found[0]["message"].splitlines()] if found else []
        return {name: value for name, _, value in facts}

    return dict(wait_for(look, f"{text!r} among {[body['title'] for body in hook.bodies]}", 30))


def frozen(ledger: Ledger, name: str) -> RolloutRecord:
    found = wait_for(lambda: ledger.frozen(name), f"{name} is frozen", 60)
    rollout: RolloutRecord = found[0]
    wait_for(lambda: ledger.lease(name, "local") is None, "nobody leads it", 30)
    return rollout


def test_a_webhook_hears_a_release_begin_fail_and_go_back(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    hook: Webhook,
) -> None:
    told = {"notify": {"to": ["hook", "$NOT_SET"]}}
    released(service("told", **told), "1")
    assert heard(hook, "told in local: 1 serves")["serves now"] == "1 (told-local-1)"
    hook.bodies.clear()
    with under_load(stack, "told"):
        bad = service("told", run={"env": {"EVERY": "2"}}, rollout=JUDGED, **told)
        dafnck("release", bad, "--version", "2", check=1)
    heard(hook, "is rolled back")
    titles = [body["title"] for body in hook.bodies]
    assert titles == [f"told in local: 2 {what}" for what in ("begins", "fails", "is rolled back")]
    for title in ("fails", "is rolled back"):
        facts = heard(hook, title)
        assert facts["reason"].startswith("errors ")
        assert facts["release"] == "told-local-2"
        assert facts["serves now"] == "1 (told-local-1)"
    log = (stack.logs / "notifications.log").read_text()
    assert "fail: told in local: 2 fails; service: told; environment: local; version: 2" in log
    secrets = ("s3cr3t-T0ken", "With%20Space")
    everywhere = [
        *(file.read_bytes() for file in stack.logs.glob("**/*.log")),
        *(file.read_bytes() for file in stack.home.glob("*.db*")),
        *(file.read_bytes() for file in stack.reports.glob("*")),
        *(file.read_bytes() for file in (stack.home / "prefect").glob("*.db*")),
    ]
    assert not [s for s in secrets for content in everywhere if s.encode() in content]


def test_a_webhook_that_hangs_delays_no_release(
    stack: Stack, ledger: Ledger, released: Released, service: Service, hook: Webhook
) -> None:
    """It has not been answered, and the release serves, is recorded, and its lease is free."""
    hook.answer.clear()
    rollout = released(service("hangs", notify={"to": ["hook"]}), "1")
    assert hook.asked.is_set()
    assert rollout.phase is Phase.PROMOTED
    assert who_answers(stack, "hangs") == "hangs-local-1"
    assert ledger.lease("hangs", "local") is None
    assert hook.bodies == []


def test_targets_by_the_command(stack: Stack, dafnck: Dafnck, hook: Webhook) -> None:
    assert dafnck("notify", "list").stdout.split() == ["hook"]
    assert "hook took it" in dafnck("notify", "test", "hook").stdout
    hook.status = 500
    refused = dafnck("notify", "test", "hook", check=3)
    assert "hook did not take it" in refused.stderr
    assert "s3cr3t" not in refused.stderr
    assert "there is no target nobody" in dafnck("notify", "test", "nobody", check=1).stderr


def test_no_release_begins_in_a_freeze_but_by_a_reason(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("holiday"), "1")
    file = service("holiday", rollout={"freeze": ALWAYS, "time_zone": "Europe/Berlin"})
    before = len(ledger.history(limit=1000))
    refused = dafnck("release", file, "--version", "2", check=1)
    assert "holiday in local is frozen: Mon - Sun (Europe/Berlin), one window" in refused.stderr
    assert '--override-freeze "reason"' in refused.stderr
    assert "needs a reason" in dafnck("release", file, "--override-freeze", " ", check=2).stderr
    assert released(file, "2").version == "1", "the flow refuses as well"
    assert len(ledger.history(limit=1000)) == before
    words = ("--version", "2", "--override-freeze", "the shop is down", "--here")
    dafnck("release", file, *words)
    rollout = ledger.history("holiday")[0]
    assert rollout.freeze_override == "the shop is down"
    assert rollout.freeze_override_by
    told = f"freeze overridden by {rollout.freeze_override_by}: the shop is down"
    assert told in dafnck("history", "holiday").stdout
    report = Path(dafnck("report", "holiday").stdout.strip()).read_text()
    assert "the shop is down" in report
    dafnck("rollback", "holiday", "--here")  # never frozen
    alone(stack, dafnck, "holiday", "holiday-local-1")


@pytest.mark.timeout(400)
def test_a_contract_migration_freezes_and_a_person_lets_it_go_on(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    hook: Webhook,
) -> None:
    told = {"notify": {"to": ["hook"], "on": ["pause"]}}
    released(service("expand"), "1")
    with under_load(stack, "expand") as load:
        bad = service("expand", run={"env": {"EVERY": "3"}}, rollout=JUDGED, **CONTRACT, **told)
        done = dafnck("release", bad, "--version", "2", check=1)
        assert "2 of expand in local is frozen, because errors" in done.stderr
        rollout = frozen(ledger, "expand")
        both = {"expand-local-1", "expand-local-2"}
        answers = {who_answers(stack, "expand") for _ in range(40)} - {"status 500"}
        assert answers == both, "traffic stays where it was"
        assert "frozen: errors" in heard(hook, "2 waits for a person")["reason"]
        status = dafnck("status").stdout
        assert "frozen: 2: errors" in status
        assert "decide: dafnck approve expand --env local" in status
        for words in (["rollback", "expand"], ["abort", "expand"], ["release", bad]):
            refused = dafnck(*words, check=1)
            assert "is frozen, because" in refused.stderr, words
        seen = json.loads(dafnck("status", "--json").stdout)
        shares = next(s for s in seen if s["service"] == "expand")["shares"]
        assert shares == {"expand-local-1": 80, "expand-local-2": 20}
        # The next step fails as well and freezes again: at 100%, which is then promoted.
        dafnck("approve", "expand", check=1)
        again = frozen(ledger, "expand")
        assert again.id == rollout.id
        assert {who_answers(stack, "expand") for _ in range(10)} <= {"expand-local-2", "status 500"}
        done = dafnck("approve", "expand", "--here")
        assert "expand-local-2 (2) serves" in done.stdout
    load.answers.failed_else.pop("500")
    no_request_failed(load)
    assert not ledger.frozen("expand")
    refused = dafnck("rollback", "expand", "--here", check=1)
    assert "expand-local-1 (1) is older than expand-local-2, whose contract" in refused.stderr
    assert "needs --reason" in dafnck("rollback", "expand", "--even-unsafe", check=2).stderr
    dafnck("rollback", "expand", "--even-unsafe", "--reason", "column is there", "--here")
    alone(stack, dafnck, "expand", "expand-local-1")
    assert ledger.history("expand")[0].unsafe_reason == "column is there"
    assert "past a contract migration by" in dafnck("history", "expand").stdout


def test_a_killed_contract_release_is_frozen_and_a_person_takes_it_back(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("killed"), "1")
    slow = service("killed", rollout=CANARY | {"bake": "60s"}, **CONTRACT)
    with under_load(stack, "killed") as load:
        run = begin(dafnck, slow, "2")
        rollout = at_share(stack, ledger, run, 20)
        refused = dafnck("abort", "killed", check=1)
        assert "its contract migration lets nobody go back; it goes on" in refused.stderr
        lease = ledger.lease("killed", "local")
        assert lease
        os.kill(int(lease.holder.partition("(pid ")[2].partition(" ")[0]), 9)
        frozen(ledger, "killed")
        answers = {who_answers(stack, "killed") for _ in range(20)}
        assert answers == {"killed-local-1", "killed-local-2"}
        back = ("abort", "killed", "--even-unsafe", "--reason", "nothing was written yet")
        assert "rolled back: aborted by" in dafnck(*back).stdout
    no_request_failed(load)
    alone(stack, dafnck, "killed", "killed-local-1")
    assert ledger.rollout(rollout.id).unsafe_reason == "nothing was written yet"
    dafnck("release", service("killed"), "--version", "3", "--here")
    alone(stack, dafnck, "killed", "killed-local-3")


def test_a_person_aborts_a_contract_release_that_is_led(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    released(service("led"), "1")
    run = begin(dafnck, service("led", rollout=CANARY | {"bake": "60s"}, **CONTRACT), "2")
    at_share(stack, ledger, run, 20)
    done = dafnck("abort", "led", "--even-unsafe", "--reason", "sure")
    assert "rolled back: aborted by" in done.stdout
    assert ended(ledger, run).phase is Phase.ROLLED_BACK
    alone(stack, dafnck, "led", "led-local-1")
