"""From a commit to the replicas that run, and nothing that was changed on the way."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PROBE, Dafnck, Released, wait_for
from test_blocks_attestations import another_statement, one_byte
from test_blocks_checkouts import commit, git
from test_live_release import Service, who_answers

from blocks.ledger import Ledger
from blocks.signing import Keys
from blocks.stack import Stack
from policy.release import Phase
from tasks.site import store_of

pytestmark = pytest.mark.live


def links(said: "subprocess.CompletedProcess[str]") -> dict[str, bool | None]:
    return {link["name"]: link["ok"] for link in json.loads(said.stdout)}


def test_a_commit_is_released_and_its_chain_is_shown(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    tmp_path: Path,
) -> None:
    file = service("chain", smoke=[{"get": "/", "body": "chain-local-1"}])
    git(tmp_path, "init", "-q")
    at = commit(tmp_path)
    url = f"file://{tmp_path}"
    (tmp_path / "probe.py").write_text("broken, and not committed")
    done = dafnck("release", file.name, "--git", url, "--commit", at, "--json")
    first = json.loads(done.stdout)
    assert (first["phase"], first["version"]) == ("promoted", at[:12])
    assert who_answers(stack, "chain") == "chain-local-1"

    told = dafnck("verify", "chain-local-1", "--json")
    assert links(told) == {
        "commit": True,
        "build": True,
        "signature": True,
        "artifact": True,
        "SBOM": None,  # there is no Trivy on the worker's path
        "object store": True,
        "files": True,
        "replica-0": True,
        "replica-1": True,
    }
    shown = dafnck("verify", "chain-local-1").stdout
    assert f"{at} of git+{url}, written 2026-01-02" in shown
    artifact = ledger.release("chain-local-1").artifact
    archive = f"artifact-{ledger.release('chain-local-1').content[:16]}.tar.gz"
    assert set(store_of(stack).sizes(f"artifacts/{artifact}/")) == {
        f"artifacts/{artifact}/{name}" for name in (archive, "files.txt", "provenance.dsse.json")
    }

    one_byte(stack.releases / "chain-local-1" / "app" / "probe.py")
    assert links(dafnck("verify", "chain-local-1", "--json", check=1))["files"] is False
    key = f"artifacts/{artifact}/provenance.dsse.json"
    store_of(stack).put(key, b"{}")
    assert links(dafnck("verify", "chain-local-1", "--json", check=1))["object store"] is False


Change = Callable[[Stack, Path], object]
CHANGES: dict[str, Change] = {
    "artifact": lambda stack, artifact: one_byte(artifact / "app" / "probe.py"),
    "list": lambda stack, artifact: one_byte(artifact / "attestations" / "files.txt"),
    "provenance": lambda stack, artifact: another_statement(
        artifact / "attestations" / "provenance.dsse.json"
    ),
    "key": lambda stack, artifact: resign(stack, artifact),
}


def resign(stack: Stack, artifact: Path) -> None:
    """The same words, signed by a key that nobody trusts."""
    import base64

    path = artifact / "attestations" / "provenance.dsse.json"
    stranger = Keys(artifact / "secrets", artifact / "keys")
    stranger.make()
    payload = base64.b64decode(json.loads(path.read_text())["payload"])
    path.write_text(stranger.sign(payload))


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_started(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    dafnck: Dafnck,
    service: Service,
    tmp_path: Path,
    change: str,
) -> None:
    name = f"tampered-{change}"
    file = service(name)
    assert released(file, 1).phase is Phase.PROMOTED
    (tmp_path / "more.txt").write_text(change)
    second = released(file, 2)
    assert second.phase is Phase.PROMOTED
    first = ledger.release(f"{name}-local-1")
    artifact = stack.artifacts / first.artifact
    CHANGES[change](stack, artifact)

    (tmp_path / "more.txt").unlink()  # the same artifact as the first
    third = released(file, 3)
    assert third.phase is Phase.FAILED
    assert first.artifact in third.reason
    assert "start" not in {intent.act for intent in ledger.intents(third.id)}
    assert who_answers(stack, name) == f"{name}-local-2"

    refused = dafnck("rollback", name, "--to", first.id, "--here", check=1).stderr
    assert "nothing was started" in refused
    assert who_answers(stack, name) == f"{name}-local-2"

    dafnck("discard", first.artifact)
    fourth = released(file, 4)
    assert fourth.phase is Phase.PROMOTED, fourth.reason


def test_an_artifact_that_serves_is_not_discarded(
    ledger: Ledger, released: Released, dafnck: Dafnck, service: Service, stack: Stack
) -> None:
    assert released(service("keeps"), 1).phase is Phase.PROMOTED
    artifact = ledger.release("keeps-local-1").artifact
    assert "runs from this artifact" in dafnck("discard", artifact, check=1).stderr
    assert (stack.artifacts / artifact / "artifact.json").exists()
    assert "there is no artifact" in dafnck("discard", "nothing", check=1).stderr


def test_a_store_that_is_away_stops_no_release(
    stack: Stack, released: Released, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAFNCK_OBJECT_STORE_URL", "s3://x?endpoint=http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert released(service("storeless"), 1).phase is Phase.PROMOTED


@pytest.mark.parametrize(
    ("name", "smoke", "words"),
    [
        (
            "missing",
            [{"get": "/healthz", "status": 201}],
            "smoke tests before it has traffic: GET /healthz: answers 200",
        ),
        ("command", [{"command": "false"}], "before it has traffic: command false: ended with 1"),
        (
            "everybody",
            # By its header alone it answers; as everybody it does not.
            [{"command": "sh -c 'test -n \"$ROUTER_HEADER\"'"}],
            "smoke tests with all traffic",
        ),
    ],
)
def test_what_fails_a_smoke_test_does_not_stay(
    stack: Stack,
    ledger: Ledger,
    released: Released,
    service: Service,
    name: str,
    smoke: list[dict[str, object]],
    words: str,
) -> None:
    name = f"smoke-{name}"
    assert released(service(name, smoke=[{"get": "/"}]), 1).phase is Phase.PROMOTED
    ended = released(service(name, smoke=smoke), 2)
    assert ended.phase in (Phase.FAILED, Phase.ROLLED_BACK)
    assert words in ended.reason
    assert who_answers(stack, name) == f"{name}-local-1"


def test_keys_are_made_and_old_signatures_stay_good(
    stack: Stack, released: Released, dafnck: Dafnck, service: Service
) -> None:
    assert released(service("keyed"), 1).phase is Phase.PROMOTED
    before = {path.name for path in stack.keys.iterdir()}
    said = dafnck("keygen").stdout
    assert len({path.name for path in stack.keys.iterdir()} - before) == 1
    assert "PRIVATE" not in said
    assert links(dafnck("verify", "keyed-local-1", "--json"))["signature"] is True
    assert os.stat(stack.secrets / "signing-key.pem").st_mode & 0o777 == 0o600
    assert PROBE.exists()


def test_what_was_changed_while_it_did_not_run_is_not_started(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    """The folder of a release is laid out anew from the artifact that was verified."""
    file = service("stale-folder", run={"env": {"A": "1"}})
    assert released(file, 1).phase is Phase.PROMOTED
    assert released(service("stale-folder", run={"env": {"A": "2"}}), 2).phase is Phase.PROMOTED
    laid_out = stack.releases / "stale-folder-local-1" / "app" / "probe.py"
    whole = laid_out.read_bytes()
    one_byte(laid_out)
    dafnck("rollback", "stale-folder", "--here")
    assert laid_out.read_bytes() == whole
    assert who_answers(stack, "stale-folder") == "stale-folder-local-1"


def test_nothing_is_built_without_a_key_that_counts(
    stack: Stack, ledger: Ledger, released: Released, service: Service, tmp_path: Path
) -> None:
    key = stack.secrets / "signing-key.pem"
    whole = key.read_bytes()
    try:
        Keys(stack.secrets, tmp_path / "elsewhere").make()
        ended = released(service("keyless"), 1)
    finally:
        key.write_bytes(whole)
    assert ended.phase is Phase.FAILED
    assert "is not among the trusted" in ended.reason
    assert "nothing was built" in ended.reason


def test_only_artifacts_are_discarded(dafnck: Dafnck, stack: Stack) -> None:
    for name in ("..", ".", "locks", "../releases"):
        assert "there is no artifact" in dafnck("discard", name, check=1).stderr
    assert (stack.home / "stack.json").exists()


def test_an_abort_does_not_wait_for_a_smoke_test(
    stack: Stack, ledger: Ledger, released: Released, dafnck: Dafnck, service: Service
) -> None:
    assert released(service("patient"), 1).phase is Phase.PROMOTED
    slow = service("patient", smoke=[{"command": "sleep 100", "within": "2m"}])
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(released, slow, 2)
        wait_for(
            lambda: any(
                act.act == "smoke"
                for rollout in ledger.unfinished("patient")
                for act in ledger.intents(rollout.id)
            ),
            "it is asked",
            40,
        )
        began = time.monotonic()
        dafnck("abort", "patient", "--reason", "enough")
        assert time.monotonic() - began < 30
        rollout = ended.result()
    assert rollout.phase is Phase.FAILED
    assert "enough" in rollout.reason
    assert who_answers(stack, "patient") == "patient-local-1"
