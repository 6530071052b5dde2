"""What a service file may ask for on Kubernetes, and the manifests and images that it names."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from blocks.builder import Builder
from blocks.extra_manifests import read_manifests
from policy.errors import BadInput, Refused
from policy.kubernetes import secret_key
from policy.service_file import Build
from tasks.read import configuration, manifests, read_all, read_service, with_image

DIGEST = "sha256:" + "5" * 64
GOOD: dict[str, Any] = {
    "version": 1,
    "service": "shop",
    "platform": "kubernetes",
    "build": {"image": {"push": "registry.example.org/shop"}},
    "run": {
        "port": 8000,
        "health": "/healthz",
        "secrets": {"DATABASE_URL": "secret://shop-db/url"},
    },
    "rollout": {
        "strategy": "canary",
        "bake": "2m",
        "judge": {"errors": "at most 1.5x stable"},
        "cohort": {"header": "X-Beta: yes"},
    },
    "kubernetes": {
        "namespace": "shop",
        "context": "prod",
        "gateway": "infra/web#https",
        "url": "https://gateway.example.org",
        "metrics": {
            "prometheus": "https://prometheus.example.org/x",
            "source": "traefik",
            "token": "$DAFNCK_METRICS_TOKEN",
            "matchers": {"cluster": "eu"},
        },
        "requests": {"cpu": "250m", "memory": "128M"},
        "cpu_limit": 2,
        "pull_secrets": ["registry"],
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/shop"},
        "callers": ["infra"],
        "node_selector": {"pool": "web"},
    },
}
DROPPED = object()

WRONG: list[tuple[str, Any, str]] = [
    ("kubernetes", DROPPED, "platform: kubernetes needs kubernetes: {namespace"),
    ("kubernetes.namespace", DROPPED, "kubernetes.namespace: is missing"),
    ("kubernetes.namespace", "Shop", "kubernetes.namespace: 'Shop' does not fit"),
    ("kubernetes.namespce", "x", "kubernetes.namespce: unknown key; did you mean namespace?"),
    ("kubernetes.credentials", "prod", "kubernetes.credentials: a block has a context of its own"),
    ("kubernetes.gateway", "a/b/c", "kubernetes.gateway: 'a/b/c' does not fit"),
    ("kubernetes.gateway", DROPPED, "kubernetes.url: there is no gateway"),
    ("kubernetes.url", "gateway:80", "kubernetes.url: 'gateway:80' does not fit"),
    ("kubernetes.url", "https://me:pw@gateway", "kubernetes.url: "),
    ("kubernetes.metrics", DROPPED, "rollout.judge: has nothing to read"),
    ("kubernetes.metrics", {}, "kubernetes.metrics: needs exactly one of prometheus, traefik"),
    ("kubernetes.metrics.souce", "x", "kubernetes.metrics.souce: unknown key; did you mean source"),
    ("kubernetes.metrics.source", "nginx", "kubernetes.metrics.source: must be "),
    ("kubernetes.metrics.basic", "$X", "kubernetes.metrics.basic: there is a token already"),
    ("kubernetes.metrics.matchers", {"a-b": "c"}, "kubernetes.metrics.matchers.a-b: "),
    ("kubernetes.requests.cpu", "lots", "kubernetes.requests.cpu: 'lots' is no amount of CPU"),
    ("kubernetes.requests.cpu", "0m", "kubernetes.requests.cpu: '0m' is no amount of CPU"),
    ("kubernetes.requests.disk", "1G", "kubernetes.requests.disk: unknown key"),
    ("build.image.push", DROPPED, "build.image.push: is missing: where the cluster pulls"),
    ("build.image.reference", f"r/shop@{DIGEST}", "build.image.push: nothing is built"),
    ("build.image", {"reference": "r/shop:1"}, "build.image.reference: 'r/shop:1' does not fit"),
    ("run.secrets", {"A": "shop-db/url"}, "run.secrets.A: names no secret; write secret://"),
    ("run.secrets", {"A": "env://HOME"}, "run.secrets: A: 'env://HOME' names no secret"),
    (
        "rotate",
        {"a/b": {"postgres": {"admin": "secret://a/b", "role": "r", "users": ["x", "y"]}}},
        "rotate: Kubernetes Secrets are not rotated",
    ),
    ("run.health", {"healthcheck": "image"}, "run.health.healthcheck: Kubernetes does not ask it"),
    ("run.limits", {"open_files": 100}, "run.limits: Kubernetes limits memory alone"),
    ("route", {"port": 8443}, "route.port: a Gateway has ports of its own"),
    ("rollout.sticky", True, "rollout.sticky: Gateways do not agree"),
]


def put(document: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *path, last = key.split(".")
    node = changed
    for part in path:
        node = node[part]
    if value is DROPPED:
        del node[last]
    else:
        node[last] = value
    return changed


def write(folder: Path, document: dict[str, Any]) -> Path:
    (folder / "Dockerfile").touch()
    file = folder / "dafnck.yaml"
    with file.open("w") as text:
        YAML().dump(document, text)
    return file


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (service,) = read_all(write(tmp_path, GOOD)).values()
    assert configuration(service, "local", write(tmp_path, GOOD)) == {}
    there = service.kubernetes
    assert there is not None
    assert there.gateway_parts() == ("infra", "web", "https")
    assert there.requests.cpu == 0.25
    assert there.model_copy(update={"gateway": "web"}).gateway_parts() == ("shop", "web", None)


@pytest.mark.parametrize(
    ("key", "value", "words"), WRONG, ids=[f"{c[0]}={c[1]!r:.20}" for c in WRONG]
)
def test_a_wrong_file_is_refused_where_it_is_wrong(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, put(GOOD, key, value))
    with pytest.raises(BadInput) as refused:
        read_all(file)
    found = re.fullmatch(r"(.+?):(\d+): (.+)", str(refused.value))
    assert found, str(refused.value)
    assert found[3].startswith(words)


def test_without_a_gateway_there_is_no_cohort_and_no_preview_header(tmp_path: Path) -> None:
    alone = put(put(GOOD, "kubernetes.gateway", DROPPED), "kubernetes.url", DROPPED)
    with pytest.raises(BadInput, match=r"rollout\.cohort: a Service alone cannot"):
        read_all(write(tmp_path, alone))
    with pytest.raises(BadInput, match=r"rollout\.preview: a Service alone cannot"):
        read_all(
            write(
                tmp_path,
                put(put(alone, "rollout.cohort", DROPPED), "rollout.preview", "X-Preview: 1"),
            )
        )


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("secret://shop-db/url", ("shop-db", "url")), ("secret://a.b/C_d.e-f", ("a.b", "C_d.e-f"))],
)
def test_secrets_are_named_by_name_and_key(reference: str, parts: tuple[str, str]) -> None:
    assert secret_key(reference) == parts


# -- images that others built ----------------------------------------------------------------


def test_an_image_may_be_named_instead_of_built(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    builder = Builder(tmp_path / "artifacts")
    build = Build.model_validate({"image": {"reference": f"r.example.org/shop@{DIGEST}"}})
    digest, before = builder.build(build, tmp_path / "source")
    image = builder.image_of(digest)
    assert not before
    assert image is not None
    assert (image.reference, image.digest) == (f"r.example.org/shop@{DIGEST}", DIGEST)
    assert builder.build(build, tmp_path / "source") == (digest, True), "no engine is asked"
    assert builder.remove_unused(set(), idle_seconds=0) == [digest]


def test_another_image_is_named_for_one_release(tmp_path: Path) -> None:
    wanted, _ = read_service(write(tmp_path, GOOD))
    other = with_image(wanted, f"r.example.org/other@{DIGEST}")
    assert other.build.image is not None
    assert other.build.image.reference == f"r.example.org/other@{DIGEST}"
    assert other.build.image.push is None
    assert with_image(wanted, None) is wanted
    with pytest.raises(BadInput, match="--image: 'shop:1' names no image by its digest"):
        with_image(wanted, "shop:1")


# -- more manifests --------------------------------------------------------------------------

CRON = """apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {schedule: "0 3 * * *"}
---
---
apiVersion: v1
kind: ConfigMap
metadata: {name: more, namespace: shop}
data: {a: b}
"""


def test_manifests_are_read_in_the_order_of_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.yaml").write_text(CRON)
    (folder / "a.json").write_text(
        '{"kind": "List", "apiVersion": "v1", "items": [{"apiVersion": "v1", "kind": "Service",'
        ' "metadata": {"name": "x"}}]}'
    )
    (folder / "sub" / "notes.txt").write_text("none")
    document = put(GOOD, "kubernetes.manifests", "k8s")
    wanted, env = read_service(write(tmp_path, document))
    found = manifests(wanted, env, tmp_path / "dafnck.yaml")
    assert [one["metadata"]["name"] for one in found] == ["x", "nightly", "more"]
    with pytest.raises(BadInput, match=r"dafnck.yaml:\d+: kubernetes.manifests: there is no dir"):
        manifests(
            read_service(write(tmp_path, put(document, "kubernetes.manifests", "nowhere")))[0],
            env,
            tmp_path / "dafnck.yaml",
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", r"a.yaml:1: "),
        ("kind: ConfigMap", "an object without apiVersion, kind and metadata.name"),
        ("[1, 2]", "an object without"),
        ("metadata: {name: x}\nkind: A", "x: apiVersion is missing"),
        (CRON.replace("namespace: shop", "namespace: other"), "is for the namespace other"),
        (CRON.replace("ConfigMap", "Secret"), "no secrets in manifests"),
        (
            CRON.replace("batch/v1", "v1")
            .replace("CronJob", "ConfigMap")
            .replace("nightly", "more"),
            "there are two ConfigMap more",
        ),
        ("", "holds no manifest"),
    ],
)
def test_what_cannot_be_meant_is_said(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput, match=words):
        read_manifests(tmp_path, "shop")


def test_a_kustomization_is_rendered_by_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tools = tmp_path / "k8s", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    (folder / "kustomization.yaml").write_text("resources: []\n")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(Refused, match="there is no kubectl to render it"):
        read_manifests(folder, "shop")
    (tools / "kubectl").write_text(
        f'#!/bin/sh\n[ "$1 $2" = "kustomize {folder}" ] || exit 1\ncat <<X\n{CRON}X\n'
    )
    (tools / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin:/bin")
    assert len(read_manifests(folder, "shop")) == 2
    (tools / "kubectl").write_text("#!/bin/sh\necho 'error: no such base' >&2; exit 1\n")
    with pytest.raises(BadInput, match="kubectl kustomize: error: no such base"):
        read_manifests(folder, "shop")
