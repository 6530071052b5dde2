"""dafnck on Kubernetes: Prefect's server, a worker and the guard, in a namespace of their own.

What is there is brought to what the files say, by server-side apply; what somebody else holds is
told. Secrets are made where they are missing. Nothing that was released is touched.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from blocks.kube_api import DEPLOYMENTS, PODS, Kind, KubeApi, Object, connect
from deployments.kube_files import (
    FILES,
    OWN_NAMESPACE,
    WORKER,
    is_pinned,
    namespace_of,
    overlay,
    own_image,
    rendered,
)
from deployments.kube_secrets import have_secrets
from policy.errors import BadInput, NotAllowed, Refused, Unreachable

STATEFUL_SETS = Kind("apps/v1", "statefulsets")
JOBS = Kind("batch/v1", "jobs")
NAMESPACES = Kind("v1", "namespaces", namespaced=False)
ROLE_BINDINGS = Kind("rbac.authorization.k8s.io/v1", "rolebindings")
OURS = {"app.kubernetes.io/part-of": "dafnck"}
RUNS = "prefect.io/flow-run-id"
# First what others name; the pods last, so that none starts before its confines are there.
ORDER = (
    "Namespace",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "NetworkPolicy",
    "ConfigMap",
    "Service",
    "PodDisruptionBudget",
    "StatefulSet",
    "Deployment",
)
# In the order in which they go: the worker first, so that no run starts while the rest goes away.
PARTS = (WORKER, "dafnck-guard", "prefect-server")
REMOVED = (
    Kind("policy/v1", "poddisruptionbudgets"),
    Kind("v1", "services"),
    Kind("v1", "configmaps"),
    Kind("networking.k8s.io/v1", "networkpolicies"),
    ROLE_BINDINGS,
    Kind("rbac.authorization.k8s.io/v1", "roles"),
    Kind("v1", "serviceaccounts"),
)
READY_SECONDS = 600.0
GONE_SECONDS = 180.0  # PostgreSQL has two minutes to write its checkpoint
LOOK_SECONDS = 1.0
Said = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    context: str | None = None  # of the kubeconfig; None: the current one
    namespace: str | None = None  # None: what the overlay says, which of those that ship is dafnck

    @property
    def home(self) -> str:
        return self.namespace or OWN_NAMESPACE


def up(
    place: Place,
    said: Said,
    *,
    image: str | None = None,
    overlay_name: str = "postgres",
    ready_seconds: float = READY_SECONDS,
) -> Place:
    """Have it all as the files say, and wait until it is available. `said` hears of each step.

    `image`: of dafnck, by digest if it shall stay the same; None: the one that the overlay names,
    or else the one that runs there. -> where it is. Raises BadInput, Refused, and Conflict for what
    another manager holds."""
    folder, api = overlay(overlay_name), connect(place.context)
    objects = rendered(folder, place.namespace)
    place = replace(place, namespace=namespace_of(objects))
    if image is None and is_pinned(written := own_image(objects)):
        image = written
    image = image or _running_image(api, place.home)
    if "@sha256:" not in image:
        said(f"{image} is no digest: what it means may change when a pod starts anew")
    objects = in_order(rendered(folder, place.namespace, image))
    own_database = any(one["kind"] == "StatefulSet" for one in objects)
    said(f"{api.name}: the namespace {place.home}")
    for one in [one for one in objects if one["kind"] == "Namespace"]:
        _have_namespace(api, one, said)
    for name in have_secrets(api, place.home, own_database=own_database):
        said(f"made the Secret {name}")
    for one in objects:
        if one["kind"] != "Namespace":
            api.apply(one)
    said(f"{len(objects)} objects are as {folder} says")
    wait_available(api, place.home, objects, said, ready_seconds)
    return place


def reach(place: Place) -> list[str]:
    """What a person does next."""
    context = f" --context {place.context}" if place.context else ""
    kubectl = f"kubectl{context} -n {place.home}"
    at = f"{context} --namespace {place.home}" if place.home != OWN_NAMESPACE else context
    auth = f"{kubectl} get secret dafnck-prefect -o jsonpath={{.data.auth}} | base64 -d"
    return [
        f"Prefect: {kubectl} port-forward service/prefect-server 4200 then http://127.0.0.1:4200",
        f"Its login: {auth}",
        f"Allow it to release to a namespace: dafnck up --kubernetes{at} --release-namespace NAME",
    ]


def grant(place: Place, said: Said, *, release: list[str], gateway: list[str]) -> None:
    """Let the runs and the guard of this place act in these namespaces, which exist."""
    api = connect(place.context)
    for kind, names in (("release", release), ("gateway", gateway)):
        for name in names:
            for one in granted(kind, name, place.home):
                api.apply(one)
            said(f"dafnck-release of {place.home} may act in {name}: Role dafnck-{kind}")


def granted(kind: str, namespace: str, own_namespace: str = OWN_NAMESPACE) -> list[Object]:
    """`kind`: release or gateway."""
    objects = in_order(rendered(FILES / f"{kind}-namespace", namespace))
    for one in objects:
        for subject in one.get("subjects", []):
            subject["namespace"] = own_namespace
    return objects


def down(place: Place, said: Said) -> None:
    """Remove what `up` made, but for the namespace, the secrets and the volume of the database.
    What was released goes on serving. Raises Refused while runs are under way."""
    api = connect(place.context)
    running = [
        one["metadata"]["name"]
        for one in api.list(JOBS, place.home, RUNS)
        if one.get("status", {}).get("active")
    ]
    if running:
        raise Refused(
            f"{len(running)} runs are under way in {place.home} ({', '.join(running[:3])}); "
            "nothing was changed. Wait for them, or end them: dafnck abort"
        )
    databases = [one["metadata"]["name"] for one in api.list(STATEFUL_SETS, place.home, OURS)]
    going = [(DEPLOYMENTS, name) for name in PARTS] + [(STATEFUL_SETS, name) for name in databases]
    for kind, name in going:
        if api.delete(kind, place.home, name):
            said(f"removing {name}")
            _wait_gone(api, kind, place.home, name)
    others = [(kind, one) for kind in REMOVED for one in api.list(kind, place.home, OURS)]
    names = [(kind, one["metadata"]["name"]) for kind, one in others]
    for kind, name in names:
        api.delete(kind, place.home, name)
    for kind, name in names:  # an `up` would write to what is about to go
        _wait_gone(api, kind, place.home, name)
    said(
        f"the namespace {place.home}, its secrets and the database's volume are left: "
        "dafnck up --kubernetes goes on with them"
    )
    for line in _granted_elsewhere(api, place.home):
        said(line)


def in_order(objects: list[Object]) -> list[Object]:
    return sorted(
        objects, key=lambda one: ORDER.index(one["kind"]) if one["kind"] in ORDER else len(ORDER)
    )


def wait_available(
    api: KubeApi, namespace: str, objects: list[Object], said: Said, limit_seconds: float
) -> None:
    """Raises Unreachable, with the words of the cluster, for what does not get ready."""
    kinds = {"Deployment": DEPLOYMENTS, "StatefulSet": STATEFUL_SETS}
    left = {one["metadata"]["name"]: kinds[one["kind"]] for one in objects if one["kind"] in kinds}
    give_up, told = time.monotonic() + limit_seconds, dict.fromkeys(left, "")
    while left:
        for name, kind in list(left.items()):
            words = _state(api, kind, namespace, name)
            if words == "ready":
                del left[name]
            if words != told[name]:
                said(f"{name}: {words}")
                told[name] = words
        if left and time.monotonic() > give_up:
            words = "; ".join(f"{name}: {told[name]}" for name in left)
            raise Unreachable(
                f"not everything is ready after {limit_seconds:g}s: {words}. It is tried on and on "
                "by the cluster; look again: dafnck up --kubernetes"
            )
        if left:
            time.sleep(LOOK_SECONDS)


def _wait_gone(api: KubeApi, kind: Kind, namespace: str, name: str) -> None:
    give_up = time.monotonic() + GONE_SECONDS
    while api.get(kind, namespace, name) is not None:
        if time.monotonic() > give_up:
            raise Unreachable(f"{name} is not gone after {GONE_SECONDS:g}s; run this again")
        time.sleep(LOOK_SECONDS / 4)


def _have_namespace(api: KubeApi, body: Object, said: Said) -> None:
    """What others made, or run in it, is not held to the standard of ours."""
    name, label = body["metadata"]["name"], "app.kubernetes.io/part-of"
    try:
        found = api.get(NAMESPACES, "", name)
        labels = (found or {}).get("metadata", {}).get("labels") or {}
        if found is not None and labels.get(label) != OURS[label]:
            said(
                f"the namespace {name} is there and bears no label {label}={OURS[label]}: it is "
                "left as it is, and pods in it are held to no Pod Security Standard by us"
            )
            return
        api.apply(body)
    except NotAllowed as error:  # a namespace that an administrator made for us does as well
        said(f"the namespace is left as it is: {error}")


def _granted_elsewhere(api: KubeApi, home: str) -> list[str]:
    """How to take back what `grant` gave."""
    asked = "kubectl get rolebindings -A -l app.kubernetes.io/part-of=dafnck"
    try:
        found = api.list(ROLE_BINDINGS, "", OURS)
    except NotAllowed:
        return [
            f"Roles and RoleBindings in other namespaces are left; an administrator sees: {asked}"
        ]
    lines = []
    for one in found:
        meta = one["metadata"]
        subjects = {subject.get("namespace") for subject in one.get("subjects") or []}
        if meta["namespace"] != home and home in subjects:
            lines.append(
                f"what dafnck-release may do in {meta['namespace']} is left; take it back: kubectl "
                f"-n {meta['namespace']} delete rolebinding,role {meta['name']}"
            )
    return lines


def _running_image(api: KubeApi, namespace: str) -> str:
    worker = api.get(DEPLOYMENTS, namespace, WORKER)
    if worker is None:
        raise BadInput(
            "--image REPOSITORY@sha256:…: which image of dafnck? Build it from "
            "deployments/kubernetes/Dockerfile and push it where the cluster pulls from; nothing "
            "was changed"
        )
    return str(worker["spec"]["template"]["spec"]["containers"][0]["image"])


def _state(api: KubeApi, kind: Kind, namespace: str, name: str) -> str:
    """`ready`, or what is missing."""
    one = api.get(kind, namespace, name)
    if one is None:
        return "it is gone"
    wanted, status = one["spec"].get("replicas", 1), one.get("status", {})
    ready = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    seen = status.get("observedGeneration", 0) >= one["metadata"].get("generation", 0)
    if seen and ready == wanted == status.get("replicas", 0):
        return "ready"
    why = ""
    for pod in api.list(PODS, namespace, {"app.kubernetes.io/name": name}):
        why = why or _why_not(pod)
    if seen and ready == wanted:
        return f"{ready} ready, the old one still ends"
    return f"{ready if seen else 0} of {wanted} ready{f' ({why})' if why else ''}"


def _why_not(pod: Object) -> str:
    status = pod.get("status", {})
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{container['name']}: {waiting['reason']}: {waiting.get('message', '')}"[:300]
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"not placed: {condition.get('message', '')}"[:300]
    return ""
