"""Workloads as pods of a Kubernetes cluster: a Deployment a release, and what belongs to it.

The Deployment of a release is made without replicas, then all that it needs, then it is scaled: a
process that is killed in between leaves nothing half-started. What it is made of never changes, not
by a newer dafnck either: only the number of its replicas does, and an autoscaler may have that.
"""

import logging
import time
from collections.abc import Iterator

from blocks.kube_api import DEPLOYMENTS, KubeApi, Object
from blocks.kube_autoscalers import KubeAutoscalers
from blocks.kube_extras import KubeExtras
from blocks.kube_layout import KubeLayout, changed_by
from blocks.kube_objects import Change, KubeObjects
from blocks.kube_reasons import KubeReasons
from blocks.kube_replicas import MARGIN_SECONDS, KubeReplicas, is_one
from blocks.kube_troubles import (
    Trouble,
    is_ready,
    restarts_of,
)
from policy.errors import DafnckError, NotApplied, Refused
from policy.kube_names import CONTAINER, EXTRA, RELEASE, own_labels
from policy.manifests import HOST, config_map, deployment, owned, secret
from policy.release import Endpoints, Release

__all__ = ["Change", "KubeCluster"]

log = logging.getLogger("dafnck")

GONE_SECONDS = 120.0
POLL_SECONDS = 0.2


class KubeCluster:
    """Workloads of one service in one environment."""

    def __init__(self, api: KubeApi, namespace: str, service: str, environment: str) -> None:
        self._api, self._namespace = api, namespace
        self._labels = own_labels(service, environment)
        place = namespace, service, environment
        self.autoscalers = KubeAutoscalers(api, *place)
        self._objects = KubeObjects(api, *place)
        self._layout = KubeLayout(api, namespace, self._objects)
        self._extras = KubeExtras(api, namespace, self.autoscalers)
        self._replicas = KubeReplicas(api, *place)
        self._reasons = KubeReasons(api, namespace)

    # -- Workloads ---------------------------------------------------------------------------

    def start(self, release: Release, replicas: int) -> None:
        """Manifests of the team are applied and waited for before the first replica starts, and
        applied again when more are added; fewer than it has are a matter of numbers alone."""
        has = self._sizes().get(release.id, 0)
        if 0 < replicas < has:
            self._size(release, replicas)
            return
        found = self._layout.lay_out(release, self._extras.kinds(release))
        runs = bool(found["spec"].get("replicas"))
        if who := changed_by(found):
            words = f"{who} changed what the pods of {release.id} are made of"
            if not runs:
                raise NotApplied(
                    f"{words}; nothing was started, what serves still serves. Remove it to have it "
                    f"laid out anew: kubectl -n {self._namespace} delete deployment {release.id}"
                )
            log.warning("%s; it runs on", words)
        if replicas > has:
            self._extras.apply(release, found["metadata"]["uid"], runs=runs)
        self._size(release, replicas)

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        """Ready is what the cluster sends requests to, `quick` or not: its own word costs nothing.
        How many connections are open it cannot say; pods that go let them end by themselves."""
        found = self._api.get(DEPLOYMENTS, self._namespace, release_id)
        wanted = found["spec"].get("replicas", 1) if found is not None else 0
        if found is None or not wanted or "deletionTimestamp" in found["metadata"]:
            return Endpoints(release_id, 0, (), ())
        pods = [pod for pod in self._replicas.all(release_id) if is_one(pod)]
        container = _container(found)
        port = container["ports"][0]["containerPort"]
        probe = container.get("readinessProbe") or {}
        urls = {pod["metadata"]["name"]: _url(pod, port) for pod in pods}
        ready = tuple(urls[pod["metadata"]["name"]] for pod in pods if is_ready(pod))
        trouble = Trouble("")
        if len(ready) < wanted:
            trouble = self._reasons.trouble(found, pods, quick=quick)
        return Endpoints(
            release_id=release_id,
            wanted=wanted,
            ready=tuple(url for url in ready if url),
            urls=tuple(url for url in urls.values() if url),
            trouble=trouble.words,
            health_path=(probe.get("httpGet") or {}).get("path"),
            fatal=trouble.fatal,
            restarts=sum(map(restarts_of, pods)),
            last_words="" if quick else self._reasons.last_words(pods),
            health_timeout=float(probe.get("timeoutSeconds", 1)),
            host=(found["metadata"].get("annotations") or {}).get(HOST, ""),
        )

    def stop(self, release_id: str, grace_seconds: float) -> None:
        """The pods' own time counts: that in which connections may end, and the release's grace."""
        found = self._api.get(DEPLOYMENTS, self._namespace, release_id)
        if found is None:
            return
        # Before: an autoscaler would start it again.
        self.autoscalers.settle([other for other in self.running() if other != release_id])
        self._replicas.scale(release_id, 0)
        template = found["spec"]["template"]["spec"]
        seconds = max(float(template.get("terminationGracePeriodSeconds", 30)), grace_seconds)
        self._replicas.wait_gone(release_id, seconds + MARGIN_SECONDS)

    def running(self) -> list[str]:
        return sorted(self._sizes())

    def remove(self, release_id: str) -> None:
        found = self._api.get(DEPLOYMENTS, self._namespace, release_id)
        if found is None:
            return
        if found["spec"].get("replicas", 1) and "deletionTimestamp" not in found["metadata"]:
            raise Refused(f"{release_id} still runs; it was not removed")
        self._api.delete(DEPLOYMENTS, self._namespace, release_id)
        give_up = time.monotonic() + GONE_SECONDS
        while (found := self._api.get(DEPLOYMENTS, self._namespace, release_id)) is not None:
            if time.monotonic() > give_up:
                held = ", ".join(found["metadata"].get("finalizers", []))
                raise NotApplied(f"{release_id} is being removed, and {held} holds it")
            time.sleep(POLL_SECONDS)

    # -- beside the port -----------------------------------------------------------------------

    def settle(self) -> None:
        """Have the autoscalers follow the one release that runs."""
        self.autoscalers.settle(self.running())

    def autoscaled(self, release_id: str) -> int:
        """Replicas that it has by an autoscaler, or had until a rollout took some away; of one that
        has none at all: those of the release in whose place it comes. 0: no autoscaler has them."""
        sizes = self._sizes()
        targets = {release_id} if release_id in sizes else set(sizes)
        found = [one for one in self.autoscalers.all() if one.target in targets]
        return max((max(one.held, sizes[one.target]) for one in found), default=0)

    def apply_extras(self, release: Release) -> None:
        """Have the team's manifests as this release has them, as after a rollback to it."""
        found = self._api.get(DEPLOYMENTS, self._namespace, release.id)
        if found is not None:
            self._extras.apply(release, found["metadata"]["uid"], runs=True)

    def objects(self) -> list[Object]:
        """Everything of the service in this environment, without what Secrets hold."""
        return self._objects.all()

    def remove_all(self) -> list[str]:
        """Everything of it. -> what was removed: `Deployment shop-prod-7`."""
        self.autoscalers.settle([])
        return self._objects.remove_all()

    def plan(self, release: Release) -> Iterator[Change]:
        """What starting it would change, as the cluster says by dry runs; secrets are not shown."""
        self._layout.check_version()
        found = self._api.get(DEPLOYMENTS, self._namespace, release.id)
        made = deployment(release, release.run.replicas, None)
        if found is not None:
            del made["spec"]["replicas"]
        wanted = [
            self._objects.account(release),
            made,
            config_map(release, ""),
            *owned(release, ""),
        ]
        yield from map(self._objects.compared, wanted)
        if release.run.secrets:
            try:
                values = self._layout.secrets(release)
            except Refused as error:
                yield Change("Secret", release.id, "refused", str(error))
            else:
                yield self._objects.compared(secret(release, values, ""))
        try:
            extras = self._extras.placed(release, "")
        except DafnckError as error:
            yield Change("manifests", release.id, "refused", str(error))
        else:
            yield from map(self._objects.compared, extras)

    # -- how many ------------------------------------------------------------------------------

    def _sizes(self) -> dict[str, int]:
        """Release -> replicas wanted, of those that want any."""
        ours = ",".join(f"{name}={value}" for name, value in self._labels.items())
        found = self._api.list(DEPLOYMENTS, self._namespace, f"{ours},{RELEASE},!{EXTRA}")
        sizes = {
            one["metadata"]["labels"][RELEASE]: one["spec"].get("replicas", 1)
            for one in found
            if "deletionTimestamp" not in one["metadata"]
        }
        return {release: size for release, size in sizes.items() if size}

    def _size(self, release: Release, replicas: int) -> None:
        """What an autoscaler has is turned by its bounds, and no more is wanted than was said."""
        sizes, scalers = self._sizes(), self.autoscalers.all()
        for one in scalers:
            size = sizes.get(one.target, 0)
            if one.target != release.id and size:
                self.autoscalers.hold(one, size)
        own = [one for one in scalers if one.target == release.id]
        has = sizes.get(release.id, 0)
        if own and replicas and has:
            for one in own:
                if replicas < has:
                    self.autoscalers.exactly(one, replicas)
                else:
                    self.autoscalers.at_least(one, replicas)
            return
        self._replicas.scale(release.id, replicas)
        if scalers:
            self.autoscalers.settle(self.running())


def _container(found: Object) -> Object:
    containers = found["spec"]["template"]["spec"]["containers"]
    return dict(next(one for one in containers if one["name"] == CONTAINER))


def _url(pod: Object, port: int) -> str:
    """Empty while it has no address."""
    address = (pod.get("status") or {}).get("podIP") or ""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}" if address else ""
