"""On a real cluster (`make test-kubernetes`): it takes every manifest that ships, the permissions
suffice for what they are for and for no more, and `up` brings it all up or says why not."""

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import wait_for

from blocks.kube_api import CONFIG_MAPS, DEPLOYMENTS, SECRETS, Kind, KubeApi, connect
from blocks.prefect_api import PrefectApi
from deployments.kube_files import OVERLAYS, overlay, rendered
from deployments.kube_secrets import CLAIMS, POSTGRES, have_secrets
from deployments.kube_stack import JOBS, OURS, Place, down, grant, granted, reach, up
from policy.errors import BadInput, Refused, Unreachable

pytestmark = pytest.mark.kubernetes

NAMESPACES = Kind("v1", "namespaces", namespaced=False)
REVIEWS = Kind("authorization.k8s.io/v1", "subjectaccessreviews", namespaced=False)
IMAGE = "127.0.0.1:1/dafnck@sha256:" + "0" * 64  # nobody has it


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", os.environ["DAFNCK_TEST_KUBECONFIG"])


@pytest.fixture
def api() -> KubeApi:
    return connect()


def namespace(api: KubeApi, name: str) -> Iterator[str]:
    named = f"dafnck-test-{name}-{time.time_ns() % 10**9}"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": named}})
    yield named
    api.delete(NAMESPACES, "", named)


@pytest.fixture
def own(api: KubeApi) -> Iterator[str]:
    yield from namespace(api, "own")


@pytest.fixture
def shop(api: KubeApi) -> Iterator[str]:
    yield from namespace(api, "shop")


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_cluster_takes_every_manifest(api: KubeApi, own: str, name: str) -> None:
    for one in rendered(overlay(name), own, IMAGE):
        api.apply(one, dry_run=True)
    for kind in ("release", "gateway"):
        for one in granted(kind, own):
            api.apply(one, dry_run=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubectl_renders_the_same(name: str) -> None:
    from ruamel.yaml import YAML

    text = subprocess.run(
        ["kubectl", "kustomize", str(overlay(name))], capture_output=True, text=True, check=True
    ).stdout

    def by_name(objects: Any) -> dict[tuple[str, str], Any]:
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    theirs = by_name(YAML(typ="safe", pure=True).load_all(text))
    assert by_name(rendered(overlay(name), "dafnck")) == theirs


def may(api: KubeApi, own: str, verb: str, where: str, group: str, what: str) -> bool:
    resource, _, part = what.partition("/")
    asked = {"namespace": where, "verb": verb, "group": group, "resource": resource}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {"name": ""},
        "spec": {
            "user": f"system:serviceaccount:{own}:dafnck-release",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{own}"],
            "resourceAttributes": asked | ({"subresource": part} if part else {}),
        },
    }
    return bool(api.create(REVIEWS, "", body)["status"]["allowed"])


def test_runs_and_guard_may_what_the_role_says_there_and_nowhere_else(
    api: KubeApi, own: str, shop: str
) -> None:
    grant(Place(namespace=own), lambda _: None, release=[shop], gateway=[])
    (role,) = [one for one in granted("release", shop) if one["kind"] == "Role"]
    for rule in role["rules"]:
        (group,), (what,) = rule["apiGroups"], rule["resources"]
        for verb in ("get", "list", "create", "update", "patch", "delete"):
            assert may(api, own, verb, shop, group, what) == (verb in rule["verbs"]), (verb, what)
    for verb, group, what in (
        ("get", "", "secrets"),
        ("create", "apps", "deployments"),
        ("create", "batch", "jobs"),
    ):
        assert not may(api, own, verb, own, group, what)
        assert not may(api, own, verb, "default", group, what)
    for verb, group, what in (
        ("create", "", "pods"),
        ("create", "", "pods/exec"),
        ("create", "rbac.authorization.k8s.io", "rolebindings"),
        ("create", "", "serviceaccounts/token"),
        ("create", "batch", "jobs"),
    ):
        assert not may(api, own, verb, shop, group, what), (verb, what)


def secrets_of(api: KubeApi, namespace: str) -> dict[str, dict[str, str]]:
    return {one["metadata"]["name"]: one["data"] for one in api.list(SECRETS, namespace)}


def test_what_does_not_get_ready_is_told_and_secrets_stay(api: KubeApi, own: str) -> None:
    place, said = Place(namespace=own), list[str]()
    with pytest.raises(BadInput, match="--image"):
        up(place, said.append)
    with pytest.raises(Unreachable, match=r"not everything is ready after 8s: .*of 1 ready"):
        up(place, said.append, image=IMAGE, ready_seconds=8)
    made = secrets_of(api, own)
    assert set(made) == {"dafnck-prefect", "dafnck-database", "dafnck-signing", POSTGRES}
    words = base64.b64decode(made["dafnck-prefect"]["auth"]).decode()
    assert words.startswith("dafnck:")
    assert len(words) > 30
    assert words not in "\n".join([*said, *reach(place)])
    with pytest.raises(Unreachable):  # the image is the one that is there by now
        up(place, said.append, ready_seconds=0)
    assert secrets_of(api, own) == made
    down(place, said.append)
    assert secrets_of(api, own) == made
    assert api.list(DEPLOYMENTS, own) == []
    assert api.list(CONFIG_MAPS, own, OURS) == []


def test_passwords_that_are_gone_are_not_made_anew(api: KubeApi, own: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-postgres-0", "namespace": own},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    api.create(CLAIMS, own, claim)
    with pytest.raises(Refused, match="with the passwords of that database"):
        have_secrets(api, own, own_database=True)
    assert secrets_of(api, own) == {}


def test_the_database_of_others_is_theirs_to_name(api: KubeApi, own: str) -> None:
    place = Place(namespace=own)
    with pytest.raises(BadInput, match="create secret generic dafnck-database"):
        up(place, lambda _: None, image=IMAGE, overlay_name="external-database")
    assert api.list(DEPLOYMENTS, own) == []


def test_it_is_not_removed_under_a_run(api: KubeApi, own: str) -> None:
    pod = {
        "restartPolicy": "Never",
        "containers": [{"name": "prefect-job", "image": IMAGE}],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "run", "labels": {"prefect.io/flow-run-id": "1"}},
        "spec": {"template": {"spec": pod}},
    }
    api.create(JOBS, own, job)
    wait_for(lambda: api.get(JOBS, own, "run")["status"].get("active"), "the job is active")  # type: ignore[index]
    with pytest.raises(Refused, match="1 runs are under way"):
        down(Place(namespace=own), lambda _: None)


@pytest.mark.skipif(
    "DAFNCK_TEST_IMAGE" not in os.environ,
    reason="DAFNCK_TEST_IMAGE names no image of dafnck, or the cluster has no volumes",
)
def test_it_comes_up_and_runs_a_flow(api: KubeApi, own: str) -> None:
    """With its own PostgreSQL: needs a storage class, DNS, and the image of PostgreSQL."""
    place = Place(namespace=own)
    up(place, print, image=os.environ["DAFNCK_TEST_IMAGE"])
    auth = base64.b64decode(secrets_of(api, own)["dafnck-prefect"]["auth"]).decode()
    words = ["kubectl", "-n", own, "port-forward", "service/prefect-server", ":4200"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            port = forward.stdout.readline().split(" -> ")[0].rpartition(":")[2]
            with PrefectApi(f"http://127.0.0.1:{port}/api", auth) as prefect:
                run = prefect.start("reconcile", "kubernetes", {}, "end what died")
                ended = ("COMPLETED", "FAILED", "CRASHED")
                wait_for(lambda: prefect.state(run)["type"] in ended, "the run ends", seconds=240)
                assert prefect.state(run)["type"] == "COMPLETED", prefect.state(run)
        finally:
            forward.terminate()
    down(place, print)
