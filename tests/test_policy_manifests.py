"""What a release consists of on Kubernetes."""

import json
from base64 import b64decode
from typing import Any, ClassVar

import pytest
from fakes import a_release

from policy import manifests
from policy.kube_names import RELEASE, own_labels, pair_label
from policy.kube_pod import FORGET_SECONDS
from policy.kubernetes import Kubernetes
from policy.release import Release
from policy.service_file import Run

IMAGE = f"registry.test/shop@sha256:{'1' * 64}"


def released(
    run: dict[str, Any] | None = None, there: dict[str, Any] | None = None, **more: Any
) -> Release:
    asked = {"port": 8000, "health": "/healthz", "replicas": 2, "grace": "2.5s", "drain": "30s"}
    return a_release(
        7,
        platform="kubernetes",
        run=Run.model_validate(asked | (run or {})),
        kubernetes=Kubernetes.model_validate({"namespace": "shop"} | (there or {})),
        image=IMAGE,
        **more,
    )


def pod_of(release: Release) -> dict[str, Any]:
    spec: dict[str, Any] = manifests.deployment(release, 0, None)["spec"]["template"]["spec"]
    return spec


def container_of(release: Release) -> dict[str, Any]:
    return dict(pod_of(release)["containers"][0])


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(each for each in objects if each["kind"] == kind)


class TestDeployment:
    def test_it_is_selected_by_its_release_alone(self) -> None:
        made = manifests.deployment(released(), 0, None)
        assert made["metadata"]["name"] == "shop-prod-7"
        assert made["metadata"]["namespace"] == "shop"
        assert made["spec"]["replicas"] == 0
        assert made["spec"]["selector"] == {"matchLabels": {RELEASE: "shop-prod-7"}}
        assert made["spec"]["revisionHistoryLimit"] == 0
        assert made["metadata"]["annotations"][manifests.HOST] == "shop.prod.localhost"

    def test_its_pods_bear_the_labels_of_both_pairs(self) -> None:
        labels = manifests.deployment(released(), 0, "shop-prod-6")["spec"]["template"]["metadata"]
        assert own_labels("shop", "prod").items() <= labels["labels"].items()
        pairs = {pair_label("shop-prod-7"), pair_label("shop-prod-6")}
        assert pairs <= set(labels["labels"].items())
        alone = manifests.deployment(released(), 0, None)["spec"]["template"]["metadata"]["labels"]
        assert [name for name in alone if name.startswith("pair.")] == ["pair.dafnck/shop-prod-7"]

    def test_no_tool_of_a_namespace_that_is_restricted_refuses_it(self) -> None:
        pod, container = pod_of(released()), container_of(released())
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False

    def test_old_connections_have_their_time_before_sigterm(self) -> None:
        pod = pod_of(released())
        assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 30}}}
        assert pod["terminationGracePeriodSeconds"] == 33
        quick = pod_of(released({"drain": 0, "grace": 0}))
        seconds = quick["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert seconds == FORGET_SECONDS
        assert seconds < quick["terminationGracePeriodSeconds"]

    def test_probes_ask_what_the_service_file_asks(self) -> None:
        health = {"path": "/up", "interval": "200ms", "timeout": "300ms"}
        container = container_of(released({"health": health, "start": "7.2s"}))
        question = {"path": "/up", "port": "http", "scheme": "HTTP"}
        ready, begin = container["readinessProbe"], container["startupProbe"]
        assert ready["httpGet"] == begin["httpGet"] == question
        assert (ready["periodSeconds"], ready["timeoutSeconds"]) == (1, 1)
        assert (begin["periodSeconds"], begin["failureThreshold"]) == (1, 8)
        assert "livenessProbe" not in container

    def test_a_command_asks_instead(self) -> None:
        container = container_of(released({"health": {"command": "up --port {port} '$A b'"}}))
        assert container["readinessProbe"]["exec"] == {"command": ["up", "--port", "8000", "$$A b"]}

    def test_a_command_replaces_the_entrypoint_and_is_taken_by_its_word(self) -> None:
        container = container_of(released({"command": "serve --port {port} '$(HOME)' $$"}))
        assert container["command"] == ["serve"]
        assert container["args"] == ["--port", "8000", "$$(HOME)", "$$$$"]
        assert not {"command", "args"} & container_of(released()).keys()

    def test_what_it_gets_and_what_it_may_take(self) -> None:
        there = {"requests": {"cpu": "250m", "memory": "2G"}, "cpu_limit": 0.1}
        resources = container_of(released({"limits": {"memory": "512M"}}, there))["resources"]
        memory = resources["limits"]["memory"]
        assert resources["requests"] == {"cpu": "100m", "memory": memory}
        assert resources["limits"]["cpu"] == "100m"
        plain = container_of(released())["resources"]["limits"]
        assert plain == {"memory": str(2**30)}

    def test_it_writes_to_memory_alone(self) -> None:
        pod = pod_of(released({"writable": ["/var/cache", "/tmp"]}))  # noqa: S108
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts.keys() == {"/tmp", "/var/cache"}  # noqa: S108
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        assert volumes.keys() == set(mounts.values())
        assert {volume["medium"] for volume in volumes.values()} == {"Memory"}

    def test_files_lie_in_the_working_directory(self) -> None:
        files = {"conf/b.toml": b"b", "a.bin": b"\x00"}
        release = released(files=files, workdir="/srv")
        mounts = [m for m in container_of(release)["volumeMounts"] if m["name"] == "files"]
        assert all(mount["readOnly"] for mount in mounts)
        keys = {mount["mountPath"]: mount["subPath"] for mount in mounts}
        assert keys.keys() == {"/srv/conf/b.toml", "/srv/a.bin"}
        held = manifests.config_map(release, "u")["binaryData"]
        assert b64decode(held[keys["/srv/a.bin"]]) == b"\x00"
        assert b64decode(held[keys["/srv/conf/b.toml"]]) == b"b"

    def test_where_it_runs(self) -> None:
        pod = pod_of(released(there={"pull_secrets": ["reg"], "node_selector": {"disk": "ssd"}}))
        assert pod["imagePullSecrets"] == [{"name": "reg"}]
        assert pod["nodeSelector"] == {"disk": "ssd"}
        assert pod["serviceAccountName"] == "shop-prod"
        spread = {one["topologyKey"] for one in pod["topologySpreadConstraints"]}
        assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


class TestConfiguration:
    def test_its_environment_is_immutable_and_its_own(self) -> None:
        made = manifests.config_map(released({"env": {"URL": "http://x:{port}", "PORT": "1"}}), "u")
        assert made["immutable"] is True
        assert made["metadata"]["name"] == "shop-prod-7"
        assert made["data"] == {
            "PORT": "1",  # a team's word counts, as on the other platforms
            "DAFNCK_RELEASE": "shop-prod-7",
            "DAFNCK_VERSION": "1.7",
            "URL": "http://x:8000",
        }
        assert "binaryData" not in made

    def test_secrets_are_there_when_they_are_asked_for(self) -> None:
        names = [list(each) for each in container_of(released())["envFrom"]]
        assert names == [["configMapRef"]]
        release = released({"secrets": {"DB": "secret://db/url"}})
        assert {"secretRef": {"name": "shop-prod-7"}} in container_of(release)["envFrom"]
        made = manifests.secret(release, {"DB": "eA=="}, "u")
        assert made["immutable"] is True
        assert made["data"] == {"DB": "eA=="}

    def test_the_text_of_a_release_shows_no_secret(self) -> None:
        text = manifests.rendered(released({"secrets": {"DB": "secret://db/url"}}))
        assert "secret://db/url" in text
        assert json.loads(text.split("\n{")[0])


class TestWhatGoesWithIt:
    def test_all_belong_to_the_deployment(self) -> None:
        release = released()
        made = [*manifests.owned(release, "u-1"), manifests.config_map(release, "u-1")]
        assert {each["metadata"]["ownerReferences"][0]["uid"] for each in made} == {"u-1"}
        assert {each["metadata"]["name"] for each in made} == {"shop-prod-7"}
        assert all(each["metadata"]["labels"][RELEASE] == "shop-prod-7" for each in made)

    def test_who_may_call(self) -> None:
        anyone = one(manifests.owned(released(), "u"), "NetworkPolicy")["spec"]
        assert anyone["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8000}]}]
        some = one(manifests.owned(released(there={"callers": ["infra"]}), "u"), "NetworkPolicy")
        [selector] = some["spec"]["ingress"][0]["from"]
        assert selector["namespaceSelector"]["matchExpressions"][0]["values"] == ["infra", "shop"]

    def test_its_service_leads_to_its_port_by_name(self) -> None:
        service = one(manifests.owned(released(), "u"), "Service")["spec"]
        assert service["selector"] == {RELEASE: "shop-prod-7"}
        assert service["ports"][0] | {"protocol": "TCP"} == {
            "name": "http",
            "port": 80,
            "targetPort": "http",
            "protocol": "TCP",
        }

    def test_a_node_can_be_emptied(self) -> None:
        budget = one(manifests.owned(released(), "u"), "PodDisruptionBudget")["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"

    @pytest.mark.parametrize(
        ("version", "label"),
        [
            ("1.2.3", "1.2.3"),
            ("v1+build/7", "v1-build-7"),
            ("-é-", ""),
            ("x" * 80, "x" * 63),
            ("a" * 62 + ".b", "a" * 62),
        ],
    )
    def test_versions_as_labels(self, version: str, label: str) -> None:
        assert manifests.label_value(version) == label
        labels = manifests.deployment(released(version=version), 0, None)["metadata"]["labels"]
        assert labels.get("app.kubernetes.io/version", "") == label


class TestExtras:
    JOB: ClassVar = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "migrate-{release}"},
    }
    MAP: ClassVar = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rules", "labels": {"team": "web"}},
        "data": {"for": "of {release}"},
    }

    def test_they_are_found_again(self) -> None:
        job, rules = manifests.extras(released(manifests=(self.JOB, self.MAP)), "u")
        for each in (job, rules):
            assert each["metadata"]["namespace"] == "shop"
            assert own_labels("shop", "prod").items() <= each["metadata"]["labels"].items()
            assert each["metadata"]["labels"]["dafnck/extra"] == "shop-prod"
            assert RELEASE not in each["metadata"]["labels"]
        assert rules["metadata"]["labels"]["team"] == "web"
        assert rules["data"] == {"for": "of shop-prod-7"}

    def test_one_that_bears_the_release_goes_with_it(self) -> None:
        job, rules = manifests.extras(released(manifests=(self.JOB, self.MAP)), "u-1")
        assert job["metadata"]["name"] == "migrate-shop-prod-7"
        assert job["metadata"]["ownerReferences"][0]["uid"] == "u-1"
        assert "ownerReferences" not in rules["metadata"]

    def test_what_the_release_holds_is_not_changed(self) -> None:
        release = released(manifests=(self.JOB, self.MAP))
        manifests.extras(release, "u")
        assert release.manifests == (self.JOB, self.MAP)
        assert "namespace" not in self.MAP["metadata"]
