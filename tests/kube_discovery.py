"""Which kinds a cluster has, as clients ask for it."""

from kube_requests import Requests
from kube_schema import Kind, Object

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
PARTS = {"scale": ("autoscaling", "v1", "Scale"), "eviction": ("policy", "v1", "Eviction"),
         "token": ("authentication.k8s.io", "v1", "TokenRequest")}  # fmt: skip
REVIEWS = {
    "authorization.k8s.io/v1": [("selfsubjectaccessreviews", "SelfSubjectAccessReview")],
    "authentication.k8s.io/v1": [("selfsubjectreviews", "SelfSubjectReview")],
}


def discovered(requests: Requests, path: str) -> Object | str | None:
    """None when the path asks for something else."""
    words = [word for word in path.split("/") if word]
    if path in ("/healthz", "/readyz", "/livez"):
        return "ok"
    if words[:2] == ["openapi", "v3"]:
        return _openapi(requests, "/".join(words[2:]))
    if words == ["version"]:
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"}
    if words == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if words == ["api", "v1"]:
        return _resources(requests, "v1")
    if words == ["apis"]:
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(requests)}
    if words[:1] == ["apis"] and len(words) == 2:
        found = next((one for one in _groups(requests) if one["name"] == words[1]), None)
        return found and {"kind": "APIGroup", "apiVersion": "v1", **found}
    if words[:1] == ["apis"] and len(words) == 3:
        return _resources(requests, "/".join(words[1:]))
    return None


def _groups(requests: Requests) -> list[Object]:
    versions: dict[str, list[str]] = {}
    for one in [*(kind.api_version for kind in requests.kinds()), *REVIEWS]:
        group, slash, version = one.partition("/")
        if slash and version not in versions.setdefault(group, []):
            versions[group].append(version)
    found = []
    for group, names in versions.items():
        said = [{"groupVersion": f"{group}/{name}", "version": name} for name in sorted(names)]
        found.append({"name": group, "versions": said, "preferredVersion": said[0]})
    return found


def _resources(requests: Requests, version: str) -> Object | None:
    found = [one for kind in requests.kinds() if kind.api_version == version for one in _rows(kind)]
    for plural, name in REVIEWS.get(version, []):
        found.append(
            {
                "name": plural,
                "singularName": "",
                "namespaced": False,
                "kind": name,
                "verbs": ["create"],
            }
        )
    if not found:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": found,
    }


def _openapi(requests: Requests, place: str) -> Object:
    """As much as kubectl asks: may a write be validated, and tried?"""
    roots = {one.api_version: "apis" if one.group else "api" for one in requests.kinds()}
    if not place:
        places = {f"{root}/{version}" for version, root in roots.items()}
        return {"paths": {one: {"serverRelativeURL": f"/openapi/v3/{one}"} for one in places}}
    names = ("fieldValidation", "dryRun", "fieldManager", "force")
    asked = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    paths = {}
    for kind in requests.kinds():
        if place == f"{roots[kind.api_version]}/{kind.api_version}":
            said = {"group": kind.group, "version": kind.version, "kind": kind.kind}
            patch = {"parameters": asked, "x-kubernetes-group-version-kind": said, "responses": {}}
            paths[f"/{place}/{kind.plural}/{{name}}"] = {"patch": patch}
    info = {"title": "Kubernetes", "version": "v1.36.2"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


def _rows(kind: Kind) -> list[Object]:
    whole = {"name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.namespaced,
             "kind": kind.kind, "verbs": VERBS, "shortNames": list(kind.short)}  # fmt: skip
    rows = [whole]
    for part in kind.parts:
        group, version, name = PARTS.get(part, ("", "", kind.kind))
        row = {"name": f"{kind.plural}/{part}", "singularName": "", "namespaced": kind.namespaced,
               "kind": name, "verbs": ["get", "patch", "update"]}  # fmt: skip
        rows.append(row | ({"group": group, "version": version} if group else {}))
    return rows
