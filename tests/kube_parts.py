"""Subresources with bodies of their own, and questions that are about no object."""

import json
from dataclasses import replace

from kube_access import User, may
from kube_apply import json_merge, json_patch
from kube_asked import Asked
from kube_requests import How, Requests, family, stamp
from kube_schema import Kind, Object
from kube_store import Answer, selects

SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def written_part(requests: Requests, asked: Asked, how: How) -> tuple[int, Object] | None:
    """-> code and body; None for what is no such part."""
    kind, where = asked.kind, asked.where
    if asked.part == "scale":
        return 200, _scaled(requests, asked, how)
    if asked.part == "token":
        requests.get(kind, where)
        seconds = (asked.body.get("spec") or {}).get("expirationSeconds", 3600)
        told = {"token": requests.tokens.of_account(*where), "expirationTimestamp": stamp(seconds)}
        return 201, asked.body | {
            "metadata": {"name": where[1], "namespace": where[0]},
            "status": told,
        }
    if asked.part == "eviction":
        return 201, _evicted(requests, asked, how)
    if asked.part == "binding":
        live = requests.get(kind, where)
        spec = live["spec"] | {"nodeName": asked.body["target"]["name"]}
        requests.store.put(family(kind), {**live, "spec": spec, "metadata": dict(live["metadata"])})
        return 201, SUCCESS
    return None


def as_scale(obj: Object) -> Object:
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in kept},
        "spec": {"replicas": spec["replicas"]} if spec.get("replicas") else {},
        "status": {"replicas": status.get("replicas", 0), "selector": selector},
    }


def _scaled(requests: Requests, asked: Asked, how: How) -> Object:
    kind, body = asked.kind, asked.body
    live = requests.get(kind, asked.where)
    if asked.verb == "patch":
        patch = json_patch if asked.patch == "json" else json_merge
        body = patch(as_scale(live), body)
    meta = dict(live["metadata"])
    if asked.verb == "update" or "resourceVersion" in ((asked.body or {}).get("metadata") or {}):
        if version := (body.get("metadata") or {}).get("resourceVersion"):
            meta["resourceVersion"] = version
    replicas = (body.get("spec") or {}).get("replicas", 0)
    new = {**live, "metadata": meta, "spec": live["spec"] | {"replicas": replicas}}
    return as_scale(requests.update(kind, asked.where, new, how))


def _evicted(requests: Requests, asked: Asked, how: How) -> Object:
    pod = requests.get(asked.kind, asked.where)
    for budget in requests.store.all(("policy", "poddisruptionbudgets"), asked.namespace):
        status = budget.get("status") or {}
        if not selects(budget["spec"].get("selector"), pod["metadata"].get("labels")):
            continue
        if status.get("disruptionsAllowed", 0) < 1:
            name, needs = budget["metadata"]["name"], status.get("desiredHealthy", 0)
            has = f"healthy pods and has {status.get('currentHealthy', 0)} currently"
            words = f"The disruption budget {name} needs {needs} {has}"
            causes = [{"reason": "DisruptionBudget", "message": words}]
            said = "Cannot evict pod as it would violate the pod's disruption budget."
            raise Answer(429, "TooManyRequests", said, {"causes": causes})
    options = (asked.body or {}).get("deleteOptions")
    requests.delete(asked.kind, asked.where, options, replace(how, part=""))
    return SUCCESS


def reviewed(requests: Requests, user: User, path: str, content: bytes) -> Object | None:
    """Who am I, may I? None when the path asks neither."""
    if path == "/apis/authentication.k8s.io/v1/selfsubjectreviews":
        said = {"username": user.name, "groups": list(user.groups)}
        head = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}
        return {**head, "status": {"userInfo": said}}
    if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
        try:
            body = json.loads(content)
        except ValueError:
            raise Answer(415, "UnsupportedMediaType", "only JSON is understood here", {}) from None
        wanted = body["spec"].get("resourceAttributes") or {}
        kind = Kind(
            wanted.get("group", ""), "v1", "", wanted.get("resource", ""), True, (), (), False, {}
        )
        where = (wanted.get("subresource", ""), wanted.get("namespace", ""), wanted.get("name", ""))
        verb = wanted.get("verb", "")
        allowed = not requests.rbac or may(requests.store, user, verb, kind, *where)
        head = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
        return {**head, **body, "status": {"allowed": allowed}}
    return None
