"""Lays a release out in a cluster: its Deployment, without replicas, and all that it needs.

Idempotent. What is immutable stays as it began: a release that comes back has the configuration and
the secrets that it had.
"""

import time
from typing import Any

from blocks.kube_api import (
    DEPLOYMENTS,
    OLDEST,
    SECRETS,
    SERVICES,
    Conflict,
    KubeApi,
    Object,
)
from blocks.kube_objects import KubeObjects
from policy.errors import NotApplied, Refused
from policy.kube_names import RELEASE, pair_label, shared_name
from policy.kubernetes import secret_key
from policy.manifests import config_map, deployment, owned, secret
from policy.release import Release

GONE_SECONDS = 60.0
POLL_SECONDS = 0.2
PAIR = pair_label("")[0]  # how the labels of pairs begin


class KubeLayout:
    def __init__(self, api: KubeApi, namespace: str, objects: KubeObjects) -> None:
        self._api, self._namespace, self._objects = api, namespace, objects
        self._checked = False

    def lay_out(self, release: Release, extra_kinds: list[str]) -> Object:
        """-> its Deployment. Raises NotApplied or Refused before there is one for what is known to
        be missing."""
        self.check_version()
        found = self._found(release)
        values = self._new_values(release)
        self._objects.have_account(release, extra_kinds)
        serving = self._serving(release)
        if fresh := found is None:
            found = self._created(deployment(release, 0, serving))
        else:
            self._pair(found, serving)
        uid = found["metadata"]["uid"]
        for body in owned(release, uid):
            self._objects.have(body)
        self._objects.keep(config_map(release, uid), uid, fresh=fresh)
        if values is not None:
            self._objects.keep(secret(release, values, uid), uid, fresh=True)
        return found

    def check_version(self) -> None:
        if self._checked:
            return
        version = self._api.version()
        if version < OLDEST:
            has, needs = (".".join(map(str, v)) for v in (version, OLDEST))
            raise Refused(
                f"{self._api.name} is Kubernetes {has}; dafnck needs {needs} or later (preStop "
                "sleep). Nothing was changed"
            )
        self._checked = True

    def _new_values(self, release: Release) -> dict[str, str] | None:
        """None when it needs none, or keeps those that it has."""
        if not release.run.secrets or self._api.get(SECRETS, self._namespace, release.id):
            return None
        return self.secrets(release)

    def secrets(self, release: Release) -> dict[str, str]:
        """Variable -> value, in base64, as the team's Secrets have it now. Raises Refused, naming
        what is missing; no message holds a value."""
        held: dict[str, dict[str, str]] = {}
        values = {}
        for variable, reference in release.run.secrets.items():
            name, key = secret_key(reference)
            if name not in held:
                found = self._api.get(SECRETS, self._namespace, name)
                if found is None:
                    raise Refused(
                        f"run.secrets: {variable}: there is no Secret {name} in the namespace "
                        f"{self._namespace}; nothing was started, what serves still serves"
                    )
                held[name] = found.get("data") or {}
            if key not in held[name]:
                raise Refused(
                    f"run.secrets: {variable}: the Secret {name} has no key {key}; nothing was "
                    "started, what serves still serves"
                )
            values[variable] = held[name][key]
        return values

    # -- the Deployment ------------------------------------------------------------------------

    def _found(self, release: Release) -> Object | None:
        give_up = time.monotonic() + GONE_SECONDS
        while True:
            found = self._api.get(DEPLOYMENTS, self._namespace, release.id)
            if found is None:
                return None
            self._objects.check_ours("Deployment", found)
            if "deletionTimestamp" not in found["metadata"]:
                return found
            if time.monotonic() > give_up:
                raise NotApplied(f"{release.id} is still being removed; try again later")
            time.sleep(POLL_SECONDS)

    def _created(self, body: Object) -> Object:
        """Not applied: then the number of replicas would be ours to say for ever."""
        try:
            return self._api.create(DEPLOYMENTS, self._namespace, body)
        except Conflict:
            found = self._api.get(DEPLOYMENTS, self._namespace, body["metadata"]["name"])
            if found is None:
                raise
            self._objects.check_ours("Deployment", found)
            return found  # somebody else of us was faster

    def _serving(self, release: Release) -> str | None:
        """The release that callers inside the cluster reach now."""
        name = shared_name(release.service, release.environment)
        found = self._api.get(SERVICES, self._namespace, name)
        for label, value in ((found or {}).get("spec", {}).get("selector") or {}).items():
            serving = value if label == RELEASE else label.removeprefix(PAIR)
            if serving.startswith(f"{name}-") and serving != release.id:
                return str(serving)
        return None

    def _pair(self, found: Object, serving: str | None) -> None:
        """One that comes back follows another release than it did; while it has no pods, its
        template may say so."""
        labels = found["spec"]["template"]["metadata"]["labels"]
        resting = not found["spec"].get("replicas") and not found["status"].get("replicas")
        if serving is None or not resting or (label := pair_label(serving)[0]) in labels:
            return
        name = found["metadata"]["name"]
        old = {one: None for one in labels if one.startswith(PAIR) and one != pair_label(name)[0]}
        template = {"metadata": {"labels": {**old, label: "true"}}}
        self._api.patch(DEPLOYMENTS, self._namespace, name, {"spec": {"template": template}})


def changed_by(found: Object) -> str:
    """Who changed what its pods are made of since it was laid out; empty: nobody."""
    for entry in found["metadata"].get("managedFields") or []:
        fields: Any = entry.get("fieldsV1") or {}
        for step in ("f:spec", "f:template", "f:spec"):
            fields = fields.get(step) or {}
        if fields and entry.get("manager") != "dafnck":
            return str(entry.get("manager"))
    return ""
