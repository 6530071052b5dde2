"""Everything of a service in an environment that a cluster holds: listed, compared, removed."""

import difflib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blocks.kube_api import (
    BUILT_IN,
    DEPLOYMENTS,
    HTTP_ROUTES,
    SECRETS,
    SERVICE_ACCOUNTS,
    Conflict,
    Kind,
    KubeApi,
    Object,
)
from policy.errors import DafnckError, NotAllowed, NotApplied
from policy.kube_names import own_labels, shared_name
from policy.manifests import owner, service_account
from policy.release import Release

log = logging.getLogger("dafnck")

KINDS = "dafnck/extra-kinds"  # annotation of the ServiceAccount: of the team's own manifests
GONE_SECONDS = 120.0
POLL_SECONDS = 0.2
HIDDEN = "(hidden)"
# Written by the cluster: no difference of ours.
OF_THE_CLUSTER = (
    "managedFields",
    "resourceVersion",
    "uid",
    "generation",
    "creationTimestamp",
    "ownerReferences",
    "selfLink",
)


class Change(NamedTuple):
    """What a release would do to one object."""

    kind: str
    name: str
    what: str  # create, change, same, or why not
    diff: str


class KubeObjects:
    def __init__(self, api: KubeApi, namespace: str, service: str, environment: str) -> None:
        self._api, self._namespace = api, namespace
        self._labels = own_labels(service, environment)
        self._shared = shared_name(service, environment)

    def have(self, body: Object) -> Object:
        """Have it as it is here; written only when it is not. -> as the cluster holds it.

        Raises NotApplied when it is somebody else's, Conflict when parts of it are."""
        kind, name = self._api.kind_of(body), body["metadata"]["name"]
        found = self._api.get(kind, self._namespace, name)
        if found is not None:
            self.check_ours(body["kind"], found)
            if _covers(found, body):
                return found
        return self._api.apply(body)

    def have_account(self, release: Release, extra_kinds: Sequence[str]) -> Object:
        """What an account does not say any more, it loses: roles hang on it."""
        found = self._account()
        if found is not None:
            self.check_ours("ServiceAccount", found)
        return self._api.apply(self.account(release, extra_kinds, found))

    def account(
        self, release: Release, extra_kinds: Sequence[str] = (), found: Object | None = None
    ) -> Object:
        """With the kinds of all manifests that any release brought along."""
        kinds = ",".join(sorted({*_extra_kinds(found or self._account()), *extra_kinds}))
        return service_account(release, {KINDS: kinds} if kinds else {})

    def keep(self, body: Object, uid: str, *, fresh: bool) -> None:
        """Have it as it began: of what is immutable. Create it unless it is there; one whose owner
        was removed without it gets this one. `fresh`: it should not be there."""
        kind, name = self._api.kind_of(body), body["metadata"]["name"]
        found = None if fresh else self._api.get(kind, self._namespace, name)
        if found is None:
            try:
                self._api.create(kind, self._namespace, body)
                return
            except Conflict:
                if (found := self._api.get(kind, self._namespace, name)) is None:
                    raise
        self.check_ours(body["kind"], found)
        owners = found["metadata"].get("ownerReferences") or []
        if all(one["uid"] != uid for one in owners):
            change = {"metadata": {"ownerReferences": [owner(name, uid)]}}
            self._api.patch(kind, self._namespace, name, change)

    def check_ours(self, kind: str, found: Object) -> None:
        """Raises NotApplied."""
        labels = found["metadata"].get("labels") or {}
        if any(labels.get(name) != value for name, value in self._labels.items()):
            raise NotApplied(
                f"there is a {kind} {found['metadata']['name']} in {self._namespace} that is not "
                "dafnck's; it was left alone, nothing was started, what serves still serves. "
                "Rename one of them"
            )

    def all(self) -> list[Object]:
        """Without what a Secret holds. What we may not list is passed over, with a warning."""
        return [_shown(one) for kind, name in self._kinds() for one in self._listed(kind, name)]

    def remove_all(self) -> list[str]:
        """Requests first, then replicas, then the rest. -> what was removed. Raises NotApplied for
        what does not go."""
        kinds = self._kinds()
        # The ServiceAccount last: it knows the kinds of the others.
        order = {HTTP_ROUTES: 0, DEPLOYMENTS: 1, SERVICE_ACCOUNTS: 3}
        removed = []
        for kind, name in sorted(kinds, key=lambda pair: order.get(pair[0], 2)):
            going = self._listed(kind, name)
            for one in going:
                if self._api.delete(kind, self._namespace, one["metadata"]["name"]):
                    removed.append(f"{name} {one['metadata']['name']}")
            self._wait_gone(kind, name, going)
        return removed

    def _wait_gone(self, kind: Kind, name: str, going: list[Object]) -> None:
        give_up = time.monotonic() + GONE_SECONDS
        while going and (left := self._listed(kind, name)):
            if time.monotonic() > give_up:
                names = ", ".join(one["metadata"]["name"] for one in left)
                raise NotApplied(
                    f"{name} {names} is being removed, and something holds it: "
                    f"{', '.join(left[0]['metadata'].get('finalizers', [])) or 'nobody says what'}"
                )
            time.sleep(POLL_SECONDS)

    def compared(self, wanted: Object) -> Change:
        """What applying this would change, as the cluster says by a dry run."""
        kind, name = self._api.kind_of(wanted), wanted["metadata"]["name"]
        found = self._api.get(kind, self._namespace, name)
        try:
            would_be = self._api.apply(wanted, dry_run=True)
        except NotAllowed:
            raise
        except DafnckError as error:
            return Change(wanted["kind"], name, "refused", str(error))
        if found is None:
            return Change(wanted["kind"], name, "create", "")
        before, after = _text(found), _text(would_be)
        lines = difflib.unified_diff(before, after, lineterm="", n=2)
        diff = "\n".join(line for line in lines if not line.startswith(("---", "+++")))
        if kind == SECRETS and not diff and found.get("data") != would_be.get("data"):
            diff = "its values"
        return Change(wanted["kind"], name, "change" if diff else "same", diff)

    # -- listing -----------------------------------------------------------------------------

    def _account(self) -> Object | None:
        return self._api.get(SERVICE_ACCOUNTS, self._namespace, self._shared)

    def _kinds(self) -> list[tuple[Kind, str]]:
        """Those that we write, and those of the team's manifests; with their names."""
        kinds = {kind: name for name, kind in BUILT_IN.items()}
        for one in _extra_kinds(self._account()):
            version, _, name = one.rpartition("/")
            try:
                kinds[self._api.kind_of({"apiVersion": version, "kind": name})] = name
            except NotApplied:  # its CRD was removed, and with it all of them
                continue
        return list(kinds.items())

    def _listed(self, kind: Kind, name: str) -> list[Object]:
        try:
            found = self._api.list(kind, self._namespace, self._labels)
        except NotAllowed as error:
            log.warning("%s are not looked at: %s", kind.plural, error)
            return []
        return [{"apiVersion": kind.version, "kind": name, **one} for one in found]


def _extra_kinds(account: Object | None) -> list[str]:
    notes = ((account or {}).get("metadata", {}).get("annotations") or {}).get(KINDS, "")
    return [one for one in notes.split(",") if one]


def _covers(found: Any, wanted: Any) -> bool:
    """Does it say all that is wanted? The cluster adds defaults."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and _covers(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(_covers(one, other) for one, other in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _shown(body: Object) -> Object:
    """Without secrets, and what only the cluster reads."""
    meta = {key: value for key, value in body["metadata"].items() if key not in OF_THE_CLUSTER}
    shown = {key: value for key, value in body.items() if key != "status"} | {"metadata": meta}
    for part in ("data", "stringData"):
        if body["kind"] == "Secret" and part in shown:
            shown[part] = dict.fromkeys(shown[part], HIDDEN)
    return shown


def _text(body: Object) -> list[str]:
    return json.dumps(_shown(body), indent=1, sort_keys=True).splitlines()
