"""What was owned goes with its owner: before it (Foreground), after it, or stays (Orphan)."""

from kube_requests import family
from kube_schema import Object
from kube_store import Change, Family, owners
from kube_writing import Look, Writing, where_of

HOLDING = {"foregroundDeletion", "orphan"}


class Garbage:
    def __init__(self, writing: Writing, look: Look) -> None:
        self._w, self._store, self._look = writing, writing.store, look

    def seen(self, which: Family, change: Change) -> None:
        """Whom a change concerns is looked at."""
        meta = change.obj["metadata"]
        if change.type == "DELETED":
            for child, (namespace, name) in list(self._store.children.get(meta["uid"], ())):
                self._look(("gc", child[1]), namespace, name)
            for uid in owners(change.obj):
                owner = self._store.by_uid(uid)
                if owner is not None and "deletionTimestamp" in owner["metadata"]:
                    self._look(("gc", owner["kind"]), *where_of(owner))
            return
        if any(self._store.by_uid(uid) is None for uid in owners(change.obj)):
            self._look(("gc", which[1]), *where_of(change.obj))
        if "deletionTimestamp" in meta and HOLDING & set(meta.get("finalizers") or []):
            self._look(("gc", change.obj["kind"]), *where_of(change.obj))

    def collect(self, what: str, namespace: str, name: str) -> None:
        """Does it wait for what it owns, or did it lose its owners? `what`: its kind or plural."""
        kind = next(k for k in self._w.requests.kinds() if what in (k.plural, k.kind))
        found = self._store.get(family(kind), (namespace if kind.namespaced else "", name))
        if found is None:
            return
        finalizers = found["metadata"].get("finalizers") or []
        if "orphan" in finalizers:
            self._let_go(family(kind), found)
        elif "foregroundDeletion" in finalizers and "deletionTimestamp" in found["metadata"]:
            self._end_children(family(kind), found)
        elif uids := owners(found):
            alive = any(self._store.by_uid(uid) is not None for uid in uids)
            if not alive and "deletionTimestamp" not in found["metadata"]:
                self._w.delete(family(kind), found)

    def _children(self, found: Object) -> list[tuple[Family, Object]]:
        there = list(self._store.children.get(found["metadata"]["uid"], ()))
        both = [(which, self._store.get(which, at)) for which, at in there]
        return [(which, child) for which, child in both if child is not None]

    def _let_go(self, which: Family, found: Object) -> None:
        meta = found["metadata"]
        for family_, child in self._children(found):
            others = [
                one for one in child["metadata"]["ownerReferences"] if one["uid"] != meta["uid"]
            ]
            self._w.update(family_, child, ownerReferences=others)
        rest = [one for one in meta["finalizers"] if one != "orphan"]
        self._w.update(which, found, finalizers=rest)

    def _end_children(self, which: Family, found: Object) -> None:
        meta, waits = found["metadata"], False
        for family_, child in self._children(found):
            mine = next(o for o in child["metadata"]["ownerReferences"] if o["uid"] == meta["uid"])
            if "deletionTimestamp" not in child["metadata"]:
                self._w.delete(family_, child, propagationPolicy="Foreground")
            still = self._store.get(family_, where_of(child)) is not None
            waits = waits or (still and bool(mine.get("blockOwnerDeletion")))
        if not waits:
            rest = [one for one in meta["finalizers"] if one != "foregroundDeletion"]
            self._w.update(which, found, finalizers=rest)
