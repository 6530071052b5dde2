"""What goes wrong in a cluster, by whole releases: each ends in a stated state, with the cluster's
own reason, and what served serves."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Dafnck, Released, wait_for
from kube_fixtures import Kube
from kube_stage import KubeStage

from blocks.kube_api import DEPLOYMENTS, Kind
from blocks.kube_lease import KubeLease
from blocks.ledger import Ledger
from blocks.load import SteadyLoad
from blocks.stack import Stack
from deployments.kube_stack import granted
from policy.errors import NotAllowed
from policy.release import Phase, RolloutRecord
from tasks.reconcile import everywhere
from tasks.site import site_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

QUOTAS = Kind("v1", "resourcequotas")
CANARY: dict[str, Any] = {"strategy": "canary", "steps": ["30%", "100%"], "bake": "6s"}
FAST: dict[str, Any] = {"start": "8s"}


@pytest.fixture
def stage(kube_gateway_stage: KubeStage, released: Released) -> KubeStage:
    """A service that serves its first release."""
    first = released(kube_gateway_stage.file(), 1)
    assert first.phase is Phase.PROMOTED, first.reason
    return kube_gateway_stage


def first_serves(stage: KubeStage) -> None:
    assert {stage.answers() for _ in range(10)} == {f"{stage.name}-local-1"}


def told(rollout: RolloutRecord, phase: Phase, *words: str) -> None:
    assert rollout.phase is phase, rollout.reason
    for word in words:
        assert word in rollout.reason


def test_what_the_cluster_refuses_or_cannot_run(
    stage: KubeStage, released: Released, kube: Kube
) -> None:
    with SteadyLoad(str(stage.door), stage.host, per_second=20) as load:
        kube.behave(f"{stage.name}-local-2", pull_error="manifest unknown: no such image")
        told(
            released(stage.file(run=FAST), 2),
            Phase.FAILED,
            f"{stage.name}-local-2",
            "no such image",
        )
        sick = stage.file(run=FAST | {"env": {"HEALTH": "503"}})
        told(released(sick, 3), Phase.FAILED, "did not come up", "503")

        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
        kube.make("ResourceQuota", quota, stage.namespace)
        told(released(stage.file(run=FAST), 4), Phase.FAILED, "exceeded quota: few")
        stage.api.delete(QUOTAS, stage.namespace, "few")

        def no_new_pods(verb: str, kind: Any, body: dict[str, Any]) -> str | None:
            return "images need a signature" if kind.kind == "Pod" else None

        kube.requests.hooks.append(no_new_pods)
        told(released(stage.file(run=FAST), 5), Phase.FAILED, "images need a signature")
        kube.requests.hooks.remove(no_new_pods)
        first_serves(stage)
    assert not load.answers.failed_else


def test_an_api_server_that_comes_and_goes_costs_nothing(
    stage: KubeStage, released: Released, kube: Kube, ledger: Ledger
) -> None:
    """Away for longer than its client asks again, while a canary bakes; busy; and overtaken."""
    kube.faults.add(verb="apply", plural="httproutes", code=409, times=1)
    kube.faults.add(verb="list", plural="pods", code=429, retry_after=1, times=3)
    began: list[bool] = []

    def leave(write: Any) -> None:
        weights = kube.find("HTTPRoute", stage.namespace, f"{stage.name}-local") or {}
        if f"{stage.name}-local-2" in json.dumps(weights.get("spec", {})) and not began:
            if ledger.unfinished(stage.name)[0].phase is Phase.SHIFTING:
                began.append(True)
                # Not here: this is the cluster's own thread.
                threading.Thread(target=kube.away_for, args=(8,)).start()

    kube.requests.after_write.append(leave)
    with SteadyLoad(str(stage.door), stage.host, per_second=20) as load:
        done = released(stage.file(rollout=CANARY), 2)
    told(done, Phase.PROMOTED)
    assert began
    assert not load.answers.failed_else, "requests do not go by the API server"
    assert stage.answers() == f"{stage.name}-local-2"


def test_credentials_that_run_out_in_the_middle(
    stage: KubeStage,
    released: Released,
    kube: Kube,
    stack: Stack,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing can be written then, and that is said; renewed, it is ended."""
    token = kube.tokens.made(kube.tokens.known[kube.admin])
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig_of(token, "short")))
    shifted: list[bool] = []

    def expire(write: Any) -> None:
        if not shifted and write.plural == "httproutes":
            if any(one.phase is Phase.SHIFTING for one in ledger.unfinished(stage.name)):
                shifted.append(True)
                del kube.tokens.known[token]

    kube.requests.after_write.append(expire)
    released(stage.file(rollout=CANARY), 2)
    kube.requests.after_write.remove(expire)
    left = ledger.unfinished(stage.name)
    assert shifted
    assert [one.version for one in left] == ["2"], "nobody could put it right"
    assert (
        "does not know us any more"
        in json.dumps([str(act.outcome) for act in ledger.intents(left[0].id)])
        or "does not know us any more" in left[0].reason
    )

    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    everywhere(ledger, lambda *place: site_of(stack, ledger, *place), None, "the test")
    told(ledger.rollout(left[0].id), Phase.ROLLED_BACK)
    first_serves(stage)


def test_another_home_that_holds_the_lease_in_the_cluster(
    stage: KubeStage, released: Released, ledger: Ledger
) -> None:
    lease = KubeLease(stage.api, stage.namespace, stage.name, "local")
    token = lease.take("elsewhere", "release 7 of another machine")
    before = len(ledger.history(stage.name))
    stop = renewing(lease, token)
    try:
        released(stage.file(), 2)
    finally:
        stop()
    assert len(ledger.history(stage.name)) == before, "it was refused before it began"
    lease.free(token)
    told(released(stage.file(), 3), Phase.PROMOTED)


def renewing(lease: KubeLease, token: str) -> Callable[[], None]:
    over = threading.Event()

    def renew() -> None:
        while not over.wait(1):
            lease.renew(token)

    thread = threading.Thread(target=renew)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def test_a_release_needs_no_more_than_its_role(
    kube_gateway_stage: KubeStage,
    released: Released,
    dafnck: Dafnck,
    kube: Kube,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the first release to the last object that is removed, as the ServiceAccount of
    deployments/kubernetes; it may nothing beyond."""
    stage = kube_gateway_stage
    kube.namespace("dafnck")
    account = kube.token("dafnck", "dafnck-release")
    for kind, namespace in (("release", stage.namespace), ("gateway", "infra")):
        for one in granted(kind, namespace):
            kube.make(one["kind"], one, namespace)
    kube.requests.rbac = True
    config = kube.kubeconfig_of(account, "release")
    monkeypatch.setenv("KUBECONFIG", str(config))
    mounted = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {}}
    (stage.folder / "more").mkdir()
    (stage.folder / "more" / "x.json").write_text(json.dumps(mounted))
    kube.make(
        "Secret", {"metadata": {"name": "db"}, "data": {"url": "cG9zdGdyZXM="}}, stage.namespace
    )
    parts: dict[str, Any] = {
        "run": {"secrets": {"DB": "secret://db/url"}},
        "kubernetes": {"manifests": "more"},
        "smoke": [{"get": "/", "status": 200}],
    }
    judge = {"method": "threshold", "errors": "at most 2%", "interval": "1s", "min_requests": 1}
    told(released(stage.file(**parts), 1), Phase.PROMOTED)
    canary = CANARY | {"bake": "2s", "judge": judge}
    with SteadyLoad(str(stage.door), stage.host, per_second=30):
        told(released(stage.file(**parts, rollout=canary), 2), Phase.PROMOTED)
        # Its answers are to be judged, so nobody asks before.
        bad = parts | {"smoke": [], "run": parts["run"] | {"env": {"FAIL": "1"}}}
        told(released(stage.file(**bad, rollout=canary), 3), Phase.ROLLED_BACK)
    crashing = parts | {"run": parts["run"] | {"env": {"DIE": "1"}, "start": "10s"}}
    told(released(stage.file(**crashing), 4), Phase.FAILED, "no database")
    dafnck("rollback", stage.name, "--here")
    wait_for(lambda: stage.answers() == f"{stage.name}-local-1", "the first one answers")
    dafnck("plan", stage.file(**parts))
    dafnck("down", stage.name, "--yes")
    assert stage.left() == set()
    forbidden = kube.api(account)
    for kind in ("nodes", "namespaces"):
        with pytest.raises(NotAllowed):
            forbidden.list(Kind("v1", kind, namespaced=False), "")
    with pytest.raises(NotAllowed):
        forbidden.list(DEPLOYMENTS, "default")
