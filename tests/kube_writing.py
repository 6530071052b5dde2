"""How a cluster itself writes: as controllers do, through the same door as everybody."""

import hashlib
from dataclasses import replace
from typing import Any

from kube_access import system
from kube_requests import How, Requests, stamp
from kube_schema import Kind, Object
from kube_store import Answer, Family

HOW = How(user=system("kube-controller-manager"), manager="kube-controller-manager", trusted=True)
Look = Any  # (family, namespace, name, later=0): look after it, now or so many seconds later


class Writing:
    def __init__(self, requests: Requests) -> None:
        self.requests, self.store = requests, requests.store

    def kind(self, which: Family) -> Kind:
        return self.requests.of_family(which)

    def owned(self, owner: Object, which: Family) -> list[Object]:
        """What belongs to an object."""
        children = self.store.children.get(owner["metadata"]["uid"], ())
        there = [self.store.get(family, at) for family, at in children if family == which]
        return sorted((one for one in there if one), key=lambda one: one["metadata"]["name"])

    def create(self, which: Family, namespace: str, body: Object) -> Object:
        return self.requests.create(self.kind(which), namespace, body, HOW)

    def delete(self, which: Family, obj: Object, **options: Any) -> None:
        self.requests.delete(self.kind(which), where_of(obj), options, HOW)

    def status(self, which: Family, found: Object, status: Object) -> None:
        """Have its status so."""
        live = self.store.get(which, where_of(found))
        if live is not None and (live.get("status") or {}) != status:
            how = replace(HOW, part="status")
            self.requests.update(self.kind(which), where_of(found), {**live, "status": status}, how)

    def update(
        self, which: Family, found: Object, replicas: int | None = None, **meta: Any
    ) -> None:
        """Have these metadata so, and as many replicas; a no-op when it is gone."""
        if (live := self.store.get(which, where_of(found))) is None:
            return
        new = {**live, "metadata": live["metadata"] | meta}
        if replicas is not None:
            new["spec"] = live["spec"] | {"replicas": replicas}
        self.requests.update(self.kind(which), where_of(found), new, HOW)

    def event(
        self, about: Object, how: str, reason: str, message: str, who: str = "controller-manager"
    ) -> None:
        """An Event, or one more of the same."""
        meta, events = about["metadata"], ("", "events")
        namespace = meta.get("namespace") or "default"
        number = hashlib.sha256(f"{meta['uid']}{reason}{message}".encode()).hexdigest()[:16]
        name = f"{meta['name']}.{number}"
        if (before := self.store.get(events, (namespace, name))) is not None:
            again = {"count": before["count"] + 1, "lastTimestamp": stamp()}
            self.store.put(events, before | again | {"metadata": dict(before["metadata"])})
            return
        involved = {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": namespace,
            **{field: meta[field] for field in ("name", "uid", "resourceVersion")},
        }
        body = {
            "metadata": {"name": name},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": how,
            "count": 1,
            "firstTimestamp": stamp(),
            "lastTimestamp": stamp(),
            "source": {"component": who},
            "reportingComponent": who,
            "reportingInstance": "",
        }
        try:
            self.create(events, namespace, body)
        except Answer:
            return  # its namespace is going


def where_of(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def owner_of(found: Object) -> Object:
    """A reference of what an object made."""
    meta = found["metadata"]
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": meta["name"],
            "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}  # fmt: skip


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def counts(pod: Object) -> bool:
    """As a replica: it runs, or will."""
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" not in pod["metadata"] and phase not in ("Succeeded", "Failed")


def share_of(value: Any, whole: int, *, up: bool) -> int:
    """3, or "25%" of the whole."""
    if not str(value).endswith("%"):
        return int(value)
    share = whole * int(str(value)[:-1])
    return -(-share // 100) if up else share // 100
