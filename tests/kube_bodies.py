"""What an API server understands of a body: of the right kind, of known fields, of the right types.

The words for what it does not understand are the real one's.
"""

import json
import re
from base64 import b64encode
from typing import Any

from kube_rules import UNCHECKED, Cause, invalid
from kube_schema import ANYTHING, Kind, Object, child, pruned, resolved, unknown_fields
from kube_store import Answer, copied

QUANTITY = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
GO = {"string": "string", "integer": "int32", "boolean": "bool", "array": "[]", "object": "map"}


def understood(
    kind: Kind,
    namespace: str,
    body: Any,
    *,
    strict: bool,
    warnings: list[str],
    patched: bool = False,
) -> Object:
    """-> a copy, without what is not known. `patched`: what it says came by a patch. Raises Answer
    400, or 422."""
    if not isinstance(body, dict):
        raise Answer(
            400,
            "BadRequest",
            f"{_unhandled(kind)}: json: cannot unmarshal",
        )
    _of_kind(kind, body)
    meta = body.get("metadata") or {}
    if kind.namespaced and meta.get("namespace") not in (None, "", namespace):
        said = (
            "the namespace of the provided object does not match the namespace sent on the request"
        )
        raise Answer(400, "BadRequest", said)
    unknown = [f'unknown field "{path}"' for path in unknown_fields(kind.schema, body)]
    if wrong := _wrong(kind.schema, body, kind.kind):
        _refuse(kind, body, wrong, patched)
    if unknown and strict:
        _refuse(kind, body, (f"strict decoding error: {', '.join(unknown)}", ""), patched)
    warnings.extend(unknown)
    obj = without_nulls(pruned(kind.schema, body) if unknown else copied(body))
    obj |= {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": obj.get("metadata") or {},
    }
    if kind.namespaced:
        obj["metadata"]["namespace"] = namespace
    if kind.kind == "Secret" and "stringData" in obj:
        given = {k: b64encode(v.encode()).decode() for k, v in obj.pop("stringData").items()}
        obj["data"] = obj.get("data", {}) | given
    return dict(obj)


def _of_kind(kind: Kind, body: Object) -> None:
    version, name = body.get("apiVersion") or kind.api_version, body.get("kind") or kind.kind
    if name == kind.kind and (
        version == kind.api_version or (kind.crd and version.startswith(kind.group))
    ):
        return
    scheme = 'in scheme "pkg/api/legacyscheme/scheme.go:30"'
    said = f'no kind "{name}" is registered for version "{version}" {scheme}'
    what = f'{name} in version "{version.rpartition("/")[2]}" cannot be handled as a {kind.kind}'
    raise Answer(400, "BadRequest", f"{what}: {said}")


def _refuse(kind: Kind, body: Object, wrong: tuple[str, str], patched: bool) -> None:
    words, field = wrong
    if kind.crd and field:
        name = (body.get("metadata") or {}).get("name", "")
        raise invalid(kind, name, [("FieldValueTypeInvalid", words, field), UNCHECKED])
    if patched:
        said = f"Invalid value: {json.dumps(json.dumps(body))}: {words}"
        causes = [{"reason": "FieldValueInvalid", "message": said, "field": "patch"}]
        raise Answer(422, "Invalid", f' "" is invalid: patch: {said}', {"causes": causes})
    raise Answer(400, "BadRequest", f"{_unhandled(kind)}: {words}")


def _unhandled(kind: Kind) -> str:
    return f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'


def _wrong(schema: Object, value: Any, name: str, path: str = "") -> tuple[str, str] | None:
    """The first value that is not of its type: what is said of it, and of a CRD its field."""
    schema = resolved(schema)
    form, wanted = schema.get("format"), schema.get("type", "")
    if value is None or schema.get("x-kubernetes-int-or-string") or form == "int-or-string":
        return None
    if form == "quantity":
        fits = isinstance(value, int | float) or re.match(QUANTITY, str(value))
        return None if fits else (f"quantities must match the regular expression '{QUANTITY}'", "")
    if wanted in TYPES and (
        not isinstance(value, TYPES[wanted]) or (wanted == "integer" and value is True)
    ):
        return _unfit(wanted, value, name, path)
    layout = (
        f"2006-01-02T15:04:05{'.000000' if wanted == 'string' and name == 'Lease' else ''}Z07:00"
    )
    if form == "date-time" and not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", str(value)):
        return (
            f'parsing time "{value}" as "{layout}": cannot parse "{value}" as "2006"',
            "",
        )
    if isinstance(value, dict):
        inner = [
            (child(schema, n) or ANYTHING, v, f"{path}.{n}" if path else n)
            for n, v in value.items()
        ]
    elif isinstance(value, list):
        inner = [(schema.get("items", ANYTHING), v, f"{path}[{n}]") for n, v in enumerate(value)]
    else:
        return None
    return next((found for s, v, p in inner if (found := _wrong(s, v, name, p))), None)


def _unfit(wanted: str, value: Any, name: str, path: str) -> tuple[str, str]:
    is_ = next((word for word, its in TYPES.items() if type(value) is its), "number")
    json_word = {"integer": "number", "boolean": "bool"}.get(is_, is_)
    shown = json.dumps(is_)
    if "." not in path and path == "":
        return f"json: cannot unmarshal {json_word} into Go value of type {name}", ""
    field = re.sub(r"\[\d+\]", "", path)
    said = f"json: cannot unmarshal {json_word} into Go struct field {name}.{field}"
    said = f"{said} of type {GO[wanted]}"
    crd = f"Invalid value: {shown}: {path} in body must be of type {wanted}: {shown}"
    return (crd, path) if name in CRDS else (said, "")


CRDS = {"HTTPRoute", "GRPCRoute", "Gateway", "GatewayClass", "ReferenceGrant", "BackendTLSPolicy"}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(it) for name, it in value.items() if it is not None}
    return [without_nulls(it) for it in value] if isinstance(value, list) else value


def checked_apply(kind: Kind, body: Any) -> None:
    """What only server-side apply asks of a body."""
    if not isinstance(body, dict) or not body.get("apiVersion") or not body.get("kind"):
        raise Answer(400, "BadRequest", "invalid object type: /, Kind=")
    meta = body.get("metadata") or {}
    if meta.get("managedFields"):
        raise Answer(400, "BadRequest", "metadata.managedFields must be nil")
    for path in unknown_fields(kind.schema, body):
        named = f"{meta.get('namespace', '')}/{meta.get('name', '')}"
        what = f"{named}; {body['apiVersion']}, Kind={kind.kind}"
        said = (
            f"failed to create typed patch object ({what}): .{path}: field not declared in schema"
        )
        raise Answer(500, "", said)


NO_MANAGER: Cause = (
    "FieldValueRequired",
    "Required value: is required for apply patch",
    "fieldManager",
)


def no_manager() -> Answer:
    reason, message, field = NO_MANAGER
    said = f'PatchOptions.meta.k8s.io "" is invalid: {field}: {message}'
    causes = [{"reason": reason, "message": message, "field": field}]
    return Answer(
        422, "Invalid", said, {"group": "meta.k8s.io", "kind": "PatchOptions", "causes": causes}
    )
