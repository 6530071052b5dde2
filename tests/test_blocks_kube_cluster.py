"""Releases on a cluster, against an API server that answers as the real one does."""

from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import wait_for
from kube_fixtures import Kube
from test_policy_manifests import released

from blocks.kube_api import (
    AUTOSCALERS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    Conflict,
    Kind,
    KubeApi,
)
from blocks.kube_cluster import Change, KubeCluster
from policy.errors import NotApplied, Refused, Unreachable
from policy.kube_names import own_labels, pair_label, shared_name
from policy.release import Endpoints, Release
from policy.rollout import plan
from policy.service_file import Rollout
from tasks.workloads import replicas_of

SPACE = "shop"
SHARED = shared_name("shop", "prod")
QUOTAS, JOBS = Kind("v1", "resourcequotas"), Kind("batch/v1", "jobs")


@pytest.fixture
def api(kube: Kube) -> KubeApi:
    kube.namespace(SPACE)
    return kube.api()


@pytest.fixture
def cluster(api: KubeApi) -> KubeCluster:
    return KubeCluster(api, SPACE, "shop", "prod")


def number(n: int, run: dict[str, Any] | None = None, **more: Any) -> Release:
    quick = {"drain": 0, "grace": "1s", "start": "5s"} | (run or {})
    return released(quick, more.pop("there", None), **more).model_copy(
        update={"id": f"shop-prod-{n}", "version": f"1.{n}"}
    )


def ready(cluster: KubeCluster, release: Release, count: int) -> Endpoints:
    def look() -> Endpoints | None:
        seen = cluster.endpoints(release.id)
        return seen if len(seen.ready) == count else None

    found: Endpoints = wait_for(look, f"{count} replicas of {release.id} ready")
    return found


def trouble(
    cluster: KubeCluster, release: Release, words: str, *, fatal: bool = False
) -> Endpoints:
    """Wait until the reason holds these words, and is as fatal as that."""

    def look() -> Endpoints | None:
        seen = cluster.endpoints(release.id)
        return seen if words in seen.trouble and seen.fatal is fatal else None

    try:
        found: Endpoints = wait_for(look, words, seconds=10)
    except AssertionError:
        raise AssertionError(f"{words} is not in {cluster.endpoints(release.id)}") from None
    return found


def spec(api: KubeApi, release: Release) -> dict[str, Any]:
    found = api.get(DEPLOYMENTS, SPACE, release.id)
    assert found is not None
    return dict(found["spec"])


class Killed(Exception):
    pass


class Mortal:
    """An API whose user dies when so many writes are done."""

    def __init__(self, api: KubeApi, writes: int) -> None:
        self._api, self._left = api, writes

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._api, name)
        if name not in ("apply", "create", "patch", "delete"):
            return act

        def write(*args: Any, **kwargs: Any) -> Any:
            done = act(*args, **kwargs)
            self._left -= 1
            if self._left == 0:
                raise Killed
            return done

        return write


class TestStart:
    def test_all_that_belongs_to_it_goes_with_it(self, api: KubeApi, cluster: KubeCluster) -> None:
        release = number(7, files={"a.toml": b"a"})
        cluster.start(release, 1)
        names = {(one["kind"], one["metadata"]["name"]) for one in cluster.objects()}
        own = {"Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"}
        assert names == {("ServiceAccount", SHARED)} | {(kind, release.id) for kind in own}
        cluster.stop(release.id, 1)
        cluster.remove(release.id)
        assert [one["kind"] for one in cluster.objects()] == ["ServiceAccount"]
        assert api.get(CONFIG_MAPS, SPACE, release.id) is None

    def test_what_it_says_of_itself(self, kube: Kube, cluster: KubeCluster) -> None:
        release = number(7, {"health": {"path": "/up", "timeout": "3s"}})
        cluster.start(release, 2)
        seen = ready(cluster, release, 2)
        assert (seen.host, seen.health_path, seen.health_timeout) == (release.host, "/up", 3.0)
        assert all(url.endswith(":8000") for url in seen.urls)
        assert seen.trouble == ""
        assert seen.connections == ()

    def test_asking_costs_two_questions(self, api: KubeApi, cluster: KubeCluster) -> None:
        release = number(7)
        cluster.start(release, 2)
        ready(cluster, release, 2)
        before = api.calls
        cluster.endpoints(release.id)
        assert api.calls - before == 2

    def test_a_second_start_writes_next_to_nothing(self, kube: Kube, cluster: KubeCluster) -> None:
        release = number(7, {"secrets": {"DB": "secret://db/url"}})
        kube.make("Secret", {"metadata": {"name": "db"}, "data": {"url": "eA=="}}, SPACE)
        cluster.start(release, 1)
        ready(cluster, release, 1)
        before = len(kube.requests.writes)
        cluster.start(release, 1)
        ours = [w.plural for w in kube.requests.writes[before:] if w.manager == "dafnck"]
        assert ours == ["serviceaccounts"]

    @pytest.mark.parametrize("cut", range(1, 9))
    def test_killed_after_any_write_the_next_start_goes_on(
        self, kube: Kube, api: KubeApi, cut: int
    ) -> None:
        kube.make("Secret", {"metadata": {"name": "db"}, "data": {"url": "eA=="}}, SPACE)
        release = number(7, {"secrets": {"DB": "secret://db/url"}})
        with pytest.raises(Killed):
            KubeCluster(Mortal(api, cut), SPACE, "shop", "prod").start(release, 2)  # type: ignore[arg-type]
        cluster = KubeCluster(api, SPACE, "shop", "prod")
        assert cluster.running() == ([release.id] if cut == 8 else [])
        cluster.start(release, 2)
        ready(cluster, release, 2)
        assert len([one for one in cluster.objects() if one["metadata"]["name"] == release.id]) == 6

    def test_an_old_cluster_is_refused(self, api: KubeApi, cluster: KubeCluster) -> None:
        class Old(Mortal):
            def version(self) -> tuple[int, int]:
                return 1, 29

        old = KubeCluster(Old(api, 1), SPACE, "shop", "prod")  # type: ignore[arg-type]
        with pytest.raises(Refused, match=r"is Kubernetes 1\.29; dafnck needs 1\.30"):
            old.start(number(7), 1)
        assert cluster.objects() == []

    def test_a_failure_of_a_write_is_tried_again_by_the_caller(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        kube.faults.add(times=3, verb="patch", plural="deployments", code=409)
        kube.faults.add(times=2, verb="create", plural="deployments", code=429, retry_after=0)
        cluster.start(number(7), 2)
        ready(cluster, number(7), 2)

    def test_what_is_not_ours_is_left_alone(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.make("ServiceAccount", {"metadata": {"name": SHARED}}, SPACE)
        with pytest.raises(NotApplied, match="ServiceAccount shop-prod in shop that is not dafnck"):
            cluster.start(number(7), 1)
        assert cluster.running() == []
        assert cluster.remove_all() == []
        assert kube.find("ServiceAccount", SPACE, SHARED) is not None

    def test_who_changed_what_it_is_made_of_is_told(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = number(7)
        cluster.start(release, 1)
        change = [{"name": "app", "env": [{"name": "A", "value": "1"}]}]
        request = api._client.param_serialize(
            "PATCH",
            DEPLOYMENTS.path(SPACE, release.id),
            query_params=[("fieldManager", "kubectl-set")],
            header_params={"Content-Type": "application/strategic-merge-patch+json"},
            body={"spec": {"template": {"spec": {"containers": change}}}},
            auth_settings=["BearerToken"],
        )
        assert api._client.call_api(*request).status == 200
        cluster.start(release, 2)
        assert "kubectl-set changed what the pods of shop-prod-7 are made of" in caplog.text
        cluster.stop(release.id, 1)
        with pytest.raises(NotApplied, match="kubectl-set changed"):
            cluster.start(release, 1)

    def test_a_newer_dafnck_does_not_change_what_runs(
        self, api: KubeApi, cluster: KubeCluster
    ) -> None:
        cluster.start(number(7), 1)
        before = spec(api, number(7))["template"]
        cluster.start(number(7, {"start": "9s"}), 1)  # other probes, as another version might write
        assert spec(api, number(7))["template"] == before

    def test_it_waits_for_one_that_is_being_removed(
        self, api: KubeApi, cluster: KubeCluster
    ) -> None:
        release = number(7)
        cluster.start(release, 1)
        ready(cluster, release, 1)
        api.delete(DEPLOYMENTS, SPACE, release.id)
        cluster.start(release, 1)
        ready(cluster, release, 1)


class TestPairs:
    def leads(self, api: KubeApi, release: Release) -> None:
        labels = own_labels("shop", "prod")
        meta = {"name": SHARED, "namespace": SPACE, "labels": labels}
        there = {"selector": {"dafnck/release": release.id}, "ports": [{"port": 80}]}
        api.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": there})

    def pairs(self, api: KubeApi, release: Release) -> set[str]:
        labels = spec(api, release)["template"]["metadata"]["labels"]
        return {name for name in labels if name.startswith("pair.")}

    def test_a_release_bears_the_label_of_the_one_that_serves(
        self, api: KubeApi, cluster: KubeCluster
    ) -> None:
        six, seven = number(6), number(7)
        cluster.start(six, 1)
        self.leads(api, six)
        cluster.start(seven, 1)
        assert self.pairs(api, six) == {pair_label(six.id)[0]}
        assert self.pairs(api, seven) == {pair_label(six.id)[0], pair_label(seven.id)[0]}

    def test_one_that_comes_back_follows_another(self, api: KubeApi, cluster: KubeCluster) -> None:
        six, seven = number(6), number(7)
        cluster.start(six, 1)
        cluster.stop(six.id, 1)
        cluster.start(seven, 1)
        self.leads(api, seven)
        cluster.start(six, 1)
        assert self.pairs(api, six) == {pair_label(six.id)[0], pair_label(seven.id)[0]}
        ready(cluster, six, 1)


class TestSecrets:
    ASKS = {"secrets": {"DB": "secret://db/url", "KEY": "secret://db/key"}}  # noqa: RUF012

    def test_each_release_keeps_those_that_it_began_with(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        kube.make(
            "Secret", {"metadata": {"name": "db"}, "data": {"url": "b2xk", "key": "aw=="}}, SPACE
        )
        release = number(7, self.ASKS)
        cluster.start(release, 1)
        api.patch(SECRETS, SPACE, "db", {"data": {"url": "bmV3"}})
        cluster.stop(release.id, 1)
        cluster.start(release, 1)
        held = api.get(SECRETS, SPACE, release.id)
        assert held is not None
        assert held["data"] == {"DB": "b2xk", "KEY": "aw=="}
        cluster.start(number(8, self.ASKS), 1)
        newer = api.get(SECRETS, SPACE, "shop-prod-8")
        assert newer is not None
        assert newer["data"]["DB"] == "bmV3"

    def test_what_is_missing_is_named_before_anything_is_made(
        self, kube: Kube, cluster: KubeCluster
    ) -> None:
        with pytest.raises(Refused, match=r"run\.secrets: DB: there is no Secret db"):
            cluster.start(number(7, self.ASKS), 1)
        kube.make("Secret", {"metadata": {"name": "db"}, "data": {"url": "c2VjcmV0"}}, SPACE)
        with pytest.raises(Refused, match=r"KEY: the Secret db has no key key") as error:
            cluster.start(number(7, self.ASKS), 1)
        assert "secret" not in str(error.value).replace("run.secrets", "")
        assert "c2VjcmV0" not in str(error.value)
        assert cluster.objects() == []

    def test_no_list_and_no_plan_shows_a_value(self, kube: Kube, cluster: KubeCluster) -> None:
        value = b64encode(b"sesame").decode()
        data = {"url": value, "key": value}
        kube.make("Secret", {"metadata": {"name": "db"}, "data": data}, SPACE)
        cluster.start(number(7, self.ASKS), 1)
        shown = f"{cluster.objects()} {list(cluster.plan(number(7, self.ASKS)))}"
        assert "sesame" not in shown
        assert value not in shown


class TestTroubles:
    def test_an_image_that_is_not_there(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.behave("shop-prod-7", pull_error="registry.test/shop: not found")
        cluster.start(number(7), 1)
        seen = trouble(cluster, number(7), "the image cannot be pulled", fatal=True)
        assert "not found" in seen.trouble
        assert seen.wanted == 1

    def test_a_program_that_ends_again_and_again(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.behave("shop-prod-7", exit_code=3, log="starting\nno database")
        cluster.start(number(7), 1)
        seen = trouble(cluster, number(7), "exit code 3, started 3 times: no database", fatal=True)
        assert seen.restarts >= 2
        assert seen.last_words == "no database"
        assert seen.ready == ()

    def test_out_of_memory(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.behave("shop-prod-7", exit_code=137, exit_reason="OOMKilled")
        cluster.start(number(7), 1)
        trouble(cluster, number(7), "out of memory (run.limits.memory)", fatal=True)

    def test_one_that_is_never_ready(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.behave("shop-prod-7", health=503)
        cluster.start(number(7, {"start": "100s"}), 1)
        assert trouble(cluster, number(7), "probe failed").ready == ()

    def test_no_node_takes_it(self, cluster: KubeCluster) -> None:
        release = number(7, there={"node_selector": {"disk": "none"}})
        cluster.start(release, 1)
        trouble(cluster, release, "Unschedulable: ")

    def test_a_quota(self, kube: Kube, cluster: KubeCluster) -> None:
        quota = {"metadata": {"name": "most"}, "spec": {"hard": {"pods": "1"}}}
        kube.make("ResourceQuota", quota, SPACE)
        cluster.start(number(7), 2)
        trouble(cluster, number(7), "the cluster makes no pod: exceeded quota: most")
        assert len(ready(cluster, number(7), 1).urls) == 1

    def test_one_of_two_tells_its_trouble(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        release = number(7)
        cluster.start(release, 1)
        first = ready(cluster, release, 1).urls
        [pod] = api.list(PODS, SPACE)
        name = pod["metadata"]["name"]
        kube.behave(lambda pod: pod.name != name, exit_code=1, log="no")
        cluster.start(release, 2)
        seen = trouble(cluster, release, "exit code 1")
        assert seen.ready == first

    def test_a_node_that_is_lost(self, kube: Kube, cluster: KubeCluster) -> None:
        release = number(7)
        cluster.start(release, 1)
        ready(cluster, release, 1)
        kube.nodes.lose("node1")
        wait_for(lambda: not cluster.endpoints(release.id).ready, "the node is missed")
        assert cluster.endpoints(release.id).wanted == 1
        assert cluster.endpoints(release.id).trouble

    def test_quick_asks_for_no_events_and_no_logs(self, kube: Kube, cluster: KubeCluster) -> None:
        kube.behave("shop-prod-7", exit_code=3, log="no database")
        cluster.start(number(7), 1)
        trouble(cluster, number(7), "no database", fatal=True)
        before = kube.requests.calls.copy()
        seen = cluster.endpoints(number(7).id, quick=True)
        assert seen.fatal
        assert (kube.requests.calls - before).keys() == {("get", "deployments"), ("list", "pods")}


class TestStop:
    def test_pods_that_do_not_end_are_named(
        self, kube: Kube, cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = number(7)
        cluster.start(release, 1)
        ready(cluster, release, 1)
        kube.nodes.lose("node1")
        monkeypatch.setattr("blocks.kube_cluster.MARGIN_SECONDS", -3.0)
        with pytest.raises(NotApplied, match=r"do not end in 1s: shop-prod-7-.* on node1"):
            cluster.stop(release.id, 1)
        assert cluster.running() == []

    def test_a_release_that_nobody_knows(self, cluster: KubeCluster) -> None:
        cluster.stop("shop-prod-99", 1)
        cluster.remove("shop-prod-99")
        assert cluster.endpoints("shop-prod-99") == Endpoints("shop-prod-99", 0, (), ())

    def test_the_first_ones_stay_when_it_shrinks(self, cluster: KubeCluster) -> None:
        release = number(7)
        cluster.start(release, 2)
        first = ready(cluster, release, 2).urls
        cluster.start(release, 5)
        grown = ready(cluster, release, 5).urls
        assert grown[:2] == first
        cluster.start(release, 3)
        assert ready(cluster, release, 3).urls == grown[:3]
        cluster.start(release, 1)
        assert ready(cluster, release, 1).urls == first[:1]


class TestOfOthers:
    """What other services and environments have."""

    def test_each_sees_its_own(self, kube: Kube, api: KubeApi, cluster: KubeCluster) -> None:
        other = KubeCluster(api, SPACE, "shop", "test")
        twin = number(7).model_copy(update={"id": "shop-test-7", "environment": "test"})
        other.start(twin, 1)
        cluster.start(number(7), 1)
        assert cluster.running() == ["shop-prod-7"]
        removed = cluster.remove_all()
        assert removed[0] == "Deployment shop-prod-7"
        assert removed[-1] == f"ServiceAccount {SHARED}"
        assert cluster.objects() == []
        assert other.running() == ["shop-test-7"]
        ready(other, twin, 1)

    def test_the_api_server_is_away_for_a_moment(self, kube: Kube, cluster: KubeCluster) -> None:
        cluster.start(number(7), 1)
        kube.away_for(1.0)
        ready(cluster, number(7), 1)

    def test_and_for_longer(
        self, kube: Kube, cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("blocks.kube_api.PATIENCE_SECONDS", 0.2)
        cluster.start(number(7), 1)
        with kube.away(), pytest.raises(Unreachable, match="does not answer"):
            cluster.endpoints("shop-prod-7")
        ready(cluster, number(7), 1)


class TestExtras:
    RULES = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rules"}}  # noqa: RUF012
    MINE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "of-{release}"}}  # noqa: RUF012

    def test_they_come_and_go(self, api: KubeApi, cluster: KubeCluster) -> None:
        release = number(7, manifests=(self.RULES, self.MINE))
        cluster.start(release, 1)
        names = {one["metadata"]["name"] for one in cluster.objects() if one["kind"] == "ConfigMap"}
        assert names == {"rules", "of-shop-prod-7", "shop-prod-7"}
        assert cluster.running() == ["shop-prod-7"]
        cluster.stop(release.id, 1)
        cluster.remove(release.id)
        left = {one["metadata"]["name"] for one in cluster.objects() if one["kind"] == "ConfigMap"}
        assert left == {"rules"}
        cluster.remove_all()
        assert cluster.objects() == []

    def test_a_rollback_brings_them_back(self, api: KubeApi, cluster: KubeCluster) -> None:
        def says(text: str) -> tuple[dict[str, Any]]:
            return (self.RULES | {"data": {"says": text}},)

        old, new = number(6, manifests=says("old")), number(7, manifests=says("new"))
        cluster.start(old, 1)
        cluster.start(new, 1)
        cluster.apply_extras(old)
        found = api.get(CONFIG_MAPS, SPACE, "rules")
        assert found is not None
        assert found["data"] == {"says": "old"}

    def test_only_more_replicas_bring_theirs(self, api: KubeApi, cluster: KubeCluster) -> None:
        """A shrink in the middle of a rollout must not bring the old ones back."""

        def says(n: int) -> Release:
            there = {"annotations": {"role": str(n)}}
            return number(n, there=there, manifests=(self.RULES | {"data": {"says": str(n)}},))

        def said() -> tuple[str, str]:
            rules = api.get(CONFIG_MAPS, SPACE, "rules") or {}
            account = api.get(Kind("v1", "serviceaccounts"), SPACE, SHARED) or {}
            return rules["data"]["says"], account["metadata"]["annotations"]["role"]

        cluster.start(says(6), 3)
        cluster.start(says(7), 1)
        cluster.start(says(6), 2)
        assert cluster.endpoints("shop-prod-6").wanted == 2
        assert said() == ("7", "7")
        cluster.start(says(6), 2)
        assert said()[0] == "7"
        cluster.start(says(6), 3)
        assert said() == ("6", "6")

    def test_one_that_somebody_holds_is_told_and_left(
        self, kube: Kube, cluster: KubeCluster
    ) -> None:
        kube.make("ConfigMap", {"metadata": {"name": "rules"}, "data": {"a": "theirs"}}, SPACE)
        with pytest.raises(Conflict, match=r"data\.a"):
            cluster.start(number(7, manifests=(self.RULES | {"data": {"a": "ours"}},)), 1)
        assert cluster.running() == []

    def test_a_kind_that_the_cluster_does_not_know(self, cluster: KubeCluster) -> None:
        unknown = {"apiVersion": "x.test/v1", "kind": "Odd", "metadata": {"name": "a"}}
        with pytest.raises(NotApplied, match=r"knows no Odd of x\.test/v1"):
            cluster.start(number(7, manifests=(unknown,)), 1)
        assert cluster.running() == []
        changes = list(cluster.plan(number(8, manifests=(unknown,))))
        assert changes[-1].what == "refused"

    def test_what_fails_keeps_no_release_from_running_on(
        self, cluster: KubeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        unknown = {"apiVersion": "x.test/v1", "kind": "Odd", "metadata": {"name": "a"}}
        cluster.start(number(7), 1)
        cluster.start(number(7, manifests=(unknown,)), 2)
        assert "it runs on" in caplog.text
        ready(cluster, number(7), 2)


class TestPlan:
    def test_of_a_first_release(self, cluster: KubeCluster) -> None:
        changes = list(cluster.plan(number(7)))
        assert {change.what for change in changes} == {"create"}
        assert Change("Deployment", "shop-prod-7", "create", "") in changes
        assert cluster.objects() == []

    def test_of_one_that_runs(self, api: KubeApi, cluster: KubeCluster) -> None:
        cluster.start(number(7), 1)
        assert {change.what for change in cluster.plan(number(7))} == {"same"}
        cluster.start(number(8, there={"callers": ["infra"]}), 1)
        api.delete(NETWORK_POLICIES, SPACE, "shop-prod-7")
        told = {change.kind: change for change in cluster.plan(number(7))}
        assert told["NetworkPolicy"].what == "create"
        account = number(7, there={"annotations": {"role": "reader"}})
        change = next(c for c in cluster.plan(account) if c.kind == "ServiceAccount")
        assert change.what == "change"
        assert '+   "role": "reader"' in change.diff.replace("+    ", "+   ")

    def test_what_the_cluster_would_refuse(self, cluster: KubeCluster) -> None:
        half = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "half"}}
        changes = list(cluster.plan(number(7, manifests=(half,))))
        assert changes[-1].what == "refused"
        assert "spec" in changes[-1].diff


class TestAutoscalers:
    def scaler(self, kube: Kube, target: str = SHARED, least: int = 1, most: int = 9) -> None:
        there = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
        made = {"scaleTargetRef": there, "minReplicas": least, "maxReplicas": most}
        kube.make("HorizontalPodAutoscaler", {"metadata": {"name": "team"}, "spec": made}, SPACE)

    def seen(self, api: KubeApi) -> tuple[str, int, int]:
        found = api.get(AUTOSCALERS, SPACE, "team")
        assert found is not None
        there = found["spec"]
        return there["scaleTargetRef"]["name"], there["minReplicas"], there["maxReplicas"]

    def grown(self, api: KubeApi, release: Release, size: int) -> None:
        """As the autoscaler does."""
        api.patch(DEPLOYMENTS, SPACE, release.id, {"spec": {"replicas": size}})

    def test_it_follows_the_one_release_that_runs(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        self.scaler(kube)
        cluster.start(number(6), 2)
        assert self.seen(api) == ("shop-prod-6", 1, 9)
        cluster.start(number(7), 2)
        assert self.seen(api)[0] == "shop-prod-6"
        cluster.stop("shop-prod-6", 1)
        assert self.seen(api) == ("shop-prod-7", 1, 9)
        cluster.stop("shop-prod-7", 1)
        assert self.seen(api) == (SHARED, 1, 9)

    def test_stable_keeps_its_size_and_the_new_one_has_what_was_said(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        self.scaler(kube)
        cluster.start(number(6), 2)
        self.grown(api, number(6), 5)
        cluster.start(number(7), 1)
        assert self.seen(api) == ("shop-prod-6", 5, 9)
        assert cluster.endpoints("shop-prod-7").wanted == 1, "a partial start is taken by its word"
        assert cluster.autoscaled("shop-prod-7") == 0
        cluster.start(number(7), 2)
        assert cluster.endpoints("shop-prod-7").wanted == 2
        cluster.start(number(7), 5)
        assert cluster.endpoints("shop-prod-7").wanted == 5
        cluster.stop("shop-prod-7", 1)  # rolled back
        assert self.seen(api) == ("shop-prod-6", 1, 9)
        assert cluster.endpoints("shop-prod-6").wanted == 5

    def test_a_canary_without_a_gateway_begins_with_one(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        """It splits by the number of replicas: with the size of stable it would have half."""
        self.scaler(kube, most=20)
        old, new = number(6, {"replicas": 1}), number(7, {"replicas": 1})
        cluster.start(old, 1)
        self.grown(api, old, 10)
        site: Any = SimpleNamespace(platform=SimpleNamespace(cluster=cluster))
        sizes = replicas_of(site, new.run.replicas, old)
        assert sizes == (10, 10)
        way = Rollout.model_validate({"strategy": "canary", "steps": [10, 50, 100]})
        steps = plan(way, replicas=10, stable_replicas=10, now=0, by_replicas=True).steps
        wanted = []
        for step in steps:
            cluster.start(new, step.new)
            wanted.append(cluster.endpoints(new.id).wanted)
        assert wanted == [step.new for step in steps] == [1, 10, 10]

    def test_what_an_autoscaler_has_is_not_written_by_us(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        self.scaler(kube)
        cluster.start(number(6), 2)
        self.grown(api, number(6), 5)
        cluster.start(number(6), 5)
        assert spec(api, number(6))["replicas"] == 5
        assert self.seen(api) == ("shop-prod-6", 5, 9), "no fewer than was said"
        cluster.start(number(7), 2)
        for fewer in (4, 2, 1):  # as many as its service file says, too
            cluster.start(number(6), fewer)
            assert spec(api, number(6))["replicas"] == 5
            assert self.seen(api) == ("shop-prod-6", fewer, fewer), "the autoscaler is told so"
        self.grown(api, number(6), 1)
        cluster.start(number(6), 1)
        assert self.seen(api) == ("shop-prod-6", 1, 1)
        assert cluster.autoscaled("shop-prod-6") == 5, "what it had"
        cluster.start(number(6), 5)
        assert self.seen(api) == ("shop-prod-6", 5, 9), "and to bring it back"

    def test_one_that_comes_in_the_place_of_another_has_its_size(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        self.scaler(kube)
        cluster.start(number(7), 2)
        self.grown(api, number(7), 5)
        assert cluster.autoscaled("shop-prod-6") == 5
        cluster.stop("shop-prod-7", 1)
        assert cluster.autoscaled("shop-prod-6") == 0

    def test_never_more_than_the_team_allows(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.scaler(kube, most=1)
        cluster.start(number(6), 1)
        cluster.start(number(6), 2)
        assert self.seen(api) == ("shop-prod-6", 1, 1)
        assert "allows shop-prod-6 1 replicas, not 2" in caplog.text

    def test_one_that_keda_made_is_keda_s(
        self, kube: Kube, api: KubeApi, cluster: KubeCluster
    ) -> None:
        self.scaler(kube)
        keda = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "x"}
        keda["uid"] = kube.make("Namespace", {"metadata": {"name": SPACE}})["metadata"]["uid"]
        api.patch(AUTOSCALERS, SPACE, "team", {"metadata": {"ownerReferences": [keda]}})
        cluster.start(number(6), 1)
        assert self.seen(api)[0] == SHARED

    def test_one_of_a_release_alone_stays_with_it(self, api: KubeApi, cluster: KubeCluster) -> None:
        there = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "{release}"}
        made = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "{release}"},
            "spec": {"scaleTargetRef": there, "minReplicas": 1, "maxReplicas": 9},
        }
        cluster.start(number(6, manifests=(made,)), 1)
        self.grown(api, number(6), 4)
        cluster.start(number(7, manifests=(made,)), 2)
        assert cluster.endpoints("shop-prod-7").wanted == 2
        cluster.stop("shop-prod-6", 1)
        targets = {
            one["metadata"]["name"]: one["spec"]["scaleTargetRef"]["name"]
            for one in api.list(AUTOSCALERS, SPACE)
        }
        assert targets == {"shop-prod-6": "shop-prod-6", "shop-prod-7": "shop-prod-7"}

    def test_of_another_service(self, kube: Kube, api: KubeApi, cluster: KubeCluster) -> None:
        self.scaler(kube, "shop-prod-web")
        cluster.start(number(6), 1)
        assert self.seen(api)[0] == "shop-prod-web"

    def test_one_among_the_manifests_is_ours_to_turn(
        self, api: KubeApi, cluster: KubeCluster
    ) -> None:
        there = {"apiVersion": "apps/v1", "kind": "Deployment", "name": SHARED}
        made = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "team"},
            "spec": {"scaleTargetRef": there, "minReplicas": 1, "maxReplicas": 9},
        }
        cluster.start(number(6, manifests=(made,)), 1)
        assert self.seen(api) == ("shop-prod-6", 1, 9)
        self.grown(api, number(6), 3)
        cluster.start(number(7, manifests=(made,)), 2)
        assert self.seen(api) == ("shop-prod-6", 3, 9)
        cluster.stop("shop-prod-6", 1)
        assert self.seen(api) == ("shop-prod-7", 1, 9)
        cluster.start(number(7, manifests=(made,)), 2)
