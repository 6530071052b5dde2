"""What the kinds of a cluster look like, in the cluster's own words.

`fixtures/kube_schema.json` holds the OpenAPI definitions of Kubernetes 1.36 and the schemas of the
Gateway API 1.6 CRDs (both Apache-2.0), without their prose. To have them of another version:
`python tests/kube_schema.py`, with kubectl and a cluster in KUBECONFIG.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Object = dict[str, Any]
FILE = Path(__file__).parent / "fixtures" / "kube_schema.json"
GATEWAY_API = "gateway.networking.k8s.io"
ANYTHING: Object = {"x-kubernetes-preserve-unknown-fields": True}


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    short: tuple[str, ...]
    parts: tuple[str, ...]  # subresources
    crd: bool
    schema: Object = field(hash=False, compare=False, repr=False)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages name it: deployments.apps"""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def generates(self) -> bool:
        """Has metadata.generation: counted up by each change of what is wanted."""
        return "spec" in resolved(self.schema)["properties"] and self.kind not in NO_GENERATION


NO_GENERATION = {"Service", "Node", "Namespace", "Lease", "ResourceQuota", "PersistentVolumeClaim"}


@cache
def definitions() -> dict[str, Object]:
    return dict(json.loads(FILE.read_text())["definitions"])


@cache
def kinds() -> tuple[Kind, ...]:
    found = json.loads(FILE.read_text())["kinds"]
    return tuple(
        Kind(**{**one, "short": tuple(one["short"]), "parts": tuple(one["parts"])}) for one in found
    )


def resolved(schema: Object | None) -> Object:
    while schema is not None and "$ref" in schema:
        schema = definitions()[schema["$ref"].rpartition("/")[2]]
    return ANYTHING if schema is None else schema


def child(schema: Object, name: str) -> Object | None:
    """The schema of a field; None for one that there is not."""
    schema = resolved(schema)
    if (found := schema.get("properties", {}).get(name)) is not None:
        return resolved(found)
    if isinstance(more := schema.get("additionalProperties"), dict):
        return resolved(more)
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "properties" not in schema
    return ANYTHING if open_ended else None


def list_keys(schema: Object) -> list[str] | str | None:
    """By what the items of a list are told apart: names of fields, "set" (by value), or None: it
    is a whole."""
    how = schema.get("x-kubernetes-list-type")
    if how == "map":
        return list(schema["x-kubernetes-list-map-keys"])
    return "set" if how == "set" else None


def unknown_fields(schema: Object, value: Any, path: str = "") -> Iterator[str]:
    """Paths of fields that there are not: spec.template.spec.containers[0].imagee"""
    schema = resolved(schema)
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            if (found := child(schema, name)) is None:
                yield here
            else:
                yield from unknown_fields(found, inner, here)
    elif isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from unknown_fields(schema["items"], inner, f"{path}[{number}]")


def pruned(schema: Object, value: Any) -> Any:
    """Without the fields that there are not."""
    schema = resolved(schema)
    if isinstance(value, dict):
        known = {name: child(schema, name) for name in value}
        return {n: pruned(s, value[n]) for n, s in known.items() if s is not None}
    if isinstance(value, list) and "items" in schema:
        return [pruned(schema["items"], inner) for inner in value]
    return value


def defaulted(schema: Object, value: Any) -> Any:
    """With the defaults that the schema names; of CRDs, the built-in ones have theirs in code."""
    schema = resolved(schema)
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in (found := resolved(inner)):
                value[name] = json.loads(json.dumps(found["default"]))
        return {n: defaulted(child(schema, n) or ANYTHING, v) for n, v in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], inner) for inner in value]
    return value


def refusals(schema: Object, value: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """What the schema forbids: (reason, message, field), as in the causes of a Status."""
    schema = resolved(schema)
    if isinstance(value, dict):
        for name in schema.get("required", []):
            if name not in value:
                here = f"{path}.{name}" if path else name
                yield "FieldValueRequired", "Required value", here
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            yield from refusals(child(schema, name) or ANYTHING, inner, here)
    elif isinstance(value, list):
        if len(value) > (most := schema.get("maxItems", len(value))):
            said = f"Too many: {len(value)}: must have at most {most} items"
            yield "FieldValueTooMany", said, path
        if len(value) < (least := schema.get("minItems", 0)):
            said = f"Invalid value: {len(value)}: {path} in body should have at least {least} items"
            yield "FieldValueInvalid", said, path
        for number, inner in enumerate(value):
            yield from refusals(schema.get("items", ANYTHING), inner, f"{path}[{number}]")
    else:
        yield from _scalar(schema, value, path)


def _scalar(schema: Object, value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    shown = json.dumps(value)
    if (one_of := schema.get("enum")) and value not in one_of:
        words = ", ".join(json.dumps(one) for one in one_of)
        yield (
            "FieldValueNotSupported",
            f"Unsupported value: {shown}: supported values: {words}",
            path,
        )
    if isinstance(value, str):
        pattern = schema.get("pattern")
        if pattern and not re.search(pattern, value):
            said = f"Invalid value: {shown}: {path} in body should match '{pattern}'"
            yield "FieldValueInvalid", said, path
        if len(value) > schema.get("maxLength", len(value)):
            said = f"Too long: may not be more than {schema['maxLength']} bytes"
            yield "FieldValueTooLong", said, path
    elif isinstance(value, int) and not isinstance(value, bool):
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and value < low:
            said = f"{path} in body should be greater than or equal to {low}"
            yield "FieldValueInvalid", f"Invalid value: {shown}: {said}", path
        if high is not None and value > high:
            said = f"{path} in body should be less than or equal to {high}"
            yield "FieldValueInvalid", f"Invalid value: {shown}: {said}", path


# -- how the file is made ------------------------------------------------------------------------

KEPT = [
    "Namespace",
    "Pod",
    "Service",
    "Endpoints",
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "Event",
    "Node",
    "ResourceQuota",
    "LimitRange",
    "PersistentVolumeClaim",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "CronJob",
    "EndpointSlice",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Ingress",
    "HorizontalPodAutoscaler",
    "Lease",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "GatewayClass",
    "Gateway",
    "HTTPRoute",
    "GRPCRoute",
    "ReferenceGrant",
    "BackendTLSPolicy",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
    "ListenerSet",
]
SERVED = ["", "apps", "batch", "discovery.k8s.io", "policy", "networking.k8s.io", "autoscaling",
          "coordination.k8s.io", "rbac.authorization.k8s.io", "apiextensions.k8s.io",
          GATEWAY_API]  # fmt: skip
PROSE = {"description", "x-kubernetes-group-version-kind", "x-kubernetes-validations"}


def _without_prose(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_prose(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _without_prose(v) for k, v in value.items() if k not in PROSE or k == "properties"}
    if isinstance(fields := value.get("properties"), dict):  # a field may be called description
        kept["properties"] = {name: _without_prose(one) for name, one in fields.items()}
    return kept


def _made() -> Object:
    def ask(path: str) -> Object:
        run = subprocess.run(["kubectl", "get", "--raw", path], check=True, capture_output=True)
        return dict(json.loads(run.stdout))

    every = ask("/openapi/v2")["definitions"]
    crds = ask("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    of_crds = {
        (crd["spec"]["group"], one["name"], crd["spec"]["names"]["kind"]): one["schema"]
        for crd in crds
        for one in crd["spec"]["versions"]
    }
    of_kinds = {
        (said["group"], said["version"], said["kind"]): name
        for name, schema in every.items()
        for said in schema.get("x-kubernetes-group-version-kind", [])
    }
    groups = [g for g in ask("/apis")["groups"] if g["name"] in SERVED]
    versions = ["v1", *(v["groupVersion"] for g in groups for v in g["versions"])]
    found = []
    for version in versions:
        resources = ask(f"/apis/{version}" if "/" in version else "/api/v1")["resources"]
        for one in resources:
            if "/" in one["name"] or one["kind"] not in KEPT or version.endswith("autoscaling/v1"):
                continue
            group, _, number = version.rpartition("/")
            parts = [
                o["name"].partition("/")[2]
                for o in resources
                if o["name"].startswith(one["name"] + "/")
            ]
            crd = of_crds.get((group, number, one["kind"]))
            meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
            schema = (
                _without_prose(crd["openAPIV3Schema"])
                if crd
                else {"$ref": f"#/definitions/{of_kinds[group, number, one['kind']]}"}
            )
            if crd:
                schema["properties"]["metadata"] = {"$ref": f"#/definitions/{meta}"}
            found.append({"group": group, "version": number, "kind": one["kind"],
                          "plural": one["name"],
                          "namespaced": one["namespaced"], "short": one.get("shortNames", []),
                          "parts": parts, "crd": bool(crd), "schema": schema})  # fmt: skip
    scaled = {
        "type": "object",
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"$ref": f"#/definitions/{meta}"},
            "spec": ANYTHING,
            "status": ANYTHING,
        },
    }
    found.append({"group": "keda.sh", "version": "v1alpha1", "kind": "ScaledObject",
                  "plural": "scaledobjects", "namespaced": True, "short": ["so"],
                  "parts": ["status"], "crd": True, "schema": scaled})  # fmt: skip
    kept: dict[str, Object] = {}
    todo = [json.dumps(found)]
    while todo:
        for name in set(re.findall(r'"#/definitions/([^"]+)"', todo.pop())) - set(kept):
            kept[name] = _without_prose(every[name])
            if name.endswith(".Quantity"):  # is written as a number too
                kept[name]["format"] = "quantity"
            todo.append(json.dumps(kept[name]))
    return {"kinds": found, "definitions": kept}


def _written(made: Object) -> str:
    """One kind or definition a line."""
    rows = [f"  {json.dumps(one, sort_keys=True)}" for one in made["kinds"]]
    types = [
        f"  {json.dumps(n)}: {json.dumps(s, sort_keys=True)}"
        for n, s in sorted(made["definitions"].items())
    ]
    return (
        '{"kinds": [\n'
        + ",\n".join(rows)
        + '\n], "definitions": {\n'
        + ",\n".join(types)
        + "\n}}\n"
    )


if __name__ == "__main__":
    FILE.write_text(_written(_made()))
