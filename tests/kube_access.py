"""Who may do what, and what a namespace takes: tokens, RBAC, quotas, Pod Security."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kube_rules import quantity
from kube_schema import Kind, Object
from kube_store import Answer, Store

RBAC = "rbac.authorization.k8s.io"
PODS = ("", "pods")
MASTERS = "system:masters"


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()


ADMIN = User("kubernetes-admin", (MASTERS, "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def system(name: str) -> User:
    return User(f"system:{name}", (MASTERS,))


@dataclass
class Tokens:
    known: dict[str, User] = field(default_factory=dict)

    def made(self, user: User) -> str:
        token = secrets.token_urlsafe(24)
        self.known[token] = user
        return token

    def of_account(self, namespace: str, name: str) -> str:
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        return self.made(User(f"system:serviceaccount:{namespace}:{name}", groups))

    def user(self, header: str | None) -> User:
        """Raises Answer 401 for a token that is not known, any more."""
        if not header:
            return ANONYMOUS
        if (found := self.known.get(header.removeprefix("Bearer "))) is None:
            raise Answer(401, "Unauthorized", "Unauthorized")
        return found


# -- RBAC ----------------------------------------------------------------------------------------


def may(
    store: Store, user: User, verb: str, kind: Kind, part: str, namespace: str, name: str
) -> bool:
    if MASTERS in user.groups:
        return True
    resource = f"{kind.plural}/{part}" if part else kind.plural
    return any(
        _allows(rule, verb, kind.group, resource, name) for rule in _rules(store, user, namespace)
    )


def _rules(store: Store, user: User, namespace: str) -> Iterator[Object]:
    bindings = store.all((RBAC, "clusterrolebindings"))
    if namespace:
        bindings += store.all((RBAC, "rolebindings"), namespace)
    for binding in bindings:
        if not any(_is(user, one, binding) for one in binding.get("subjects") or []):
            continue
        role = binding["roleRef"]
        if role["kind"] == "ClusterRole":
            found = store.get((RBAC, "clusterroles"), ("", role["name"]))
        else:
            found = store.get((RBAC, "roles"), (binding["metadata"]["namespace"], role["name"]))
        yield from (found or {}).get("rules") or []


def _is(user: User, subject: Object, binding: Object) -> bool:
    if subject["kind"] == "ServiceAccount":
        namespace = subject.get("namespace") or binding["metadata"].get("namespace", "")
        return user.name == f"system:serviceaccount:{namespace}:{subject['name']}"
    return (
        subject["name"] == user.name
        if subject["kind"] == "User"
        else subject["name"] in user.groups
    )


def _allows(rule: Object, verb: str, group: str, resource: str, name: str) -> bool:
    def has(field: str, value: str) -> bool:
        return not {"*", value}.isdisjoint(rule.get(field) or [])

    part = resource.partition("/")[2]
    resources = {"*", resource} | ({f"*/{part}"} if part else set())
    fits = has("verbs", verb) and has("apiGroups", group)
    fits = fits and not resources.isdisjoint(rule.get("resources") or [])
    named = rule.get("resourceNames") or []
    return fits and (not named or name in named)


def forbidden(kind: Kind, name: str, why: str) -> Answer:
    what = f'{kind.qualified} "{name}"' if name else kind.qualified
    details = {
        **({"name": name} if name else {}),
        **({"group": kind.group} if kind.group else {}),
        "kind": kind.plural,
    }
    return Answer(403, "Forbidden", f"{what} is forbidden: {why}", details)


def refused(user: User, verb: str, kind: Kind, part: str, namespace: str, name: str) -> Answer:
    resource = f"{kind.plural}/{part}" if part else kind.plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what = f'resource "{resource}" in API group "{kind.group}" {where}'
    why = f'User "{user.name}" cannot {verb} {what}'
    return forbidden(kind, name, why)


# -- quotas --------------------------------------------------------------------------------------


def usage(pods: list[Object], counts: Callable[[str], int], limits: Object) -> dict[str, float]:
    """Of the resources that a quota limits."""
    used: dict[str, float] = {}
    alive = [
        one for one in pods if one.get("status", {}).get("phase") not in ("Succeeded", "Failed")
    ]
    for what in limits:
        how, _, name = what.partition(".")
        if what in ("pods", "count/pods"):
            used[what] = len(alive)
        elif how in ("requests", "limits") and name in ("cpu", "memory"):
            used[what] = sum(_asks(pod, how, name) or 0 for pod in alive)
        elif what in ("cpu", "memory"):
            used[what] = sum(_asks(pod, "requests", what) or 0 for pod in alive)
        else:
            used[what] = counts(what.removeprefix("count/").partition(".")[0])
    return used


def _asks(pod: Object, how: str, what: str) -> float | None:
    """None when one of its containers does not say."""
    asked = [
        (one.get("resources") or {}).get(how, {}).get(what) for one in pod["spec"]["containers"]
    ]
    return None if None in asked else sum(map(quantity, asked))


def check_quota(store: Store, kind: Kind, obj: Object) -> None:
    meta = obj["metadata"]
    namespace, name = meta.get("namespace", ""), meta["name"]
    for quota in store.all(("", "resourcequotas"), namespace) if namespace else []:
        hard = quota["spec"].get("hard") or {}

        def count(plural: str) -> int:
            return next(
                (len(store.all(f, namespace)) for f in list(store.objects) if f[1] == plural), 0
            )

        if kind.kind == "Pod":
            silent = [one for one in hard if one.partition(".")[0] in ("requests", "limits") and
                      _asks(obj, *one.split(".", 1)) is None]  # type: ignore[call-arg]  # fmt: skip
            if silent:
                who = ", ".join(one["name"] for one in obj["spec"]["containers"])
                said = "; ".join(f"must specify {one} for: {who}" for one in silent)
                raise forbidden(kind, name, f"failed quota: {quota['metadata']['name']}: {said}")
        used = usage(store.all(PODS, namespace), count, hard)
        asked = usage(
            [obj] if kind.kind == "Pod" else [], lambda plural: int(plural == kind.plural), hard
        )
        over = [
            one
            for one in sorted(hard)
            if asked[one] and used[one] + asked[one] > quantity(hard[one])
        ]
        if over:
            words = [", ".join(f"{one}={_shown(one, it)}" for one in over) for it in (asked, used)]
            limited = ",".join(f"{one}={hard[one]}" for one in over)
            words = [",".join(f"{one}={_shown(one, it)}" for one in over) for it in (asked, used)]
            figures = f"requested: {words[0]}, used: {words[1]}, limited: {limited}"
            said = f"exceeded quota: {quota['metadata']['name']}, {figures}"
            raise forbidden(kind, name, said)


def _shown(what: str, values: dict[str, float]) -> str:
    value = values[what]
    if "memory" in what:
        return next((f"{value / s:g}{u}" for u, s in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
                     if value and value % s == 0), f"{value:g}")  # fmt: skip
    return f"{value:g}" if value == int(value) else f"{value * 1000:g}m"


def quota_status(store: Store, quota: Object) -> Object:
    namespace, hard = quota["metadata"]["namespace"], quota["spec"].get("hard") or {}

    def count(plural: str) -> int:
        return next(
            (len(store.all(f, namespace)) for f in list(store.objects) if f[1] == plural), 0
        )

    used = usage(store.all(PODS, namespace), count, hard)
    return {"hard": hard, "used": {what: _shown(what, used) for what in hard}}


# -- Pod Security --------------------------------------------------------------------------------


def check_security(store: Store, kind: Kind, obj: Object) -> None:
    """`pod-security.kubernetes.io/enforce: restricted` of the namespace."""
    namespace = store.get(("", "namespaces"), ("", obj["metadata"]["namespace"])) or {}
    labels = namespace.get("metadata", {}).get("labels") or {}
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        return
    if found := violations(obj["spec"]):
        version = labels.get("pod-security.kubernetes.io/enforce-version", "latest")
        said = f'violates PodSecurity "restricted:{version}": {", ".join(found)}'
        raise forbidden(kind, obj["metadata"]["name"], said)


def violations(spec: Object) -> list[str]:
    """Against the profile "restricted", as the real one words them."""
    whole = spec.get("securityContext") or {}
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    own = {one["name"]: one.get("securityContext") or {} for one in containers}

    def bad(test: Callable[[Object], Any]) -> str:
        names = [f'"{name}"' for name, context in own.items() if not test(context)]
        many = "s" if len(names) > 1 else ""
        return f"container{many} {', '.join(names)}" if names else ""

    found = []
    for what in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(what):
            found.append(f"host namespaces ({what}=true)")
    if who := bad(lambda c: c.get("privileged") is not True):
        found.append(f"privileged ({who} must not set securityContext.privileged=true)")
    if who := bad(lambda c: c.get("allowPrivilegeEscalation") is False):
        found.append(
            f"allowPrivilegeEscalation != false ({who} must set "
            "securityContext.allowPrivilegeEscalation=false)"
        )
    if who := bad(lambda c: "ALL" in ((c.get("capabilities") or {}).get("drop") or [])):
        found.append(
            f'unrestricted capabilities ({who} must set securityContext.capabilities.drop=["ALL"])'
        )
    kinds = [k for one in spec.get("volumes") or [] for k in one if k in ("hostPath", "nfs")]
    if kinds:
        names = ", ".join(
            f'"{one["name"]}"' for one in spec["volumes"] if not {"hostPath", "nfs"}.isdisjoint(one)
        )
        found.append(
            f'restricted volume types (volume {names} uses restricted volume type "{kinds[0]}")'
        )
    if who := bad(lambda c: c.get("runAsNonRoot", whole.get("runAsNonRoot")) is True):
        found.append(
            f"runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"
        )
    if whole.get("runAsUser") == 0:
        found.append("runAsUser=0 (pod must not set runAsUser=0)")
    if who := bad(lambda c: c.get("runAsUser") != 0):
        found.append(f"runAsUser=0 ({who} must not set runAsUser=0)")
    fine = ("RuntimeDefault", "Localhost")
    if who := bad(
        lambda c: (c.get("seccompProfile") or whole.get("seccompProfile") or {}).get("type") in fine
    ):
        found.append(
            f"seccompProfile (pod or {who} must set securityContext.seccompProfile.type to "
            '"RuntimeDefault" or "Localhost")'
        )
    return found
