"""Patches of all four types, and who manages which field.

A field is a path: ("f:spec", 'k:{"name":"app"}', "f:image"), as in managedFields. Source of the
rules: sigs.k8s.io/structured-merge-diff, merge/update.go.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonpatch
from kube_schema import ANYTHING, Kind, Object, child, list_keys, resolved
from kube_store import Answer, copied

Path = tuple[str, ...]
Fields = set[Path]
ITEM = object()  # an item of a list, as such
NOBODYS = {"name", "namespace", "uid", "generation", "creationTimestamp", "resourceVersion",
           "managedFields", "selfLink", "generateName", "deletionTimestamp",
           "deletionGracePeriodSeconds"}  # fmt: skip


# -- fields --------------------------------------------------------------------------------------


def flat(schema: Object, value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each field that somebody can manage, with its value."""
    schema = resolved(schema)
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        for name, inner in value.items():
            yield from flat(child(schema, name) or ANYTHING, inner, (*at, f"f:{name}"))
    elif isinstance(value, list) and value and (keys := list_keys(schema)):
        for item in value:
            here = (*at, item_of(schema, keys, item))
            yield here, ITEM
            if isinstance(item, dict):
                yield from flat(schema["items"], item, here)
    elif at:
        yield at, value


def item_of(schema: Object, keys: list[str] | str, item: Any) -> str:
    if keys == "set":
        return "v:" + json.dumps(item, separators=(",", ":"))
    return "k:" + json.dumps(key_of(schema, keys, item), separators=(",", ":"), sort_keys=True)


def key_of(schema: Object, keys: list[str] | str, item: Object) -> Object:
    properties = resolved(schema["items"]).get("properties", {})
    found = {}
    for key in keys:
        default = resolved(properties.get(key)).get("default")
        default = "TCP" if default is None and key == "protocol" else default
        if (value := item.get(key, default)) is not None:
            found[key] = value
    return found


def managed(kind: Kind, obj: Object, part: str = "") -> dict[Path, Any]:
    """The fields of an object that are subject to managers, with their values."""
    meta = {name: it for name, it in obj.get("metadata", {}).items() if name not in NOBODYS}
    kept = {name: it for name, it in obj.items() if name not in ("apiVersion", "kind", "metadata")}
    if part == "status":
        kept = {"status": kept["status"]} if "status" in kept else {}
    elif "status" in kind.parts:
        kept.pop("status", None)
    return dict(flat(kind.schema, kept | ({"metadata": meta} if meta else {})))


def as_tree(fields: Fields) -> Object:
    """FieldsV1."""
    tree: Object = {}
    ends = []
    for path in sorted(fields):
        at = tree
        for step in path:
            at = at.setdefault(step, {})
        ends.append(at)
    for at in ends:
        if at:
            at["."] = {}
    return tree


def as_fields(tree: Object, at: Path = ()) -> Fields:
    found: Fields = {at} if at and (not tree or "." in tree) else set()
    for step, inner in tree.items():
        if step != ".":
            found |= as_fields(inner, (*at, step))
    return found


def in_words(path: Path) -> str:
    words = ""
    for step in path:
        kind, _, what = step.partition(":")
        if kind == "f":
            words += f".{what}"
        elif kind == "v":
            words += f"[={what}]"
        else:
            keys = json.loads(what).items()
            words += "[" + ",".join(f"{k}={json.dumps(v)}" for k, v in keys) + "]"
    return words


# -- managers ------------------------------------------------------------------------------------


def written(
    kind: Kind, before: Object | None, after: Object, manager: str, now: str, part: str = ""
) -> None:
    """Note in `after` who manages what, after a write that was no apply."""
    entries = _entries(before)
    old, new = managed(kind, before or {}, part), managed(kind, after, part)
    changed = {path for path, it in new.items() if path not in old or old[path] != it}
    removed = set(old) - set(new)
    who = (manager, "Update", part)
    for entry in entries:
        if _who(entry) != who:
            _keep(entry, lambda fields: fields - changed - removed)
    mine = next((entry for entry in entries if _who(entry) == who), None)
    if mine is None and changed:
        entries.append(mine := _entry(kind, manager, "Update", part))
    if mine is not None and (changed or removed):
        _keep(mine, lambda fields: (fields | changed) - removed)
        mine["time"] = now
    _note(after, entries)


def applied(
    kind: Kind,
    live: Object | None,
    config: Object,
    manager: str,
    force: bool,
    now: str,
    part: str = "",
) -> Object:
    """The object as it becomes when `manager` applies `config`. Raises Answer 409."""
    entries = _entries(live)
    who = (manager, "Apply", part)
    mine = next((entry for entry in entries if _who(entry) == who), None)
    others = [entry for entry in entries if entry is not mine]
    had = as_fields(mine["fieldsV1"]) if mine else set()
    wants = set(managed(kind, config, part))
    config = {name: it for name, it in config.items() if name != "metadata"} | {
        "metadata": {k: v for k, v in config.get("metadata", {}).items() if k not in NOBODYS}
    }
    new = copied(merged(kind.schema, live, config) if live else config)
    theirs: Fields = set().union(*(as_fields(entry["fieldsV1"]) for entry in others))
    for path in sorted(had - wants, key=len):  # an item before what is in it
        held = any(other[: len(path)] == path for other in theirs | wants)
        if not held and not _is_key(path):
            _drop(kind.schema, new, path)
    before, after = managed(kind, live or {}, part), managed(kind, new, part)
    changed = {path for path, it in after.items() if path not in before or before[path] != it}
    removed = set(before) - set(after)
    clashes = []
    for entry in others:
        if lost := as_fields(entry["fieldsV1"]) & changed:
            clashes.append((entry, sorted(lost)))
        _keep(entry, lambda fields: fields - changed - removed)
    if clashes and not force:
        raise _clash(clashes)
    if mine is None:
        mine = _entry(kind, manager, "Apply", part)
    same = mine in entries and as_fields(mine["fieldsV1"]) == wants and not changed and not removed
    mine["fieldsV1"] = as_tree(wants)
    mine["time"] = mine["time"] if same else now
    _note(new, [mine, *others] if wants else others)
    return new


def _clash(clashes: list[tuple[Object, list[Path]]]) -> Answer:
    causes, words = [], []
    for entry, paths in sorted(clashes, key=lambda clash: str(clash[0]["manager"])):
        who = f'"{entry["manager"]}"'
        if entry.get("subresource"):
            who += f' with subresource "{entry["subresource"]}"'
        if entry["operation"] == "Update":
            who += f" using {entry['apiVersion']}"
        fields = [in_words(path) for path in paths]
        causes += [
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": field}
            for field in fields
        ]
        if sum(len(theirs) for _, theirs in clashes) == 1:
            words.append(f"conflict with {who}: {fields[0]}")
        else:
            words.append("\n- ".join([f"conflicts with {who}:", *fields]))
    many = f"{len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    said = f"Apply failed with {many}: {chr(10).join(words)}"
    return Answer(409, "Conflict", said, {"causes": causes})


def _entries(obj: Object | None) -> list[Object]:
    return copied((obj or {}).get("metadata", {}).get("managedFields") or [])


def _who(entry: Object) -> tuple[str, str, str]:
    return entry["manager"], entry["operation"], entry.get("subresource", "")


def _entry(kind: Kind, manager: str, operation: str, part: str) -> Object:
    made = {"manager": manager, "operation": operation, "apiVersion": kind.api_version, "time": "",
            "fieldsType": "FieldsV1", "fieldsV1": {}}  # fmt: skip
    return made | ({"subresource": part} if part else {})


def _keep(entry: Object, change: Any) -> None:
    entry["fieldsV1"] = as_tree(change(as_fields(entry["fieldsV1"])))


def _note(obj: Object, entries: list[Object]) -> None:
    obj["metadata"]["managedFields"] = [entry for entry in entries if entry["fieldsV1"]]


# -- merging -------------------------------------------------------------------------------------


def merged(schema: Object, live: Any, config: Any) -> Any:
    """`config` over `live`; lists with keys item by item, in the order of `config`."""
    schema = resolved(schema)
    if isinstance(live, dict) and isinstance(config, dict):
        if schema.get("x-kubernetes-map-type") == "atomic":
            return copied(config)
        made = dict(live)
        for name, it in config.items():
            inner = child(schema, name) or ANYTHING
            made[name] = merged(inner, live[name], it) if name in live else copied(it)
        return made
    if isinstance(live, list) and isinstance(config, list) and (keys := list_keys(schema)):
        there = {item_of(schema, keys, item): item for item in live}
        wanted = {item_of(schema, keys, item): item for item in config}
        left, right, made = list(there), list(wanted), []
        while left or right:  # what only the live one has comes as early as it may
            if left and left[0] not in wanted:
                made.append(there[left.pop(0)])
                continue
            name = right.pop(0)
            both = name in there
            made.append(
                merged(schema["items"], there[name], wanted[name]) if both else wanted[name]
            )
            left = [one for one in left if one != name]
        return made
    return copied(config)


def _is_key(path: Path) -> bool:
    """Of a field by which an item is told apart: it goes with the item."""
    _, name = path[-1].split(":", 1)
    return len(path) > 1 and path[-2][0] == "k" and name in json.loads(path[-2][2:])


def _drop(schema: Object, obj: Any, path: Path) -> None:
    """Remove a field, and what of its way there is empty then."""
    way: list[tuple[Any, Any]] = []
    at, schema = obj, resolved(schema)
    for step in path:
        kind, _, what = step.partition(":")
        if kind == "f":
            if not isinstance(at, dict) or what not in at:
                return
            way.append((at, what))
            at, schema = at[what], child(schema, what) or ANYTHING
        else:
            keys = list_keys(schema) or "set"
            if not isinstance(at, list):
                return
            index = next((n for n, it in enumerate(at) if item_of(schema, keys, it) == step), None)
            if index is None:
                return
            way.append((at, index))
            at, schema = at[index], resolved(schema["items"])
    holder, name = way.pop()
    del holder[name]
    while way and holder in ({}, []):
        holder, name = way.pop()
        del holder[name]


def json_merge(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copied(patch)
    made = dict(live) if isinstance(live, dict) else {}
    for name, it in patch.items():
        if it is None:
            made.pop(name, None)
        else:
            made[name] = json_merge(made.get(name), it)
    return made


def json_patch(live: Object, patch: Any) -> Object:
    try:
        return dict(jsonpatch.JsonPatch(patch).apply(copied(live)))
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError):
        said = "the server rejected our request due to an error in our request"
        raise Answer(422, "Invalid", said, {}) from None


def strategic(schema: Object, live: Any, patch: Any) -> Any:
    """As kubectl and the controllers of a cluster patch: lists by their patch-merge-key."""
    schema = resolved(schema)
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {name: copied(it) for name, it in patch.items() if name != "$patch"}
        made = dict(live) if isinstance(live, dict) else {}
        if "$retainKeys" in patch:
            made = {name: it for name, it in made.items() if name in patch["$retainKeys"]}
        for name, it in patch.items():
            if name.startswith("$deleteFromPrimitiveList/"):
                name = name.partition("/")[2]
                made[name] = [one for one in made.get(name, []) if one not in it]
            elif name.startswith("$"):
                continue
            elif it is None or (isinstance(it, dict) and it.get("$patch") == "delete"):
                made.pop(name, None)
            else:
                made[name] = strategic(child(schema, name) or ANYTHING, made.get(name), it)
        return made
    if not isinstance(patch, list) or "merge" not in schema.get("x-kubernetes-patch-strategy", ""):
        return copied(patch)
    live, key = list(live or []), schema.get("x-kubernetes-patch-merge-key")
    if {"$patch": "replace"} in patch:
        return [copied(it) for it in patch if it != {"$patch": "replace"}]
    if key is None:
        return live + [it for it in patch if it not in live]
    there = {one[key]: one for one in live}
    gone = {it[key] for it in patch if it.get("$patch") == "delete"}
    named = [it for it in patch if it[key] not in gone]
    left = [(it[key], strategic(schema["items"], there.get(it[key]), it)) for it in named]
    patched = {name for name, _ in left}
    right = [(name, it) for name, it in there.items() if name not in patched | gone]
    order, made = list(there), []
    while left or right:  # in the order of the server; what is new comes as soon as it may
        first = left and (
            not right
            or left[0][0] not in there
            or order.index(left[0][0]) < order.index(right[0][0])
        )
        made.append((left if first else right).pop(0)[1])
    return made
