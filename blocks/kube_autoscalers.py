"""Autoscalers of the team: HorizontalPodAutoscalers, and ScaledObjects of KEDA.

They name a Deployment; each release has another one, so theirs is turned to the release that
serves. A team writes `<service>-<environment>`, which nothing bears, or any release of it.

Invariant: the replicas of a release are never written by two. While an autoscaler has it, what is
wanted of it goes through the autoscaler's own bounds. What the team wrote there is kept in
annotations, and put back once one release runs alone.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blocks.kube_api import AUTOSCALERS, SCALED_OBJECTS, Conflict, Kind, KubeApi, Object
from policy.errors import NotAllowed
from policy.kube_names import shared_name

log = logging.getLogger("dafnck")

LEAST, MOST = "dafnck/min-replicas", "dafnck/max-replicas"  # what the team wrote; empty: nothing
HELD = "dafnck/replicas"  # how many replicas the serving release had when a rollout began
BOUNDS = {
    AUTOSCALERS: ("minReplicas", "maxReplicas"),
    SCALED_OBJECTS: ("minReplicaCount", "maxReplicaCount"),
}
CONFLICT_SECONDS = 5.0


@dataclass(frozen=True)
class Autoscaler:
    kind: Kind
    body: Object

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def target(self) -> str:
        return str(self.body["spec"]["scaleTargetRef"]["name"])

    @property
    def notes(self) -> dict[str, str]:
        return self.body["metadata"].get("annotations") or {}

    @property
    def held(self) -> int:
        """Replicas of its release when a rollout began; 0 when there is none."""
        return int(self.notes.get(HELD) or 0)

    @property
    def stays(self) -> bool:
        """It is of one release alone, and goes with it."""
        owners = self.body["metadata"].get("ownerReferences") or []
        return any(one["kind"] == "Deployment" for one in owners)

    def bound(self, which: int) -> int | None:
        value = self.body["spec"].get(BOUNDS[self.kind][which])
        return None if value is None else int(value)

    @property
    def most(self) -> int | None:
        """As the team wrote it."""
        if MOST in self.notes:
            return int(self.notes[MOST]) if self.notes[MOST] else None
        return self.bound(1)


class KubeAutoscalers:
    """Those of one service in one environment."""

    def __init__(self, api: KubeApi, namespace: str, service: str, environment: str) -> None:
        self._api, self._namespace = api, namespace
        self._shared = shared_name(service, environment)
        self._releases = re.compile(rf"{re.escape(self._shared)}-\d+")

    def all(self) -> list[Autoscaler]:
        return [one for kind in BOUNDS for one in self._listed(kind)]

    def hold(self, one: Autoscaler, size: int) -> None:
        """A rollout begins: its release keeps the size that it has."""
        if not one.held:
            self._bind(one, max(size, one.bound(0) or 0), None, {HELD: str(size)})

    def at_least(self, one: Autoscaler, replicas: int) -> None:
        """Never more than the team allows."""
        most = one.most
        wanted = replicas if most is None else min(replicas, most)
        if wanted < replicas:
            log.warning("%s allows %s %d replicas, not %d", one.name, one.target, wanted, replicas)
        if (one.bound(0) or 0) < wanted or (one.bound(1) or wanted) < wanted:
            self._bind(one, wanted, most, {})

    def exactly(self, one: Autoscaler, replicas: int) -> None:
        if one.bound(0) != replicas or one.bound(1) != replicas:
            self._bind(one, replicas, replicas, {})

    def settle(self, running: Sequence[str]) -> None:
        """Follow the one release that runs, with the bounds that the team wrote; none: wait for
        one under the name that no release has. While several run nothing is turned but what
        scales a release that does not: KEDA would start it again."""
        alone = running[0] if len(running) == 1 else self._shared
        for one in self.all():
            if len(running) < 2:
                self._turn(one, one.target if one.stays else alone)
            elif one.target not in (*running, self._shared) and not one.stays:
                self._turn(one, self._shared)

    def troubles(self) -> list[str]:
        """What the cluster says against them."""
        said = []
        for one in self.all():
            for told in (one.body.get("status") or {}).get("conditions") or []:
                active = told["type"] in ("AbleToScale", "ScalingActive", "Ready")
                if active and told["status"] == "False" and told.get("reason") != "ScalingDisabled":
                    said.append(f"{one.name}: {told.get('reason')}: {told.get('message', '')}")
        return said

    def as_it_is(self, wanted: Object) -> Object:
        """One of the team's manifests, but with the target and the bounds that it has now: those
        are ours to change."""
        kind = next(
            (k for k in BOUNDS if wanted["apiVersion"] == k.version and _is(wanted, k)), None
        )
        if kind is None or not self._is_ours(wanted):
            return wanted
        found = self._api.get(kind, self._namespace, wanted["metadata"]["name"])
        if found is None:
            return wanted
        now = Autoscaler(kind, found)
        spec: dict[str, Any] = dict(wanted["spec"])
        spec["scaleTargetRef"] = {**spec["scaleTargetRef"], "name": now.target}
        for note, bound in zip((LEAST, MOST), BOUNDS[kind], strict=True):
            if note in now.notes:
                spec[bound] = found["spec"].get(bound)
        return wanted | {"spec": spec}

    # -- one of them -------------------------------------------------------------------------

    def _listed(self, kind: Kind) -> list[Autoscaler]:
        try:
            found = self._api.list(kind, self._namespace)
        except NotAllowed as error:
            if kind is AUTOSCALERS:
                raise
            log.debug("no ScaledObjects are looked at: %s", error)  # of a KEDA that is not there
            return []
        return [Autoscaler(kind, one) for one in found if self._is_ours(one) and not _is_keda(one)]

    def _is_ours(self, body: Object) -> bool:
        target = (body.get("spec") or {}).get("scaleTargetRef") or {}
        name = str(target.get("name", ""))
        if target.get("kind", "Deployment") != "Deployment":
            return False
        return name == self._shared or bool(self._releases.fullmatch(name))

    def _bind(self, one: Autoscaler, least: int, most: int | None, notes: dict[str, str]) -> None:
        """`most`: None leaves it."""

        def change(now: Autoscaler) -> Object:
            kept = {
                note: str(value if (value := now.bound(which)) is not None else "")
                for which, note in enumerate((LEAST, MOST))
                if note not in now.notes and (which == 0 or most is not None)
            }
            low, high = BOUNDS[now.kind]
            spec = {low: least} | ({high: most} if most is not None else {})
            return {"metadata": {"annotations": {**kept, **notes}}, "spec": spec}

        self._change(one, change)

    def _turn(self, one: Autoscaler, target: str) -> None:
        def change(now: Autoscaler) -> Object | None:
            back: Object = {}
            for note, bound in zip((LEAST, MOST), BOUNDS[now.kind], strict=True):
                if note in now.notes:
                    back[bound] = int(now.notes[note]) if now.notes[note] else None
            noted = [note for note in (LEAST, MOST, HELD) if note in now.notes]
            if now.target == target and not noted:
                return None
            return {
                "metadata": {"annotations": dict.fromkeys(noted)},
                "spec": {"scaleTargetRef": {"name": target}} | back,
            }

        self._change(one, change)

    def _change(self, one: Autoscaler, change: Any) -> None:
        """On the version that it was read from; anew when somebody was faster."""
        give_up, now = time.monotonic() + CONFLICT_SECONDS, one
        while (patch := change(now)) is not None:
            patch["metadata"]["resourceVersion"] = now.body["metadata"]["resourceVersion"]
            try:
                self._api.patch(one.kind, self._namespace, one.name, patch)
                return
            except Conflict:
                if time.monotonic() > give_up:
                    raise
            found = self._api.get(one.kind, self._namespace, one.name)
            if found is None:
                return
            now = Autoscaler(one.kind, found)


def _is(body: Object, kind: Kind) -> bool:
    return f"{str(body['kind']).lower()}s" == kind.plural


def _is_keda(body: Object) -> bool:
    """Made by KEDA from a ScaledObject, which is the one to change."""
    owners = body["metadata"].get("ownerReferences") or []
    return any(one["kind"] == "ScaledObject" for one in owners)
