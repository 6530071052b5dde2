"""A request to an API server: what it asks for, of whom, how."""

import json
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web
from kube_access import User
from kube_requests import How, Requests
from kube_schema import Kind
from kube_store import Answer

VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
PATCHES = {
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "json",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
    "application/apply-patch+json": "apply",
}


@dataclass(frozen=True)
class Asked:
    verb: str  # get list watch create update patch delete deletecollection
    kind: Kind
    namespace: str
    name: str
    part: str
    query: Any
    body: Any
    content_type: str
    agent: str

    @property
    def where(self) -> tuple[str, str]:
        return (self.space, self.name)

    @property
    def space(self) -> str:
        """Of a Namespace `namespace` is its name, for permissions."""
        return self.namespace if self.kind.namespaced else ""

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.part}" if self.part else self.kind.plural

    @property
    def patch(self) -> str:
        """merge, json, strategic, apply; "" when it is no patch."""
        if self.verb != "patch":
            return ""
        if (how := PATCHES.get(self.content_type)) is None:
            raise Answer(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        return how

    def how(self, user: User) -> How:
        query, told = self.query, self.body if isinstance(self.body, dict) else {}
        dry = query.get("dryRun") or (told.get("dryRun") if self.verb.startswith("delete") else "")
        return How(
            user=user,
            manager=query.get("fieldManager") or ("" if self.patch == "apply" else self.agent),
            dry_run="All" in (dry or ""),
            force=query.get("force") == "true",
            strict=query.get("fieldValidation") == "Strict",
            part=self.part,
        )


def asked(requests: Requests, request: web.BaseRequest, content: bytes) -> Asked | None:
    """None when it is about no objects, or of a kind that the cluster does not have."""
    words = [word for word in request.path.split("/") if word]
    if words[:1] == ["api"] and len(words) > 2:
        version, rest = words[1], words[2:]
    elif words[:1] == ["apis"] and len(words) > 3:
        version, rest = "/".join(words[1:3]), words[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if (kind := requests.kind(version, rest[0])) is None:
        return None
    name, part = (*rest[1:], "", "")[:2]
    if part and part not in kind.parts:
        raise Answer(404, "NotFound", "the server could not find the requested resource", {})
    verb = VERBS.get(request.method, "get")
    if not name:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
        if verb == "list" and request.query.get("watch") in ("true", "1"):
            verb = "watch"
    return Asked(
        verb,
        kind,
        name if kind.plural == "namespaces" else namespace,
        name,
        part,
        request.query,
        _parsed(content, request.content_type) if content else None,
        request.content_type,
        request.headers.get("User-Agent", "unknown").partition("/")[0],
    )


def _parsed(content: bytes, content_type: str) -> Any:
    if "protobuf" in content_type:
        raise Answer(415, "UnsupportedMediaType", "only JSON and YAML are understood here", {})
    try:
        return json.loads(content)
    except ValueError:
        if "yaml" not in content_type:
            said = "couldn't get version/kind; json parse error: the body is no JSON"
            raise Answer(400, "BadRequest", said) from None
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise Answer(400, "BadRequest", f"error decoding YAML: {error}") from None
