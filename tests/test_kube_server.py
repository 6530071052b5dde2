"""The cluster that stands in for a real one answers and acts as the real one does.

What it says was compared with Kubernetes 1.36, request by request."""

# ruff: noqa: F811 - fixtures are named as what they give

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from conftest import wait_for
from kube_faults import at_write
from kube_fixtures import Gateway, Kube, kube, kube_gateway, plain_http  # noqa: F401

from blocks.kube_api import CONFIG_MAPS, DEPLOYMENTS, PODS, Conflict, KubeApi
from policy.errors import NotAllowed

Object = dict[str, Any]
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
JSON, STRATEGIC = "application/json-patch+json", "application/strategic-merge-patch+json"
CONFIGS = "/api/v1/namespaces/shop/configmaps"
PODS_OF = "/api/v1/namespaces/shop/pods"
APPS = "/apis/apps/v1/namespaces/shop/deployments"
ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes"


class Client:
    """One who asks the API server, and sees codes and bodies."""

    def __init__(self, kube: Kube, http: httpx.Client, token: str) -> None:
        self.kube, self.http, self.token = kube, http, token

    def __call__(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str
    ) -> tuple[int, Any]:
        headers = {
            "Content-Type": kind,
            "Authorization": f"Bearer {self.token}",
            "User-Agent": "me/1",
        }
        content = None if body is None else json.dumps(body)
        said = self.http.request(
            method, self.kube.url + path, params=query, content=content, headers=headers
        )
        is_json = said.text and "json" in said.headers["content-type"]
        return said.status_code, said.json() if is_json else said.text

    def apply(self, path: str, body: Object, manager: str = "me", **query: str) -> tuple[int, Any]:
        return self("PATCH", path, body, APPLY, fieldManager=manager, **query)


@pytest.fixture
def ask(kube: Kube) -> Iterator[Client]:
    kube.namespace("shop")
    with plain_http() as http:
        yield Client(kube, http, kube.admin)


def config(name: str = "c", data: dict[str, str] | None = None, **meta: Any) -> Object:
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}}
    return head | ({"data": data} if data is not None else {})


def deployment(name: str = "web", replicas: int = 1, image: str = "x:1", **spec: Any) -> Object:
    container = {"name": "app", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    container |= {"readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}}}
    labels = {"dafnck/release": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container | spec]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def service(name: str, **selector: str) -> Object:
    port = {"name": "http", "port": 80, "targetPort": "http"}
    spec = {"selector": selector or {"dafnck/release": name}, "ports": [port]}
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def leaving(seconds: int) -> Object:
    """So long from the word to its end, by the clock of pods."""
    return {"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}}


def ready(kube: Kube, name: str) -> int:
    found = kube.find("Deployment", "shop", name) or {}
    return int((found.get("status") or {}).get("readyReplicas", 0))


def pods(kube: Kube, **labels: str) -> list[Object]:
    every = kube.all("Pod", "shop")
    return [one for one in every if labels.items() <= (one["metadata"].get("labels") or {}).items()]


def addresses(kube: Kube, name: str, what: str = "ready") -> set[str]:
    """Of a Service, those of this condition."""
    found = [
        one
        for one in kube.all("EndpointSlice", "shop")
        if one["metadata"]["labels"]["kubernetes.io/service-name"] == name
    ]
    every = [endpoint for one in found for endpoint in one["endpoints"]]
    return {one["addresses"][0] for one in every if one["conditions"][what]}


# -- the API ---------------------------------------------------------------------------------------


def test_kinds_are_discovered_and_a_crd_may_be_absent(kube: Kube, ask: Client) -> None:
    groups = {one["name"] for one in ask("GET", "/apis")[1]["groups"]}
    assert {"apps", "gateway.networking.k8s.io", "keda.sh", "discovery.k8s.io"} <= groups
    names = {one["name"]: one for one in ask("GET", "/apis/apps/v1")[1]["resources"]}
    assert names["deployments"]["kind"] == "Deployment"
    assert names["deployments/scale"]["group"] == "autoscaling"
    assert ask("GET", "/version")[1]["major"] == "1"
    kube.requests.absent = {"gateway.networking.k8s.io"}
    assert ask("GET", "/apis/gateway.networking.k8s.io/v1") == (404, "404 page not found\n")
    assert ask("GET", ROUTES)[0] == 404


def test_an_object_from_its_first_to_its_last(ask: Client) -> None:
    code, made = ask("POST", CONFIGS, config(data={"a": "1"}))
    meta = made["metadata"]
    assert (code, meta["namespace"], made["data"]) == (201, "shop", {"a": "1"})
    assert ask("POST", CONFIGS, config())[1] == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'configmaps "c" already exists',
        "reason": "AlreadyExists",
        "details": {"name": "c", "kind": "configmaps"},
        "code": 409,
    }
    code, same = ask("PUT", f"{CONFIGS}/c", made)
    assert same["metadata"]["resourceVersion"] == meta["resourceVersion"], "nothing was changed"
    code, changed = ask("PUT", f"{CONFIGS}/c", made | {"data": {"a": "2"}})
    assert (code, changed["metadata"]["uid"]) == (200, meta["uid"])
    code, said = ask("PUT", f"{CONFIGS}/c", made)
    assert (code, said["reason"]) == (409, "Conflict")
    assert said["message"].endswith("please apply your changes to the latest version and try again")
    named = ask("POST", CONFIGS, config("", generateName="c-"))[1]["metadata"]["name"]
    assert (named[:2], len(named)) == ("c-", 7)
    assert ask("POST", CONFIGS, config("dry"), dryRun="All")[0] == 201
    assert ask("GET", f"{CONFIGS}/dry")[0] == 404
    assert ask("DELETE", f"{CONFIGS}/c")[1]["details"]["uid"] == meta["uid"]
    assert ask("GET", f"{CONFIGS}/c")[1]["message"] == 'configmaps "c" not found'
    assert ask("POST", CONFIGS.replace("shop", "nope"), config())[1]["message"] == (
        'namespaces "nope" not found'
    )


def test_a_list_is_selected_and_comes_in_pages(kube: Kube, ask: Client) -> None:
    for number in range(5):
        labels = {"n": str(number)} | ({"odd": "yes"} if number % 2 else {})
        ask("POST", CONFIGS, config(f"c{number}", labels=labels))

    def names(**query: str) -> list[str]:
        return [one["metadata"]["name"] for one in ask("GET", CONFIGS, **query)[1]["items"]]

    assert names(labelSelector="odd") == ["c1", "c3"]
    assert names(labelSelector="!odd,n") == ["c0", "c2", "c4"]
    assert names(labelSelector="n in (1,2),n!=2") == ["c1"]
    assert names(labelSelector="n notin (1,2,3),n") == ["c0", "c4"]
    assert names(fieldSelector="metadata.name=c3") == ["c3"]
    code, said = ask("GET", CONFIGS, fieldSelector="data.a=1")
    assert (code, said["reason"]) == (400, "BadRequest")
    first = ask("GET", CONFIGS, limit="2")[1]
    assert [one["metadata"]["name"] for one in first["items"]] == ["c0", "c1"]
    assert "kind" not in first["items"][0], "in a list of typed objects"
    more = first["metadata"]["continue"]
    assert first["metadata"]["remainingItemCount"] == 3
    assert names(limit="9", **{"continue": more}) == ["c2", "c3", "c4"]
    kube.store.forget()
    assert ask("GET", CONFIGS, **{"continue": more})[1]["reason"] == "Expired"


@contextmanager
def watching(kube: Kube, path: str, **query: str) -> Iterator[list[tuple[str, Object]]]:
    """-> what is told, which grows."""
    told: list[tuple[str, Object]] = []

    def read() -> None:
        with plain_http() as http:
            every = {"watch": "1", "timeoutSeconds": "5", **query}
            try:
                with http.stream("GET", kube.url + path, params=every) as answer:
                    for line in answer.iter_lines():
                        event = json.loads(line)
                        told.append(
                            (event.get("type", str(event.get("code"))), event.get("object", event))
                        )
            except httpx.TransportError:
                told.append(("CUT", {}))

    thread = threading.Thread(target=read)
    thread.start()
    yield told
    kube.drop_watches()
    thread.join()


def test_a_watch_is_told_all_in_order(kube: Kube, ask: Client) -> None:
    ask("POST", CONFIGS, config("before", labels={"a": "1"}))
    version = ask("GET", CONFIGS)[1]["metadata"]["resourceVersion"]
    with watching(kube, CONFIGS, resourceVersion=version, labelSelector="a=1") as told:
        ask("POST", CONFIGS, config("new", labels={"a": "1"}))
        ask("POST", CONFIGS, config("other"))
        ask("PATCH", f"{CONFIGS}/new", {"data": {"x": "1"}}, MERGE)
        ask("PATCH", f"{CONFIGS}/new", {"metadata": {"labels": {"a": "2"}}}, MERGE)
        ask("DELETE", f"{CONFIGS}/before")
        wait_for(lambda: len(told) == 4, "events")
        names = [(how, one["metadata"]["name"]) for how, one in told]
    assert names == [
        ("ADDED", "new"),
        ("MODIFIED", "new"),
        ("DELETED", "new"),
        ("DELETED", "before"),
    ]
    assert told[-1][0] == "CUT"


def test_a_watch_begins_with_what_there_is_or_is_too_old(kube: Kube, ask: Client) -> None:
    ask("POST", CONFIGS, config())
    initial = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    with watching(kube, CONFIGS, allowWatchBookmarks="true", **initial) as told:
        wait_for(lambda: len(told) == 2, "what there is")
        assert [how for how, _ in told] == ["ADDED", "BOOKMARK"]
        assert told[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    kube.store.forget()
    with watching(kube, CONFIGS, resourceVersion="2") as told:
        wait_for(lambda: told, "a refusal")
    assert (told[0][0], told[0][1]["code"], told[0][1]["reason"]) == ("ERROR", 410, "Expired")
    kube.watches.gone_by_http = True
    assert ask("GET", CONFIGS, watch="1", resourceVersion="2")[0] == 410
    version = str(kube.store.version)
    assert ask("GET", CONFIGS, watch="1", resourceVersion=version, timeoutSeconds="0.05") == (
        200,
        "",
    )


def test_fields_are_managed(kube: Kube, ask: Client) -> None:
    path = f"{APPS}/web"
    assert ask.apply(path, deployment(replicas=0))[0] == 201
    assert ask.apply(path, deployment(replicas=0))[0] == 200
    unchanged = ask("GET", path)[1]["metadata"]
    assert unchanged["generation"] == 1
    ask("PATCH", f"{path}/scale", {"spec": {"replicas": 3}}, MERGE, fieldManager="scaler")
    code, said = ask.apply(path, deployment(replicas=0))
    assert code == 409
    assert said["message"] == (
        'Apply failed with 1 conflict: conflict with "scaler" with subresource "scale" using '
        "apps/v1: .spec.replicas"
    )
    cause = {"reason": "FieldManagerConflict", "field": ".spec.replicas"}
    assert cause.items() <= said["details"]["causes"][0].items()
    assert ask.apply(path, deployment(replicas=0), force="true")[1]["spec"]["replicas"] == 0

    side = {"metadata": {"name": "web"}, "apiVersion": "apps/v1", "kind": "Deployment"}
    more = {"name": "side", "image": "y:1", "env": [{"name": "A", "value": "1"}]}
    side["spec"] = {"template": {"spec": {"containers": [more]}}}
    both = ask.apply(path, side, "other")[1]["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in both] == ["app", "side"]
    more["env"] = [{"name": "B", "value": "2"}]
    both = ask.apply(path, side, "other")[1]["spec"]["template"]["spec"]["containers"]
    assert both[1]["env"] == [{"name": "B", "value": "2"}], "what is applied no more goes"
    del side["spec"]
    alone = ask.apply(path, side, "other")[1]["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in alone] == ["app"]
    managers = {one["manager"] for one in ask("GET", path)[1]["metadata"]["managedFields"]}
    assert "other" not in managers
    code, said = ask.apply(path, deployment() | {"spec": {"nope": 1}})
    assert (code, said["message"].partition("): ")[2]) == (
        500,
        ".spec.nope: field not declared in schema",
    )


def test_owners_and_labels_of_two_managers_are_merged(ask: Client) -> None:
    path = f"{CONFIGS}/c"
    owner = ask("POST", CONFIGS, config("owner"))[1]["metadata"]["uid"]
    other = ask("POST", CONFIGS, config("other"))[1]["metadata"]["uid"]

    def owned(name: str, uid: str) -> list[Object]:
        return [{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}]

    ask.apply(
        path, config(data={"x": "1"}, ownerReferences=owned("owner", owner), labels={"a": "1"})
    )
    meta = ask.apply(path, config(ownerReferences=owned("other", other), labels={"b": "1"}), "you")[
        1
    ]["metadata"]
    assert [one["name"] for one in meta["ownerReferences"]] == ["owner", "other"]
    assert meta["labels"] == {"a": "1", "b": "1"}
    kept = ask.apply(path, config(), "you")[1]
    assert (kept["metadata"]["labels"], kept["data"]) == ({"a": "1"}, {"x": "1"})


def test_patches_of_every_type(ask: Client) -> None:
    ask("POST", APPS, deployment(replicas=0))
    path = f"{APPS}/web"
    assert ask("PATCH", path, {"spec": {"paused": True}}, MERGE)[1]["spec"]["paused"] is True
    assert "paused" not in ask("PATCH", path, {"spec": {"paused": None}}, MERGE)[1]["spec"]
    test = {"op": "test", "path": "/spec/replicas", "value": 0}
    replaced = [test, {"op": "replace", "path": "/spec/minReadySeconds", "value": 1}]
    assert ask("PATCH", path, replaced, JSON)[0] == 422, "there is no such field to replace"
    replaced[1]["op"] = "add"
    assert ask("PATCH", path, replaced, JSON)[1]["spec"]["minReadySeconds"] == 1
    env = {
        "spec": {"template": {"spec": {"containers": [{"name": "app", "env": [{"name": "A"}]}]}}}
    }
    container = ask("PATCH", path, env, STRATEGIC)[1]["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["env"]) == ("x:1", [{"name": "A"}])
    stale = {"metadata": {"resourceVersion": "1"}, "spec": {"paused": True}}
    assert ask("PATCH", path, stale, MERGE)[1]["reason"] == "Conflict"
    ask.apply(f"{ROUTES}/r", route("r", {"a": 1}))
    assert ask("PATCH", f"{ROUTES}/r", {"spec": {}}, STRATEGIC)[0] == 415
    assert ask("PATCH", path, {"spec": {"nope": 1}}, MERGE, fieldValidation="Strict")[0] == 422


def test_what_is_wanted_and_what_is_are_written_apart(kube: Kube, ask: Client) -> None:
    kube.controllers.off |= {"deployments"}
    made = ask("POST", APPS, deployment(replicas=2) | {"status": {"replicas": 9}})[1]
    assert (made["status"], made["metadata"]["generation"]) == ({}, 1)
    told = ask(
        "PATCH", f"{APPS}/web/status", {"status": {"replicas": 1}, "spec": {"replicas": 7}}, MERGE
    )[1]
    assert (told["status"], told["spec"]["replicas"]) == ({"replicas": 1}, 2)
    assert told["metadata"]["generation"] == 1
    scale = ask("GET", f"{APPS}/web/scale")[1]
    assert (scale["spec"], scale["status"]["replicas"]) == ({"replicas": 2}, 1)
    scale["spec"]["replicas"] = 5
    assert ask("PUT", f"{APPS}/web/scale", scale)[1]["spec"] == {"replicas": 5}
    assert ask("PUT", f"{APPS}/web/scale", scale)[0] == 409
    assert ask("PUT", f"{APPS}/web", deployment(replicas=3))[1]["status"] == {"replicas": 1}
    assert ask("GET", f"{APPS}/web")[1]["metadata"]["generation"] == 3


def edited(body: Object, path: str, value: Any) -> Object:
    body = json.loads(json.dumps(body))
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at = body
    for step in way:
        at = at[step]
    at[last] = value
    return body


CONTAINER = "spec.template.spec.containers.0"
MOUNT, LABELS = {"name": "v", "mountPath": "/v"}, "metadata.labels"
RESOURCES = {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
REFUSED = [
    ("spec.selector", {"matchLabels": {"x": "y"}}, 422,
     "spec.template.metadata.labels: Invalid value: "
     '{"dafnck/release":"web"}: `selector` does not match template `labels`'),
    ("spec.template.spec.containers", [], 422,
     'Deployment.apps "web" is invalid: spec.template.spec.containers: Required value'),
    (f"{CONTAINER}.image", None, 422, "containers[0].image: Required value"),
    (f"{CONTAINER}.volumeMounts", [MOUNT], 422, 'volumeMounts[0].name: Not found: "v"'),
    (f"{CONTAINER}.resources", RESOURCES, 422,
     'requests: Invalid value: "2": must be less than or equal to cpu limit of 1'),
    (f"{CONTAINER}.resources", {"requests": {"cpu": "many"}}, 400,
     "quantities must match the regular expression"),
    ("spec.replicas", -1, 422, "spec.replicas: Invalid value: -1: must be greater than"),
    ("spec.replicas", "two", 400, "json: cannot unmarshal string into Go struct field"),
    ("metadata.name", "Bad_Name", 422, "a lowercase RFC 1123 subdomain must consist of"),
    (LABELS, {"a": "bad value"}, 422, "a valid label must be an empty string"),
    (LABELS, {"a": "v" * 64}, 422, "must be no more than 63 bytes"),
    ("metadata.namespace", "other", 400, "the namespace of the provided object"),
    ("spec.nope", 1, 400, 'strict decoding error: unknown field "spec.nope"'),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "code", "words"), REFUSED)
def test_what_the_real_one_refuses(
    ask: Client, path: str, value: Any, code: int, words: str
) -> None:
    body = edited(deployment(), path, value)
    got, said = ask("POST", APPS, body, fieldValidation="Strict")
    assert got == code
    assert words in said["message"]


def test_other_kinds_have_rules_too(ask: Client) -> None:
    said = ask("POST", CONFIGS, config(data={"bad key": ""}))[1]
    assert "a valid config key must consist of" in said["message"]
    empty = edited(service("s"), "spec.ports", [])
    said = ask("POST", "/api/v1/namespaces/shop/services", empty)[1]
    assert said["message"] == 'Service "s" is invalid: spec.ports: Required value'
    leases = "/apis/coordination.k8s.io/v1/namespaces/shop/leases"
    said = ask("POST", leases, {"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}})[1]
    assert "must be greater than 0" in said["message"]


def test_what_cannot_be_changed(ask: Client) -> None:
    ask("POST", CONFIGS, config(data={"a": "1"}) | {"immutable": True})
    code, said = ask("PATCH", f"{CONFIGS}/c", {"data": {"a": "2"}}, MERGE)
    assert (code, said["details"]["causes"]) == (422, [{
        "reason": "FieldValueForbidden",
        "message": "Forbidden: field is immutable when `immutable` is set",
        "field": "data",
    }])  # fmt: skip
    assert ask("PATCH", f"{CONFIGS}/c", {"metadata": {"labels": {"a": "b"}}}, MERGE)[0] == 200
    ask("POST", APPS, deployment(replicas=0))
    other = edited(deployment("other", replicas=0), "metadata.name", "web")
    assert "spec.selector: Invalid value" in ask("PUT", f"{APPS}/web", other)[1]["message"]
    services = "/api/v1/namespaces/shop/services"
    held = ask("POST", services, service("s"))[1]["spec"]["clusterIP"]
    assert ask("PUT", f"{services}/s", service("s"))[1]["spec"]["clusterIP"] == held
    moved = {"spec": {"clusterIP": "127.96.9.9"}}
    assert "may not change once set" in ask("PATCH", f"{services}/s", moved, MERGE)[1]["message"]


def route(name: str, weights: dict[str, int]) -> Object:
    backends = [{"name": to, "port": 80, "weight": weight} for to, weight in weights.items()]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "parentRefs": [{"name": "web", "namespace": "infra"}],
            "hostnames": [f"{name}.test"],
            "rules": [{"backendRefs": backends}],
        },
    }


def test_custom_kinds_have_the_defaults_and_rules_of_their_schema(ask: Client) -> None:
    spec = ask.apply(f"{ROUTES}/r", route("r", {"a": 1}))[1]["spec"]
    assert spec["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert spec["parentRefs"][0]["kind"] == "Gateway"
    code, said = ask.apply(f"{ROUTES}/r", route("r", {"a": -5}))
    assert (code, said["details"]["causes"][0]["field"]) == (
        422,
        "spec.rules[0].backendRefs[0].weight",
    )
    assert ask.apply(f"{ROUTES}/r", route("r", {"a": 5}))[1]["metadata"]["generation"] == 2


# -- going -----------------------------------------------------------------------------------------


def test_what_is_owned_goes_too(kube: Kube, ask: Client) -> None:
    def made(prefix: str) -> None:
        uid = ask("POST", CONFIGS, config(f"{prefix}-owner"))[1]["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": f"{prefix}-owner", "uid": uid}
        owner["blockOwnerDeletion"] = True
        ask(
            "POST",
            CONFIGS,
            config(f"{prefix}-child", ownerReferences=[owner], finalizers=["x/hold"]),
        )

    def there() -> set[str]:
        return {one["metadata"]["name"] for one in kube.all("ConfigMap", "shop")}

    for prefix, policy in (("fore", "Foreground"), ("back", "Background"), ("orphan", "Orphan")):
        made(prefix)
        ask("DELETE", f"{CONFIGS}/{prefix}-owner", {"propagationPolicy": policy})
    gone = {"back-owner", "orphan-owner"}
    wait_for(lambda: not there() & gone, "owners")
    assert {"fore-owner", "fore-child", "back-child", "orphan-child"} <= there(), "held"
    free = {"metadata": {"finalizers": None}}
    for prefix in ("fore", "back", "orphan"):
        ask("PATCH", f"{CONFIGS}/{prefix}-child", free, MERGE)
    wait_for(lambda: there() == {"orphan-child"}, "all that were owned")


def test_preconditions_of_a_deletion(ask: Client) -> None:
    ask("POST", CONFIGS, config())
    code, said = ask("DELETE", f"{CONFIGS}/c", {"preconditions": {"uid": "other"}})
    assert code == 409
    assert "the UID in the precondition (other) does not match the UID in record" in said["message"]
    assert ask("DELETE", CONFIGS, labelSelector="no=such")[0] == 200
    assert ask("GET", f"{CONFIGS}/c")[0] == 200


def test_a_namespace_takes_all_with_it(kube: Kube, ask: Client) -> None:
    ask("POST", APPS, deployment(replicas=1))
    wait_for(lambda: ready(kube, "web") == 1, "the pod")
    ask("DELETE", "/api/v1/namespaces/shop")
    said = ask("POST", CONFIGS, config())[1]
    assert said["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    wait_for(lambda: kube.find("Namespace", "", "shop") is None, "its end")
    assert not kube.all("Pod", "shop") + kube.all("Deployment", "shop")


# -- who may, and what is taken --------------------------------------------------------------------


def test_permissions_are_those_of_roles(kube: Kube, ask: Client) -> None:
    kube.requests.rbac = True
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]},
             {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["web"],
              "verbs": ["get"]}]  # fmt: skip
    kube.make("Role", {"metadata": {"name": "r"}, "rules": rules}, "shop")
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "shop"}
    binding = {"metadata": {"name": "r"}, "roleRef": reference, "subjects": [subject]}
    kube.make("RoleBinding", binding, "shop")
    kube.make("Deployment", deployment(replicas=0), "shop")
    theirs = Client(kube, ask.http, kube.token("shop", "default"))
    assert theirs("GET", CONFIGS)[0] == 200
    assert theirs("GET", f"{APPS}/web/scale")[0] == 200
    code, said = theirs("GET", PODS_OF)
    assert (code, said["message"]) == (403, (
        'pods is forbidden: User "system:serviceaccount:shop:default" cannot list resource "pods" '
        'in API group "" in the namespace "shop"'
    ))  # fmt: skip
    assert theirs("DELETE", f"{APPS}/web")[1]["message"] == (
        'deployments.apps "web" is forbidden: User "system:serviceaccount:shop:default" cannot '
        'delete resource "deployments" in API group "apps" in the namespace "shop"'
    )
    assert "at the cluster scope" in theirs("GET", "/api/v1/nodes")[1]["message"]
    assert theirs("GET", "/api/v1/namespaces/other/configmaps")[0] == 403
    review = {
        "spec": {
            "resourceAttributes": {"verb": "get", "resource": "configmaps", "namespace": "shop"}
        }
    }
    assert theirs("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)[1][
        "status"
    ]["allowed"]
    kube.tokens.known.pop(theirs.token)
    assert theirs("GET", CONFIGS)[1]["message"] == "Unauthorized"
    with pytest.raises(NotAllowed, match="does not know us any more"):
        kube.api("expired").list(CONFIG_MAPS, "shop")


def failure(kube: Kube, name: str = "web") -> str:
    status = (kube.find("Deployment", "shop", name) or {}).get("status") or {}
    told = {one["type"]: one["message"] for one in status.get("conditions", [])}
    return str(told.get("ReplicaFailure", ""))


def test_a_quota_is_kept(kube: Kube, ask: Client) -> None:
    hard = {"pods": "2", "requests.memory": "1Gi"}
    kube.make("ResourceQuota", {"metadata": {"name": "q"}, "spec": {"hard": hard}}, "shop")
    memory = {"resources": {"requests": {"memory": "512Mi"}}}
    ask("POST", APPS, deployment(replicas=3, **memory))
    wait_for(lambda: "exceeded quota: q, requested: pods=1" in failure(kube), "the failure")
    assert "used: pods=2,requests.memory=1Gi, limited: pods=2,requests.memory=1Gi" in failure(kube)
    events = [one for one in kube.all("Event", "shop") if one["reason"] == "FailedCreate"]
    assert (events[0]["type"], "exceeded quota" in events[0]["message"]) == ("Warning", True)
    ask("POST", APPS, deployment("silent"))
    wait_for(lambda: "must specify requests.memory for: app" in failure(kube, "silent"), "failure")
    used = (kube.find("ResourceQuota", "shop", "q") or {})["status"]["used"]
    assert used == {"pods": "2", "requests.memory": "1Gi"}
    ask("PATCH", f"{APPS}/web", {"spec": {"replicas": 2}}, MERGE)
    wait_for(lambda: not failure(kube), "the failure is over")


def test_pod_security_and_webhooks_refuse(kube: Kube, ask: Client) -> None:
    enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    ask("PATCH", "/api/v1/namespaces/shop", enforced, MERGE)
    ask("POST", APPS, deployment())
    wait_for(lambda: failure(kube), "the failure")
    assert 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false' in failure(
        kube
    )
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
               "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip
    ask("POST", APPS, deployment("safe", securityContext=context))
    wait_for(lambda: ready(kube, "safe") == 1, "the safe one")
    kube.requests.hooks.append(
        lambda verb, kind, obj: "not on Fridays" if kind.kind == "Secret" else None
    )
    code, said = ask("POST", "/api/v1/namespaces/shop/secrets", {"metadata": {"name": "s"}})
    assert (code, said["message"]) == (
        403,
        'admission webhook "check.test" denied the request: not on Fridays',
    )


# -- faults ----------------------------------------------------------------------------------------


def test_faults_on_demand(kube: Kube, ask: Client) -> None:
    kube.faults.add(times=2, verb="get", plural="configmaps", code=429, retry_after=1)
    code, said = ask("GET", f"{CONFIGS}/c")
    assert (code, said["reason"], said["details"]) == (
        429,
        "TooManyRequests",
        {"retryAfterSeconds": 1},
    )
    assert ask("GET", CONFIGS)[0] == 200, "which is a list"
    assert [ask("GET", f"{CONFIGS}/c")[0] for _ in range(2)] == [429, 404]
    kube.faults.add(code=503)
    assert ask("GET", CONFIGS)[0] == 503
    kube.faults.add(verb="create", lost=True)
    with pytest.raises(httpx.TransportError):
        ask("POST", CONFIGS, config())
    assert kube.find("ConfigMap", "shop", "c"), "done, and the answer lost"
    kube.faults.add(verb="apply", code=409, name="c")
    assert [ask.apply(f"{CONFIGS}/c", config())[0] for _ in range(2)] == [409, 200]
    kube.faults.add(seconds=0.2)
    began = time.monotonic()
    assert ask("GET", CONFIGS)[0] == 200
    assert time.monotonic() - began >= 0.2
    with kube.away(), pytest.raises(httpx.ConnectError):
        ask("GET", CONFIGS)
    assert ask("GET", CONFIGS)[0] == 200
    kube.away_for(0.3)
    assert kube.api().get(CONFIG_MAPS, "shop", "c"), "tried again until it is back"


def test_writes_are_counted_and_can_be_stopped_at(kube: Kube, ask: Client) -> None:
    kube.requests.calls.clear()
    seen: list[str] = []
    kube.requests.after_write.append(at_write(2, lambda write: seen.append(write.name)))
    for name in "abc":
        ask.apply(f"{CONFIGS}/{name}", config(name))
    ask("DELETE", f"{CONFIGS}/a")
    ask("GET", CONFIGS)
    assert seen == ["b"]
    assert kube.requests.calls == {
        ("apply", "configmaps"): 3,
        ("delete", "configmaps"): 1,
        ("list", "configmaps"): 1,
    }
    written = [(one.verb, one.plural, one.name, one.manager) for one in kube.requests.writes]
    assert written[2:] == [("apply", "configmaps", "c", "me"), ("delete", "configmaps", "a", "me")]


# -- what a cluster does by itself -----------------------------------------------------------------


def test_a_deployment_becomes_pods_that_answer(kube: Kube, ask: Client) -> None:
    ask("POST", "/api/v1/namespaces/shop/services", service("web"))
    ask("POST", APPS, deployment(replicas=2))
    wait_for(lambda: ready(kube, "web") == 2, "replicas")
    wait_for(lambda: len(addresses(kube, "web")) == 2, "endpoints")
    answers = {ask.http.get(f"http://{one}:8080/").text for one in addresses(kube, "web")}
    assert answers == {"web"}
    status = (kube.find("Deployment", "shop", "web") or {})["status"]
    told = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    assert told == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert status["observedGeneration"] == 1
    one = kube.all("EndpointSlice", "shop")[0]
    assert one["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert one["metadata"]["ownerReferences"][0]["kind"] == "Service"
    ask(
        "PATCH",
        "/api/v1/namespaces/shop/services/web",
        {"spec": {"selector": {"dafnck/release": "none"}}},
        MERGE,
    )
    wait_for(lambda: not addresses(kube, "web"), "nobody is selected")
    ask("DELETE", f"{APPS}/web", {"propagationPolicy": "Foreground"})
    wait_for(lambda: not kube.find("Deployment", "shop", "web"), "its end")
    assert not kube.all("Pod", "shop") + kube.all("ReplicaSet", "shop")


def test_another_template_is_another_replica_set(kube: Kube, ask: Client) -> None:
    ask("POST", APPS, deployment(replicas=2))
    wait_for(lambda: ready(kube, "web") == 2, "replicas")
    before = {one["metadata"]["name"] for one in pods(kube)}
    ask("PATCH", f"{APPS}/web", edited(deployment(replicas=2), f"{CONTAINER}.image", "x:2"), MERGE)
    wait_for(
        lambda: {one["spec"]["containers"][0]["image"] for one in pods(kube)} == {"x:2"}, "x:2"
    )
    assert not before & {one["metadata"]["name"] for one in pods(kube)}
    found = kube.find("Deployment", "shop", "web") or {}
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
    wait_for(lambda: ready(kube, "web") == 2, "replicas")
    cheap = pods(kube)[1]["metadata"]["name"]
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}}
    ask("PATCH", f"{PODS_OF}/{cheap}", cost, MERGE)
    ask("PATCH", f"{APPS}/web/scale", {"spec": {"replicas": 1}}, MERGE)
    wait_for(lambda: len(pods(kube)) == 1, "the other one")
    assert pods(kube)[0]["metadata"]["name"] != cheap


def state(kube: Kube, name: str) -> tuple[Object, Object]:
    """-> status of a container of this release, its state"""
    for pod in pods(kube, **{"dafnck/release": name}):
        for one in pod.get("status", {}).get("containerStatuses", []):
            return one, next(iter(one["state"].values()), {})
    return {}, {}


def test_troubles_of_pods(kube: Kube, ask: Client) -> None:
    pull = kube.behave("no/such*", pull_error="not found")
    kube.behave("crash", exit_code=3, exit_seconds=0.02, log="no database")
    kube.behave("fat", exit_code=137, exit_reason="OOMKilled")
    kube.behave("sick", health=503)
    api = kube.api()
    for name in ("crash", "fat", "sick"):
        ask("POST", APPS, deployment(name))
    ask("POST", APPS, deployment("pulled", image="no/such:1"))
    ask("POST", APPS, deployment("unset", envFrom=[{"configMapRef": {"name": "late"}}]))
    far = deployment("far")
    far["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "fast"}
    ask("POST", APPS, far)
    why = {"pulled": "ImagePullBackOff", "crash": "CrashLoopBackOff", "fat": "CrashLoopBackOff"}
    for name, reason in {**why, "unset": "CreateContainerConfigError"}.items():
        wait_for(
            lambda name=name, reason=reason: state(kube, name)[1].get("reason") == reason, reason
        )
    assert state(kube, "unset")[1]["message"] == 'configmap "late" not found'
    wait_for(lambda: state(kube, "fat")[0].get("restartCount", 0) > 0, "a restart")
    assert state(kube, "fat")[0]["lastState"]["terminated"]["reason"] == "OOMKilled"
    crashed = pods(kube, **{"dafnck/release": "crash"})[0]["metadata"]["name"]
    assert "no database" in api.log("shop", crashed, lines=5, previous=True)
    waiting = pods(kube, **{"dafnck/release": "pulled"})[0]["metadata"]["name"]
    code, said = ask("GET", f"{PODS_OF}/{waiting}/log")
    assert (code, "is waiting to start: ImagePullBackOff" in said["message"]) == (400, True)
    wait_for(
        lambda: {"Failed", "BackOff", "Unhealthy", "FailedScheduling"} <= reasons(kube), "events"
    )
    placed = pods(kube, **{"dafnck/release": "far"})[0]["status"]["conditions"][0]
    assert (placed["reason"], placed["message"][:27]) == (
        "Unschedulable",
        "0/1 nodes are available: 1 ",
    )
    uid = pods(kube, **{"dafnck/release": "crash"})[0]["metadata"]["uid"]
    of_pod = api.list(kind_of("events"), "shop", fields=f"involvedObject.uid={uid}")
    assert {one["involvedObject"]["name"] for one in of_pod} == {crashed}
    pull.pull_error = ""
    ask("POST", CONFIGS, config("late"))
    kube.nodes.add("node2", {"disk": "fast"})
    for name in ("pulled", "unset", "far"):
        wait_for(lambda name=name: ready(kube, name) == 1, f"{name} is well")


def kind_of(plural: str) -> Any:
    from blocks import kube_api

    return {"events": kube_api.EVENTS}[plural]


def reasons(kube: Kube) -> set[str]:
    return {one["reason"] for one in kube.all("Event", "shop")}


def test_what_does_not_progress_is_told(kube: Kube, ask: Client) -> None:
    kube.behave("web", ready=False)
    ask("POST", APPS, edited(deployment(), "spec.progressDeadlineSeconds", 4))

    def told() -> str:
        status = (kube.find("Deployment", "shop", "web") or {}).get("status") or {}
        return str(
            {one["type"]: one["reason"] for one in status.get("conditions", [])}.get("Progressing")
        )

    wait_for(lambda: told() == "ReplicaSetUpdated", "it is on its way")
    wait_for(lambda: told() == "ProgressDeadlineExceeded", "its deadline")


def test_a_pod_that_ends_is_led_out_first(kube: Kube, ask: Client) -> None:
    slow = kube.behave("web", slow_seconds=0.2)
    ask("POST", "/api/v1/namespaces/shop/services", service("web"))
    ask("POST", APPS, deployment(replicas=1, **leaving(40)))
    (address,) = wait_for(lambda: addresses(kube, "web"), "the endpoint")
    answers: list[str] = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.get(f"http://{address}:8080/").text)
    )
    ask("DELETE", f"{PODS_OF}/{pods(kube)[0]['metadata']['name']}")
    wait_for(lambda: addresses(kube, "web", "terminating") == {address}, "it is on its way out")
    assert address not in addresses(kube, "web")
    assert address in addresses(kube, "web", "serving")
    asking.start()
    asking.join()
    assert answers == ["web"], "until it ends it answers"
    slow.slow_seconds = 0.0
    wait_for(lambda: address not in addresses(kube, "web", "terminating"), "its end")
    with pytest.raises(httpx.ConnectError):
        ask.http.get(f"http://{address}:8080/")


def test_a_node_is_lost_and_comes_back(kube: Kube, ask: Client) -> None:
    ask("POST", "/api/v1/namespaces/shop/services", service("web"))
    ask("POST", APPS, deployment(replicas=2))
    wait_for(lambda: len(addresses(kube, "web")) == 2, "endpoints")
    kube.nodes.lose("node1")
    wait_for(lambda: not addresses(kube, "web") and not ready(kube, "web"), "nobody is ready")
    node = (kube.find("Node", "", "node1") or {})["status"]["conditions"][0]
    assert (node["type"], node["status"]) == ("Ready", "Unknown")
    kube.nodes.bring_back("node1")
    wait_for(lambda: len(addresses(kube, "web")) == 2, "endpoints")


def allowed(kube: Kube) -> Any:
    status = (kube.find("PodDisruptionBudget", "shop", "b") or {})["status"]
    return status.get("disruptionsAllowed")


def test_a_budget_keeps_pods_from_eviction(kube: Kube, ask: Client) -> None:
    selector = {"matchLabels": {"dafnck/release": "web"}}
    body = {"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": selector}}
    kube.make("PodDisruptionBudget", body, "shop")
    ask("POST", APPS, deployment(replicas=2))
    wait_for(lambda: ready(kube, "web") == 2, "replicas")
    wait_for(lambda: allowed(kube) == 1, "the budget")
    kube.nodes.behaviours.default.ready = False
    first, second = (one["metadata"]["name"] for one in pods(kube))
    assert ask("POST", f"{PODS_OF}/{first}/eviction", {"metadata": {"name": first}})[0] == 201
    wait_for(lambda: ready(kube, "web") < 2, "one less")
    wait_for(lambda: allowed(kube) == 0, "the budget")
    code, said = ask("POST", f"{PODS_OF}/{second}/eviction", {"metadata": {"name": second}})
    assert (code, said["details"]["causes"][0]["reason"]) == (429, "DisruptionBudget")


def test_an_autoscaler_writes_the_scale(kube: Kube, ask: Client) -> None:
    ask.apply(f"{APPS}/web", deployment(replicas=1), "dafnck")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3}
    kube.make("HorizontalPodAutoscaler", {"metadata": {"name": "h"}, "spec": spec}, "shop")
    kube.autoscale("shop", "h", 9)
    wait_for(lambda: ready(kube, "web") == 3, "replicas")
    assert ask.apply(f"{APPS}/web", deployment(replicas=1), "dafnck")[0] == 409


def test_addresses_of_services_answer(kube: Kube, ask: Client) -> None:
    for name in ("a", "b"):
        ask("POST", APPS, deployment(name, replicas=1))
        wait_for(lambda name=name: ready(kube, name) == 1, name)
    body = service("both", **{"dafnck/release": "a"})
    body["spec"]["ports"][0]["port"] = 8081
    kube.proxy.start()
    address = ask("POST", "/api/v1/namespaces/shop/services", body)[1]["spec"]["clusterIP"]
    wait_for(lambda: addresses(kube, "both"), "endpoints")

    def answer() -> str:
        with plain_http() as http:
            return http.get(f"http://{address}:8081/").text

    assert {answer() for _ in range(3)} == {"a"}
    moved = {"spec": {"selector": {"dafnck/release": "b"}}}
    ask("PATCH", "/api/v1/namespaces/shop/services/both", moved, MERGE)
    wait_for(lambda: answer() == "b", "the other one")


def test_routes_are_taken_up_without_a_controller(kube: Kube, ask: Client) -> None:
    kube.namespace("infra")
    controller = {"controllerName": "traefik.io/gateway-controller"}
    kube.make("GatewayClass", {"metadata": {"name": "traefik"}, "spec": controller})
    listener = {"name": "web", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "traefik", "listeners": [listener]}
    kube.make("Gateway", {"metadata": {"name": "web"}, "spec": spec}, "infra")
    ask.apply(f"{ROUTES}/r", route("r", {"a": 1}))

    def told() -> dict[str, tuple[str, int]]:
        parents = ((kube.find("HTTPRoute", "shop", "r") or {}).get("status") or {}).get(
            "parents", []
        )
        return {
            c["type"]: (c["reason"], c["observedGeneration"])
            for p in parents
            for c in p["conditions"]
        }

    wait_for(lambda: told().get("ResolvedRefs") == ("BackendNotFound", 1), "the backend is missed")
    ask("POST", "/api/v1/namespaces/shop/services", service("a"))
    wait_for(lambda: told()["ResolvedRefs"][0] == "ResolvedRefs", "the backend is there")
    assert told()["Accepted"] == ("Accepted", 1)


# -- the whole -------------------------------------------------------------------------------------


def test_our_client_gets_along(kube: Kube, ask: Client) -> None:
    api: KubeApi = kube.api()
    assert api.version() == (1, 36)
    assert api.apply(deployment())["metadata"]["generation"] == 1
    wait_for(lambda: ready(kube, "web") == 1, "the pod")
    assert [
        one["status"]["phase"] for one in api.list(PODS, "shop", {"dafnck/release": "web"})
    ] == ["Running"]
    ask("PATCH", f"{APPS}/web", {"spec": {"replicas": 4}}, MERGE, fieldManager="kubectl-edit")
    with pytest.raises(
        Conflict, match=r'\.spec\.replicas: conflict with "kubectl-edit" using apps/v1'
    ):
        api.apply(deployment())
    assert api.delete(DEPLOYMENTS, "shop", "web")
    wait_for(lambda: api.get(DEPLOYMENTS, "shop", "web") is None, "its end")


def test_five_hundred_services(kube: Kube) -> None:
    kube.namespace("shop")
    kube.nodes.behaviours.default.serves = False
    began = time.monotonic()
    for number in range(500):
        kube.make("Deployment", deployment(f"s{number}", replicas=1), "shop")
        kube.make("Service", service(f"s{number}"), "shop")
    wait_for(lambda: all(ready(kube, f"s{n}") for n in range(500)), "all of them", 60)
    assert time.monotonic() - began < 30
    assert len(kube.api().list(PODS, "shop")) == 500


def counted(gateway: Gateway, count: int = 100) -> Counter[str]:
    return Counter(gateway.get("r.test").text for _ in range(count))


def test_a_real_gateway_splits_real_requests(
    kube: Kube, ask: Client, kube_gateway: Gateway
) -> None:
    for name in ("a", "b"):
        ask.apply(f"/api/v1/namespaces/shop/services/{name}", service(name))
        ask.apply(f"{APPS}/{name}", deployment(name, replicas=2, **leaving(10)))
        wait_for(lambda name=name: len(addresses(kube, name)) == 2, name)
    ask.apply(f"{ROUTES}/r", route("r", {"a": 90, "b": 10}))
    wait_for(lambda: kube_gateway.get("r.test").status_code == 200, "the route")
    shares = counted(kube_gateway, 200)
    assert 15 <= shares["b"] <= 25
    assert shares["a"] + shares["b"] == 200
    ask.apply(f"{ROUTES}/r", route("r", {"a": 0, "b": 100}))
    wait_for(lambda: counted(kube_gateway, 5) == {"b": 5}, "the change", 5)
    status = (kube.find("HTTPRoute", "shop", "r") or {})["status"]["parents"][0]
    assert {one["observedGeneration"] for one in status["conditions"]} == {2}
    assert "httproute-shop-r" in kube_gateway.http.get(f"{kube_gateway.api}/metrics").text

    ask("PATCH", f"{APPS}/b/scale", {"spec": {"replicas": 1}}, MERGE)
    while len(pods(kube, **{"dafnck/release": "b"})) > 1:
        assert kube_gateway.get("r.test").text == "b"

    kube.behave("b", status=500)
    assert kube_gateway.get("r.test").status_code == 500, "a release gone bad while it runs"
    with kube.away():
        assert counted(kube_gateway, 5) == {"broken": 5}, "what it was told last"
    ask.apply(f"{ROUTES}/r", route("r", {"a": 100, "b": 0}))
    wait_for(lambda: counted(kube_gateway, 5) == {"a": 5}, "it watches again", 15)
