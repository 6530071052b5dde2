"""What a cluster makes of an object before it keeps it: defaults, and what it refuses with 422."""

import json
import re
from collections.abc import Iterator
from typing import Any

from kube_schema import Kind, Object, child, defaulted, refusals
from kube_store import Answer, selects

Cause = tuple[str, str, str]  # reason, message, field
LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
KEY = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
NAMES = {
    LABEL: "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex "
    f"used for validation is '{LABEL}')",
    SUBDOMAIN: "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
    "'-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex "
    f"used for validation is '{SUBDOMAIN}')",
    VALUE: "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' "
    "or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or "
    f"'my_value',  or '12345', regex used for validation is '{VALUE}')",
    KEY: "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used "
    f"for validation is '{KEY}')",
}
ENV = (
    "a valid environment variable name must consist only of printable ASCII characters other "
    "than '='"
)
CONFIG_KEY = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
    "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
UNCHECKED = (
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
    "<nil>",
)
POD_CHANGES = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it "
    "to be set to 1 if it was previously negative)"
)


def invalid(kind: Kind, name: str, causes: list[Cause]) -> Answer:
    """422, as the real one words it."""
    said = [f"{field}: {message}" for _, message, field in causes]
    words = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    what = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details = {
        **({"name": name} if name else {}),
        **({"group": kind.group} if kind.group else {}),
        "kind": kind.kind,
        "causes": [{"reason": r, "message": m, "field": f} for r, m, f in causes],
    }
    return Answer(422, "Invalid", f'{what} "{name}" is invalid: {words}', details)


# -- defaults ------------------------------------------------------------------------------------


def with_defaults(kind: Kind, obj: Object) -> Object:
    if kind.crd:
        return dict(defaulted(kind.schema, obj))
    spec = obj.setdefault("spec", {}) if kind.kind in DEFAULTS else {}
    DEFAULTS.get(kind.kind, lambda spec: None)(spec)
    if kind.kind == "Secret":
        obj.setdefault("type", "Opaque")
    for subject in obj.get("subjects") or []:
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")
    return obj


def _lay_under(obj: Object, **defaults: Any) -> None:
    for name, it in defaults.items():
        if obj.get(name) is None:
            obj[name] = it


def _pod(spec: Object) -> None:
    _lay_under(spec, restartPolicy="Always", dnsPolicy="ClusterFirst",
               schedulerName="default-scheduler",
               terminationGracePeriodSeconds=30, securityContext={})  # fmt: skip
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        image = container.get("image", "")
        latest = "@" not in image and (
            ":" not in image.rpartition("/")[2] or image.endswith(":latest")
        )
        _lay_under(container, terminationMessagePath="/dev/termination-log", resources={},
                   terminationMessagePolicy="File",
                   imagePullPolicy="Always" if latest else "IfNotPresent")  # fmt: skip
        for port in container.get("ports") or []:
            _lay_under(port, protocol="TCP")
        limits = container["resources"].get("limits") or {}
        if limits:
            asked = container["resources"].setdefault("requests", {})
            _lay_under(asked, **limits)
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            if it := container.get(probe):
                _lay_under(
                    it, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3
                )
                if "httpGet" in it:
                    _lay_under(it["httpGet"], path="/", scheme="HTTP")
    for volume in spec.get("volumes") or []:
        for source in ("configMap", "secret"):
            if source in volume:
                _lay_under(volume[source], defaultMode=420)
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]


def _own_pod(spec: Object) -> None:
    _lay_under(spec, enableServiceLinks=True)
    _pod(spec)


def _deployment(spec: Object) -> None:
    _lay_under(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600, strategy={})
    _lay_under(spec["strategy"], type="RollingUpdate")
    if spec["strategy"]["type"] == "RollingUpdate":
        _lay_under(spec["strategy"], rollingUpdate={})
        _lay_under(spec["strategy"]["rollingUpdate"], maxUnavailable="25%", maxSurge="25%")
    _template(spec)


def _template(spec: Object) -> None:
    _lay_under(spec, replicas=1)
    if (spec.get("template") or {}).get("spec"):
        _pod(spec["template"]["spec"])


def _service(spec: Object) -> None:
    _lay_under(spec, type="ClusterIP", sessionAffinity="None")
    if spec["type"] != "ExternalName":
        _lay_under(
            spec,
            internalTrafficPolicy="Cluster",
        )
    if spec["sessionAffinity"] == "ClientIP":
        _lay_under(spec, sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10800}})
    else:
        spec.pop("sessionAffinityConfig", None)
    for port in spec.get("ports") or []:
        _lay_under(port, protocol="TCP", targetPort=port.get("port"))


DEFAULTS = {
    "Pod": _own_pod,
    "Deployment": _deployment,
    "ReplicaSet": _template,
    "Service": _service,
    "HorizontalPodAutoscaler": lambda spec: _lay_under(spec, minReplicas=1),
    "NetworkPolicy": lambda spec: _lay_under(spec, policyTypes=["Ingress"]),
}


# -- what is refused -----------------------------------------------------------------------------


def bad(field: str, value: Any, why: str) -> Cause:
    shown = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return "FieldValueInvalid", f"Invalid value: {shown}: {why}", field


def lacking(field: str, why: str = "") -> Cause:
    return "FieldValueRequired", f"Required value{': ' + why if why else ''}", field


def forbidden(field: str, why: str) -> Cause:
    return "FieldValueForbidden", f"Forbidden: {why}", field


def check(kind: Kind, obj: Object, before: Object | None = None) -> None:
    """Raises Answer 422 with every cause. `before`: what is there."""
    of_schema = [
        c for c in refusals(kind.schema, obj) if not c[2].startswith(("metadata.managed", "status"))
    ]
    if kind.crd and any(cause[0] == "FieldValueRequired" for cause in of_schema):
        of_schema.append(UNCHECKED)
    causes = [*_metadata(kind, obj), *of_schema]
    if not of_schema or not kind.crd:
        causes += list(CHECKS.get(kind.kind, lambda obj: iter(()))(obj))
    if before is not None:
        causes += list(_unchangeable(kind, obj, before))
    if causes:
        raise invalid(kind, obj["metadata"].get("name", ""), list(dict.fromkeys(causes)))


def check_status(kind: Kind, obj: Object) -> None:
    """Of a CRD; the built-in ones take what they are told."""
    if not kind.crd or obj.get("status") is None:
        return
    of_status = child(kind.schema, "status") or {}
    causes = [(r, m, f"status.{f}") for r, m, f in refusals(of_status, obj["status"])]
    if any(cause[0] == "FieldValueRequired" for cause in causes):
        causes.append(UNCHECKED)
    if causes:
        raise invalid(kind, obj["metadata"]["name"], causes)


def _metadata(kind: Kind, obj: Object) -> Iterator[Cause]:
    meta = obj["metadata"]
    name = meta.get("name", "")
    if not name:
        yield lacking("metadata.name", "name or generateName is required")
    elif not kind.group.startswith("rbac."):
        how = LABEL if kind.kind in ("Namespace", "Service") else SUBDOMAIN
        if not re.fullmatch(how, name):
            yield bad("metadata.name", name, NAMES[how])
        if len(name) > (most := 63 if how == LABEL else 253):
            yield bad("metadata.name", name, f"must be no more than {most} characters")
    yield from _labels(meta.get("labels"), "metadata.labels")
    for number, one in enumerate(meta.get("ownerReferences") or []):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not one.get(field):
                yield bad(f"metadata.ownerReferences[{number}].{field}", "", "must not be empty")


def _labels(labels: Object | None, field: str) -> Iterator[Cause]:
    for name, value in (labels or {}).items():
        if not re.fullmatch(rf"({SUBDOMAIN}/)?{KEY}", name):
            yield bad(field, name, NAMES[KEY])
        if len(value) > 63:
            yield bad(field, value, "must be no more than 63 bytes")
        if not re.fullmatch(VALUE, value):
            yield bad(field, value, NAMES[VALUE])


def _workload(obj: Object) -> Iterator[Cause]:
    spec = obj["spec"]
    if spec.get("replicas", 0) < 0:
        yield bad("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
    template = spec.get("template") or {}
    labels = template.get("metadata", {}).get("labels")
    yield from _labels(labels, "spec.template.labels")
    if spec.get("selector") is None or not selects(spec["selector"], labels):
        yield bad(
            "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
        )
    yield from _pod_spec(template.get("spec") or {}, "spec.template.spec")


def _pod_spec(spec: Object, path: str) -> Iterator[Cause]:
    containers = spec.get("containers") or []
    if not containers:
        yield lacking(f"{path}.containers")
    volumes = {one.get("name") for one in spec.get("volumes") or []}
    names: set[str] = set()
    for number, one in enumerate(containers):
        here, name = f"{path}.containers[{number}]", one.get("name", "")
        if name and not re.fullmatch(LABEL, name):
            yield bad(f"{here}.name", name, NAMES[LABEL])
        if name in names:
            yield "FieldValueDuplicate", f'Duplicate value: "{name}"', f"{here}.name"
        names.add(name)
        if not one.get("image"):
            yield lacking(f"{here}.image")
        for at, port in enumerate(one.get("ports") or []):
            yield from _port(port.get("containerPort", 1), f"{here}.ports[{at}].containerPort")
        for at, variable in enumerate(one.get("env") or []):
            if not re.fullmatch(r"[ -<>-~]+", variable.get("name", "")):
                yield bad(f"{here}.env[{at}].name", variable.get("name", ""), ENV)
        for at, mount in enumerate(one.get("volumeMounts") or []):
            if mount.get("name") not in volumes:
                field = f"{here}.volumeMounts[{at}].name"
                yield "FieldValueNotFound", f'Not found: "{mount.get("name")}"', field
        resources = one.get("resources") or {}
        for what, asked in (resources.get("requests") or {}).items():
            limit = (resources.get("limits") or {}).get(what)
            if limit is not None and quantity(asked) > quantity(limit):
                why = f"must be less than or equal to {what} limit of {limit}"
                yield bad(f"{here}.resources.requests", asked, why)


def _port(number: Any, field: str) -> Iterator[Cause]:
    if isinstance(number, int) and not 0 < number < 65536:
        yield bad(field, number, "must be between 1 and 65535, inclusive")


def _service_spec(obj: Object) -> Iterator[Cause]:
    ports = obj["spec"].get("ports") or []
    headless = obj["spec"].get("clusterIP") == "None" or obj["spec"]["type"] == "ExternalName"
    if not ports and not headless:
        yield lacking("spec.ports")
    for number, port in enumerate(ports):
        if len(ports) > 1 and not port.get("name"):
            yield lacking(f"spec.ports[{number}].name")
        yield from _port(port.get("port", 0), f"spec.ports[{number}].port")
        yield from _port(port.get("targetPort", 1), f"spec.ports[{number}].targetPort")
    yield from _labels(obj["spec"].get("selector"), "spec.selector")


def _config(obj: Object) -> Iterator[Cause]:
    for part in ("data", "binaryData"):
        for name in obj.get(part) or {}:
            if not re.fullmatch(r"[-._a-zA-Z0-9]+", name):
                yield bad(f"{part}[{name}]", name, CONFIG_KEY)


def _scaler(obj: Object) -> Iterator[Cause]:
    least, most = obj["spec"].get("minReplicas", 1), obj["spec"].get("maxReplicas", 0)
    if most < 1:
        yield bad("spec.maxReplicas", most, "must be greater than 0")
    if most < least:
        yield bad("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")


def _lease(obj: Object) -> Iterator[Cause]:
    if (seconds := obj.get("spec", {}).get("leaseDurationSeconds", 1)) < 1:
        yield bad("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    if (times := obj.get("spec", {}).get("leaseTransitions", 0)) < 0:
        yield bad("spec.leaseTransitions", times, "must be greater than or equal to 0")


def _budget(obj: Object) -> Iterator[Cause]:
    spec = obj["spec"]
    if "minAvailable" in spec and "maxUnavailable" in spec:
        names = ("minAvailable", "selector", "maxUnavailable", "unhealthyPodEvictionPolicy")
        shown = json.dumps(
            {n[0].upper() + n[1:]: spec.get(n) for n in names}, separators=(",", ":")
        )
        said = f"Invalid value: {shown}: minAvailable and maxUnavailable cannot be both set"
        yield "FieldValueInvalid", said, "spec"


def _route(obj: Object) -> Iterator[Cause]:
    """Of the rules that the CRD has in CEL, those that a router could break."""
    for number, rule in enumerate(obj["spec"].get("rules") or []):
        for at, match in enumerate(rule.get("matches") or []):
            path = match.get("path") or {}
            if path.get("type") != "RegularExpression" and not path.get("value", "/").startswith(
                "/"
            ):
                said = "value must be an absolute path and start with '/' when type one of"
                said = f"{said} ['Exact', 'PathPrefix']"
                yield (
                    "FieldValueInvalid",
                    f"Invalid value: {said}",
                    f"spec.rules[{number}].matches[{at}].path",
                )
        for at, backend in enumerate(rule.get("backendRefs") or []):
            if backend.get("kind", "Service") == "Service" and "port" not in backend:
                said = "Invalid value: Must have port for Service reference"
                yield "FieldValueInvalid", said, f"spec.rules[{number}].backendRefs[{at}]"


CHECKS = {
    "Deployment": _workload,
    "ReplicaSet": _workload,
    "Pod": lambda obj: _pod_spec(obj["spec"], "spec"),
    "Service": _service_spec,
    "ConfigMap": _config,
    "Secret": _config,
    "HorizontalPodAutoscaler": _scaler,
    "Lease": _lease,
    "PodDisruptionBudget": _budget,
    "HTTPRoute": _route,
}


def _unchangeable(kind: Kind, obj: Object, before: Object) -> Iterator[Cause]:
    if kind.kind in ("ConfigMap", "Secret") and before.get("immutable"):
        for field in ("immutable", "data", "binaryData"):
            if (obj.get(field) or None) != (before.get(field) or None):
                yield forbidden(field, "field is immutable when `immutable` is set")
    if kind.kind == "Secret" and obj.get("type") != before.get("type"):
        yield bad("type", obj.get("type"), "field is immutable")
    if kind.kind in ("Deployment", "ReplicaSet", "StatefulSet"):
        if (selector := obj["spec"].get("selector")) != before["spec"].get("selector"):
            yield bad("spec.selector", selector, "field is immutable")
    if kind.kind == "Pod" and _fixed(obj) != _fixed(before):
        yield forbidden("spec", POD_CHANGES)
    if kind.kind == "Service" and (held := before["spec"].get("clusterIP")):
        if (wanted := obj["spec"].get("clusterIP")) and wanted != held:
            yield bad("spec.clusterIPs[0]", [wanted], "may not change once set")
    if kind.kind.endswith("RoleBinding") and obj.get("roleRef") != before.get("roleRef"):
        yield bad("roleRef", obj.get("roleRef"), "cannot change roleRef")


def _fixed(pod: Object) -> Object:
    free = ("tolerations", "activeDeadlineSeconds", "nodeName", "schedulingGates")
    spec = {k: v for k, v in pod["spec"].items() if k not in free}
    parts = [{k: v for k, v in one.items() if k != "image"} for one in spec.get("containers") or []]
    return spec | {"containers": parts}


# -- quantities ----------------------------------------------------------------------------------

SCALES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
          "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}  # fmt: skip


def quantity(text: Any) -> float:
    """500m, 1.5Gi, 2 -> a number"""
    found = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", str(text))
    return float(found[1]) * SCALES[found[2]] if found else 0.0
