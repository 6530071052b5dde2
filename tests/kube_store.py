"""What an API server keeps: objects by kind, a version for each change, and who watches.

Invariants: an object that was put is never changed in place, a change puts another one; all of it
happens under `lock`, in the order of the versions.
"""

import json
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kube_schema import Kind, Object

HISTORY = 4000  # changes of a kind that a watch can begin before
Where = tuple[str, str]  # namespace ("" of cluster-wide objects), name
Family = tuple[str, str]  # group, plural: the same objects in all versions


class Answer(Exception):
    """Anything but a success, as a Status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Object | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.headers = code, headers or {}
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": details} if details is not None else {}),
            "code": code,
        }


def not_found(kind: Kind, name: str) -> Answer:
    details = {"name": name, **({"group": kind.group} if kind.group else {}), "kind": kind.plural}
    return Answer(404, "NotFound", f'{kind.qualified} "{name}" not found', details)


def conflict(kind: Kind, name: str, why: str, *, by_kind: bool = False) -> Answer:
    named = kind.kind if by_kind else kind.plural
    what = f"{named}.{kind.group}" if kind.group else named
    details = {"name": name, **({"group": kind.group} if kind.group else {}), "kind": named}
    said = f'Operation cannot be fulfilled on {what} "{name}": {why}'
    return Answer(409, "Conflict", said, details)


def gone(message: str) -> Answer:
    return Answer(410, "Expired", message)


@dataclass(frozen=True)
class Change:
    version: int
    type: str  # ADDED MODIFIED DELETED
    obj: Object
    before: Object | None


Watcher = Callable[[Family, Change], None]


class Store:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 1
        self.objects: dict[Family, dict[str, dict[str, Object]]] = defaultdict(dict)
        self.children: dict[str, set[tuple[Family, Where]]] = defaultdict(set)  # by owner's uid
        self._uids: dict[str, tuple[Family, Where]] = {}
        self._history: dict[Family, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._forgotten: dict[Family, int] = defaultdict(int)
        self.watchers: dict[Family, list[Watcher]] = defaultdict(list)
        self.everything: list[Watcher] = []  # those who are told of all kinds

    def get(self, family: Family, where: Where) -> Object | None:
        return self.objects[family].get(where[0], {}).get(where[1])

    def by_uid(self, uid: str) -> Object | None:
        found = self._uids.get(uid)
        return self.get(*found) if found else None

    def all(self, family: Family, namespace: str = "") -> list[Object]:
        """In the order of namespaces and names, as etcd has them."""
        places = self.objects[family]
        if namespace:
            held = places.get(namespace, {})
            return [held[name] for name in sorted(held)]
        return [places[one][name] for one in sorted(places) for name in sorted(places[one])]

    def put(self, family: Family, obj: Object) -> Object:
        """`obj` belongs to the store from here on."""
        with self.lock:
            meta = obj["metadata"]
            where = (meta.get("namespace", ""), meta["name"])
            before = self.get(family, where)
            self.version += 1
            meta["resourceVersion"] = str(self.version)
            self._index(family, where, before, obj)
            self.objects[family].setdefault(where[0], {})[where[1]] = obj
            self._tell(family, Change(self.version, "MODIFIED" if before else "ADDED", obj, before))
            return obj

    def remove(self, family: Family, where: Where) -> Object:
        with self.lock:
            before = self.objects[family][where[0]].pop(where[1])
            self.version += 1
            self._index(family, where, before, None)
            last = {
                **before,
                "metadata": before["metadata"] | {"resourceVersion": str(self.version)},
            }
            self._tell(family, Change(self.version, "DELETED", last, before))
            return last

    def since(self, family: Family, version: int) -> list[Change]:
        """Changes after this version. Raises Answer 410 when some of them are forgotten."""
        history = self._history[family]
        if version < self._forgotten[family]:
            raise gone(f"too old resource version: {version} ({self._forgotten[family]})")
        return [change for change in history if change.version > version]

    def forgotten(self, family: Family) -> int:
        return self._forgotten[family]

    def forget(self) -> None:
        """As after a compaction: watches begin anew."""
        with self.lock:
            self.version += 1
            for family in list(self.objects):
                self._history[family].clear()
                self._forgotten[family] = self.version

    def _index(
        self, family: Family, where: Where, before: Object | None, after: Object | None
    ) -> None:
        if before is not None:
            self._uids.pop(before["metadata"]["uid"], None)
            for uid in owners(before):
                self.children[uid].discard((family, where))
        if after is not None:
            self._uids[after["metadata"]["uid"]] = (family, where)
            for uid in owners(after):
                self.children[uid].add((family, where))

    def _tell(self, family: Family, change: Change) -> None:
        history = self._history[family]
        if len(history) == HISTORY:
            self._forgotten[family] = history[0].version
        history.append(change)
        for watcher in [*self.watchers[family], *self.everything]:
            watcher(family, change)


def owners(obj: Object) -> list[str]:
    return [one["uid"] for one in obj["metadata"].get("ownerReferences") or []]


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: copied(inner) for name, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


# -- selectors -----------------------------------------------------------------------------------

Test = Callable[[Object], bool]
LABEL = r"(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
TERM = re.compile(
    rf"\s*(?:(?P<key>{LABEL})\s+(?P<how>in|notin)\s*\((?P<values>[^)]*)\)"
    rf"|(?P<not>!)\s*(?P<absent>{LABEL})"
    rf"|(?P<name>{LABEL})\s*(?:(?P<op>==|!=|=)\s*(?P<value>[A-Za-z0-9_.-]*))?)\s*(?:,|$)"
)


def labels_test(selector: str) -> Test:
    """Of a labelSelector: a=b,c!=d,e in (f,g),h notin (i),j,!k. Raises Answer 400."""
    terms, at = [], 0
    while at < len(selector):
        if not (found := TERM.match(selector, at)):
            found_ = selector[at:].split()[-1:] or [""]
            said = f"unable to parse requirement: found '{found_[0]}'"
            said = f"{said}, expected: in, notin, =, ==, !=, gt, lt"
            raise Answer(400, "BadRequest", said)
        terms.append(found.groupdict())
        at = found.end()
    return lambda obj: all(_fits(t, obj["metadata"].get("labels") or {}) for t in terms)


def _fits(term: dict[str, str | None], labels: dict[str, str]) -> bool:
    if term["not"]:
        return term["absent"] not in labels
    if term["key"]:
        among = labels.get(term["key"]) in [
            one.strip() for one in (term["values"] or "").split(",")
        ]
        return among if term["how"] == "in" else not among
    has = labels.get(term["name"] or "")
    if term["op"] is None:
        return has is not None
    return has != term["value"] if term["op"] == "!=" else has == term["value"]


def selects(selector: Object | None, labels: dict[str, str] | None) -> bool:
    """A LabelSelector: matchLabels and matchExpressions. An empty one selects all."""
    labels = labels or {}
    if any(labels.get(k) != v for k, v in ((selector or {}).get("matchLabels") or {}).items()):
        return False
    for one in (selector or {}).get("matchExpressions") or []:
        has, values = labels.get(one["key"]), one.get("values") or []
        fits = {
            "In": has in values,
            "NotIn": has not in values,
            "Exists": has is not None,
            "DoesNotExist": has is None,
        }
        if not fits[one["operator"]]:
            return False
    return True


FIELDS = {
    "pods": {"status.phase", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName",
             "spec.schedulerName", "status.podIP"},
    "events": {"involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "type",
               "involvedObject.uid", "involvedObject.fieldPath", "reason",
               "involvedObject.apiVersion",
               "reportingComponent", "source"},
    "secrets": {"type"},
    "namespaces": {"status.phase"},
    "nodes": {"spec.unschedulable"},
    "replicasets": {"status.replicas"},
}  # fmt: skip


def fields_test(kind: Kind, selector: str) -> Test:
    """Raises Answer 400 for a field that the kind does not know here."""
    terms = []
    for part in filter(None, selector.split(",")):
        name, no, value = re.findall(r"([^=!]*)(!?)==?(.*)", part)[0]
        known = {"metadata.name"} | ({"metadata.namespace"} if kind.namespaced else set())
        if name not in known | FIELDS.get(kind.plural, set()):
            said = f"field label not supported: {name}"
            if kind.plural not in FIELDS:
                labels = '"metadata.name", "metadata.namespace"'
                said = f'"{name}" is not a known field selector: only {labels}'
            raise Answer(400, "BadRequest", said)
        terms.append((name.split("."), bool(no), value))

    def test(obj: Object) -> bool:
        for path, no, value in terms:
            at: Any = obj
            for step in path:
                at = (at or {}).get(step) if isinstance(at, dict) else None
            if (str(at if at is not None else "") == value) is no:
                return False
        return True

    return test


def text_of(obj: Object) -> bytes:
    return json.dumps(obj, separators=(",", ":")).encode()


def seen(changes: Iterator[Change] | list[Change], test: Test) -> Iterator[tuple[str, Object]]:
    """What a watch with a selector is told: an object that leaves it is deleted for it."""
    for change in changes:
        now = change.type != "DELETED" and test(change.obj)
        before = change.before is not None and test(change.before)
        if now:
            yield ("MODIFIED" if before else "ADDED"), change.obj
        elif before:
            gone = (
                change.obj
                if change.type == "DELETED"
                else {
                    **change.before,  # type: ignore[dict-item]
                    "metadata": change.before["metadata"]
                    | {"resourceVersion": str(change.version)},  # type: ignore[index]
                }
            )
            yield "DELETED", gone
