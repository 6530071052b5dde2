"""The verbs of an API server upon its store: what it checks, writes and answers.

Every write goes the same way, of a client as of the cluster itself: permitted, defaulted, admitted,
checked, kept. What a client sends is never kept as it is.
"""

import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from kube_access import (
    ADMIN,
    Tokens,
    User,
    check_quota,
    check_security,
    forbidden,
    may,
    refused,
)
from kube_addresses import SERVICES, Addresses
from kube_apply import applied, json_merge, json_patch, strategic, written
from kube_bodies import checked_apply, no_manager, understood
from kube_rules import bad, check, check_status, invalid, with_defaults
from kube_schema import Kind, Object, kinds
from kube_store import Answer, Store, Where, conflict, copied, not_found

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True)
class Write:
    """One write of a client, in the order in which they came. `done`: it was not refused."""

    verb: str  # create update patch apply delete
    plural: str  # pods, deployments/scale
    namespace: str
    name: str
    user: str
    manager: str


@dataclass(frozen=True)
class How:
    """What comes with a request beside its body."""

    user: User = ADMIN
    manager: str = "unknown"
    dry_run: bool = False
    force: bool = False
    strict: bool = False
    part: str = ""
    trusted: bool = False  # the cluster itself writes: it knows what
    warnings: list[str] = field(default_factory=list)


Hook = Callable[[str, Kind, Object], str | None]  # verb, kind, object -> why not


class Requests:
    def __init__(self, store: Store, tokens: Tokens) -> None:
        self.store, self.tokens = store, tokens
        self.rbac = False
        self.absent: set[str] = set()  # groups whose CRDs are not installed
        self.hooks: list[Hook] = []
        self.before_write: list[Callable[[Write], None]] = []  # of clients; may raise an Answer
        self.after_write: list[Callable[[Write], None]] = []
        self.writes: list[Write] = []
        self.calls: Counter[tuple[str, str]] = Counter()  # (verb, resource) of clients
        self.addresses = Addresses(SERVICES)
        self._kinds = {(one.api_version, one.plural): one for one in kinds()}
        self._by_name = {(one.api_version, one.kind): one for one in kinds()}
        self._families = {family(one): one for one in reversed(kinds())}

    # -- kinds ---------------------------------------------------------------------------------

    def kinds(self) -> list[Kind]:
        return [one for one in self._kinds.values() if self._served(one)]

    def kind(self, api_version: str, plural: str) -> Kind | None:
        found = self._kinds.get((api_version, plural))
        return found if found and self._served(found) else None

    def named(self, api_version: str, name: str) -> Kind:
        return self._by_name[api_version, name]

    def of_family(self, which: tuple[str, str]) -> Kind:
        return self._families[which]

    def _served(self, kind: Kind) -> bool:
        return kind.group not in self.absent

    # -- permission ----------------------------------------------------------------------------

    def permit(self, how: How, verb: str, kind: Kind, namespace: str, name: str) -> None:
        if self.rbac and not may(self.store, how.user, verb, kind, how.part, namespace, name):
            raise refused(how.user, verb, kind, how.part, namespace, name)

    # -- reading -------------------------------------------------------------------------------

    def get(self, kind: Kind, where: Where) -> Object:
        if (found := self.store.get(family(kind), where)) is None:
            raise not_found(kind, where[1])
        return found

    # -- writing -------------------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, body: Object, how: How = How()) -> Object:
        with self.store.lock:
            obj = self._received(kind, namespace, body, how)
            meta = obj["metadata"]
            if not meta.get("name") and (begin := meta.get("generateName")):
                meta["name"] = begin + "".join(secrets.choice(ALPHABET) for _ in range(5))
            name = meta.get("name", "")
            self._place(kind, namespace, name)
            if "status" in kind.parts and how.user.name.partition(":")[0] != "system":
                obj.pop("status", None)
            meta.pop("resourceVersion", None) if not name else None
            if meta.get("resourceVersion"):
                raise Answer(500, "", "resourceVersion should not be set on objects to be created")
            obj = with_defaults(kind, obj)
            meta = obj["metadata"]
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": stamp()}
            meta.pop("deletionTimestamp", None)
            if kind.generates:
                meta["generation"] = 1
            self._complete(kind, obj)
            self._admit("create", kind, obj, how)
            if not how.trusted:
                check(kind, obj)
            if self.store.get(family(kind), (namespace, name)) is not None:
                details = {
                    "name": name,
                    **({"group": kind.group} if kind.group else {}),
                    "kind": kind.plural,
                }
                said = f'{kind.qualified} "{name}" already exists'
                raise Answer(409, "AlreadyExists", said, details)
            if not meta.get("managedFields") and not how.trusted:
                written(kind, None, obj, how.manager, stamp())
            self._allocate(kind, obj)
            return self._keep(kind, obj, how)

    def update(self, kind: Kind, where: Where, body: Object, how: How = How()) -> Object:
        with self.store.lock:
            obj = self._received(kind, where[0], body, how)
            if obj["metadata"].get("name", where[1]) != where[1]:
                raise _other_name(obj["metadata"]["name"], where[1])
            return self._change(kind, where, obj, how, "update")

    def patch(
        self, kind: Kind, where: Where, how_patched: str, body: Any, how: How = How()
    ) -> Object:
        with self.store.lock:
            live = self.store.get(family(kind), where)
            if how_patched == "apply":
                return self._apply(kind, where, live, body, how)
            if live is None:
                raise not_found(kind, where[1])
            if how_patched == "strategic":
                if kind.crd:
                    said = (
                        "the body of the request was in an unknown format - accepted media types "
                        "include: application/json-patch+json, application/merge-patch+json, "
                        "application/apply-patch+yaml"
                    )
                    raise Answer(415, "UnsupportedMediaType", said)
                new = strategic(kind.schema, live, body)
            else:
                new = json_merge(live, body) if how_patched == "merge" else json_patch(live, body)
            named = body.get("metadata") if isinstance(body, dict) else None
            if not (named or {}).get("resourceVersion") and how_patched != "json":
                new["metadata"] = new["metadata"] | {
                    "resourceVersion": live["metadata"]["resourceVersion"]
                }
            new = self._received(kind, where[0], new, how, patched=True)
            return self._change(kind, where, new, how, "update")

    def _apply(
        self, kind: Kind, where: Where, live: Object | None, body: Object, how: How
    ) -> Object:
        checked_apply(kind, body)
        if how.manager == "":
            raise no_manager()
        meta = body.get("metadata") or {}
        if meta.get("name", where[1]) != where[1]:
            raise _other_name(meta["name"], where[1])
        if live is None:
            if how.part:
                raise not_found(kind, where[1])
            if uid := meta.get("uid"):
                why = f"uid mismatch: the provided object specified uid {uid}"
                why = f"{why}, and no existing object was found"
                raise conflict(kind, where[1], why)
            config = copied(body)
            config["metadata"] = {"name": where[1], **(config.get("metadata") or {})}
            config["metadata"]["namespace"] = where[0]
            new = applied(kind, None, config, how.manager, how.force, stamp())
            new["metadata"] |= {"name": where[1]} | ({"namespace": where[0]} if where[0] else {})
            return self.create(kind, where[0], new, how)
        if (uid := meta.get("uid")) and uid != live["metadata"]["uid"]:
            raise invalid(kind, where[1], [bad("metadata.uid", uid, "field is immutable")])
        given = meta.get("resourceVersion")
        if given and given != live["metadata"]["resourceVersion"]:
            raise conflict(kind, where[1], STALE)
        config = {"status": body.get("status")} if how.part == "status" else body
        new = applied(kind, live, config, how.manager, how.force, stamp(), how.part)
        new = self._received(kind, where[0], new, how)
        return self._change(kind, where, new, how, "apply")

    def _change(self, kind: Kind, where: Where, obj: Object, how: How, verb: str) -> Object:
        live = self.store.get(family(kind), where)
        if live is None:
            raise not_found(kind, where[1])
        meta, held = obj["metadata"], live["metadata"]
        if meta.get("uid") and meta["uid"] != held["uid"]:
            raise conflict(kind, where[1], _other_uid(kind, where, meta["uid"], held["uid"]))
        if meta.get("resourceVersion") and meta["resourceVersion"] != held["resourceVersion"]:
            raise conflict(kind, where[1], STALE)
        if how.part == "status":
            kept = {"managedFields": meta.get("managedFields")} if verb == "apply" else {}
            obj = {**live, "metadata": held | kept, "status": obj.get("status")}
            check_status(kind, obj)
        else:
            obj = {k: v for k, v in obj.items() if "status" not in kind.parts or k != "status"}
            if "status" in kind.parts and "status" in live:
                obj["status"] = live["status"]
            obj = with_defaults(kind, obj)
            obj["metadata"] = meta = dict(obj["metadata"])
            for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp",
                         "deletionGracePeriodSeconds", "namespace", "generateName"):  # fmt: skip
                meta.pop(name, None)
                if name in held:
                    meta[name] = held[name]
            meta["name"] = where[1]
            self._complete(kind, obj, live)
            if kind.generates and wants(obj) != wants(live):
                meta["generation"] = held.get("generation", 0) + 1
            self._admit("update", kind, obj, how)
            if not how.trusted:
                check(kind, obj, live)
        obj["metadata"] = dict(obj["metadata"], resourceVersion=held["resourceVersion"])
        if verb != "apply":
            obj["metadata"]["managedFields"] = held.get("managedFields", [])
        if obj == live:
            return live
        if verb != "apply" and not how.trusted:
            written(kind, live, obj, how.manager, stamp(), how.part)
        return self._keep(kind, obj, how)

    def delete(
        self, kind: Kind, where: Where, options: Object | None = None, how: How = How()
    ) -> Object:
        """-> the object, as it is on its way out, or a Status when it is gone."""
        options = options or {}
        with self.store.lock:
            live = self.get(kind, where)
            meta = live["metadata"]
            for name, word, why in PRECONDITIONS:
                asked = (options.get("preconditions") or {}).get(name)
                if asked and asked != meta[name]:
                    said = (
                        f"the {word} in the precondition ({asked}) does not match the {word} in "
                        f"record ({meta[name]}). The object might have been {why}"
                    )
                    raise conflict(kind, where[1], said, by_kind=True)
            self._admit("delete", kind, live, how)
            finalizers = list(meta.get("finalizers") or [])
            policy = options.get("propagationPolicy") or (
                "Orphan" if options.get("orphanDependents") else "Background"
            )
            for policies, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
                if policy == policies and finalizer not in finalizers:
                    finalizers.append(finalizer)
            grace = self._grace(kind, live, options)
            if how.dry_run:
                return live
            if not finalizers and not grace and kind.kind != "Namespace":
                return self._removed(kind, where)
            if "deletionTimestamp" in meta and finalizers == (meta.get("finalizers") or []):
                if grace >= meta.get("deletionGracePeriodSeconds", 0):
                    return live
            new = {**live, "metadata": {**meta, "deletionTimestamp": stamp(grace)}}
            if kind.kind != "Namespace":
                new["metadata"]["deletionGracePeriodSeconds"] = grace
            if finalizers:
                new["metadata"]["finalizers"] = finalizers
            if "generation" in meta:
                new["metadata"]["generation"] = meta["generation"] + 1
            if kind.kind == "Namespace":
                new["status"] = {"phase": "Terminating"}
            return self.store.put(family(kind), new)

    def _grace(self, kind: Kind, live: Object, options: Object) -> int:
        if kind.kind != "Pod" or not live["spec"].get("nodeName"):
            return 0
        if live.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        wanted = options.get("gracePeriodSeconds")
        return int(
            live["spec"].get("terminationGracePeriodSeconds", 30) if wanted is None else wanted
        )

    def _removed(self, kind: Kind, where: Where) -> Object:
        last = self.store.remove(family(kind), where)
        if kind.kind in ("Pod", "Service", "ServiceAccount", "ResourceQuota"):
            return last
        details = {"name": where[1], **({"group": kind.group} if kind.group else {}),
                   "kind": kind.plural, "uid": last["metadata"]["uid"]}  # fmt: skip
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }

    # -- the parts of a write ------------------------------------------------------------------

    def _received(
        self, kind: Kind, namespace: str, body: Any, how: How, patched: bool = False
    ) -> Object:
        if how.trusted:
            meta = {**body["metadata"], **({"namespace": namespace} if kind.namespaced else {})}
            head = {"apiVersion": kind.api_version, "kind": kind.kind}
            return {**head, **(body if how.part else copied(body)), "metadata": meta}
        return understood(
            kind, namespace, body, strict=how.strict, warnings=how.warnings, patched=patched
        )

    def _place(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        spaces = self.named("v1", "Namespace")
        found = self.get(spaces, ("", namespace))
        if "deletionTimestamp" in found["metadata"]:
            why = f"unable to create new content in namespace {namespace}"
            why = f"{why} because it is being terminated"
            refusal = forbidden(kind, name, why)
            refusal.status["details"]["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise refusal

    def _complete(self, kind: Kind, obj: Object, live: Object | None = None) -> None:
        """What the cluster itself writes into an object."""
        if kind.kind == "Service" and live is not None:
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                if name not in obj["spec"] and name in live["spec"]:
                    obj["spec"][name] = live["spec"][name]
        if kind.kind == "Namespace":
            labels = obj["metadata"].setdefault("labels", {})
            labels["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
            obj.setdefault("spec", {"finalizers": ["kubernetes"]})
            obj.setdefault("status", {"phase": "Active"})
        if kind.kind == "Pod":
            obj.setdefault("status", {"phase": "Pending", "qosClass": "Burstable"})
        if kind.kind in ("Deployment", "ReplicaSet", "PodDisruptionBudget", "ResourceQuota"):
            obj.setdefault("status", {})
        if kind.kind == "Node":
            obj.setdefault("spec", {})

    def _allocate(self, kind: Kind, obj: Object) -> None:
        """What an object gets from the cluster, which is nobody's to manage."""
        if kind.kind == "Pod":
            obj["spec"].setdefault("serviceAccountName", "default")
            obj["spec"]["serviceAccount"] = obj["spec"]["serviceAccountName"]
        if kind.kind != "Service" or obj["spec"]["type"] == "ExternalName":
            return
        spec = obj["spec"]
        if not spec.get("clusterIP"):
            spec["clusterIP"] = self.addresses.take()
        spec["clusterIPs"] = [spec["clusterIP"]]
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        obj.setdefault("status", {"loadBalancer": {}})

    def _admit(self, verb: str, kind: Kind, obj: Object, how: How) -> None:
        for hook in self.hooks:
            if why := hook(verb, kind, obj):
                raise Answer(
                    403, "Forbidden", f'admission webhook "check.test" denied the request: {why}'
                )
        if verb != "create":
            return
        if kind.kind == "Pod":
            account = obj["spec"].get("serviceAccountName", "default")
            namespace = obj["metadata"]["namespace"]
            if self.store.get(("", "serviceaccounts"), (namespace, account)) is None:
                what = f"error looking up service account {namespace}/{account}"
                why = f'{what}: serviceaccount "{account}" not found'
                raise forbidden(kind, obj["metadata"]["name"], why)
            check_security(self.store, kind, obj)
        check_quota(self.store, kind, obj)

    def _keep(self, kind: Kind, obj: Object, how: How) -> Object:
        if how.dry_run:
            return obj
        meta = obj["metadata"]
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            if not meta.get("deletionGracePeriodSeconds") and kind.kind != "Namespace":
                self.store.put(family(kind), obj)
                self.store.remove(family(kind), (meta.get("namespace", ""), meta["name"]))
                return obj
        return self.store.put(family(kind), obj)


PRECONDITIONS = (
    ("uid", "UID", "deleted and then recreated"),
    ("resourceVersion", "ResourceVersion", "modified"),
)
STALE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def _other_name(name: str, asked: str) -> Answer:
    said = f"the name of the object ({name}) does not match the name on the URL ({asked})"
    return Answer(400, "BadRequest", said)


def _other_uid(kind: Kind, where: Where, asked: str, has: str) -> str:
    words = ("/registry", kind.group if kind.crd else "", kind.plural, *where)
    return (
        f"StorageError: invalid object, Code: 4, Key: {'/'.join(filter(None, words))}, "
        "ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: "
        f"UID in precondition: {asked}, UID in object meta: {has}"
    )


def family(kind: Kind) -> tuple[str, str]:
    return kind.group, kind.plural


def wants(obj: Object) -> Object:
    """What a generation counts."""
    return {
        name: it for name, it in obj.items() if name not in ("metadata", "status", "apiVersion")
    }


def stamp(later_seconds: float = 0) -> str:
    at = datetime.fromtimestamp(time.time(), UTC) + timedelta(seconds=later_seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
