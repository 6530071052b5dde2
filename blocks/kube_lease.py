"""A lease in the cluster, for homes whose ledger others cannot reach: one of them at a time.

Within a home its ledger decides who may act; here homes keep off each other. Invariants: whether a
holder still renews is told by our own monotonic clock alone, never by comparing clocks; a lease
changes hands only upon the version that was seen, so one of several takes it.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from blocks.kube_api import LEASES, Conflict, KubeApi, Object
from policy.errors import LeaseLost, Refused
from policy.kube_names import own_labels, shared_name

SECONDS = 15.0  # not renewed for so long, it lapsed
LOOK_SECONDS = 0.5
MOST_TRIES = 20
WHO = "dafnck/holder"  # annotation: who acts, for people


class KubeLease:
    """The lease of one service in one environment."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        service: str,
        environment: str,
        *,
        seconds: float = SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = f"dafnck-{shared_name(service, environment)}"
        self._place = f"{service} in {environment}"
        self._labels = own_labels(service, environment)
        self._api, self._namespace, self._seconds = api, namespace, seconds
        self._monotonic, self._sleep, self._clock = monotonic, sleep, clock

    def take(self, home: str, who: str) -> str:
        """-> token. `home`: stable for those who share a ledger; what the same home held is taken
        over at once, its ledger has seen to it. `who`: for people.

        Raises Refused, naming the holder, as soon as it is seen to renew; one that does not is
        watched until its lease lapsed. Raises Unreachable."""
        token, watch = f"{home}/{uuid4().hex}", None
        tries = 0
        while True:
            found = self._read()
            holder = _holder(found)
            if holder == token:
                return token  # the answer to our own write was lost
            if found is not None and holder and _home(holder) != home:
                if watch is None:
                    watch = _Watch(found, self._monotonic)
                elif watch.renewed(found):
                    raise Refused(
                        f"{self._place} is being changed from elsewhere by {_who(found)}; nothing "
                        f"was touched. Wait for it; its lease is {self._namespace}/{self.name}"
                    )
                lapsed = watch.seconds >= found["spec"].get("leaseDurationSeconds", self._seconds)
            else:
                lapsed = True
            if lapsed:
                if self._write(found, token, who):
                    return token
                if (tries := tries + 1) == MOST_TRIES:
                    raise Refused(
                        f"the lease {self._namespace}/{self.name} could not be taken in "
                        f"{tries} tries: others write to it all the time; nothing was touched"
                    )
            self._sleep(LOOK_SECONDS)

    def renew(self, token: str) -> None:
        """Raises LeaseLost when another one has it by now, or somebody removed it."""
        while True:
            found = self._held(token)
            found["spec"]["renewTime"] = self._now()
            try:
                self._api.replace(LEASES, self._namespace, found)
                return
            except Conflict:
                continue  # written to since it was read: by whom, is read anew

    def check(self, token: str) -> None:
        """Raises LeaseLost as `renew` does."""
        self._held(token)

    def free(self, token: str) -> None:
        """A no-op when it is not ours any more."""
        while True:
            try:
                found = self._held(token)
                spec = {name: it for name, it in found["spec"].items() if name != "holderIdentity"}
                self._api.replace(LEASES, self._namespace, found | {"spec": spec})
                return
            except LeaseLost:
                return
            except Conflict:
                continue

    def holder(self) -> str | None:
        """Who holds it, for people; None when nobody does. It may have lapsed."""
        found = self._read()
        return _who(found) if found and _holder(found) else None

    # -- the object --------------------------------------------------------------------------

    def _read(self) -> Object | None:
        found = self._api.get(LEASES, self._namespace, self.name)
        # What is on its way out keeps nobody off any more.
        return None if found and "deletionTimestamp" in found["metadata"] else found

    def _held(self, token: str) -> Object:
        found = self._read()
        if found is None:
            raise LeaseLost(f"the lease {self.name} was removed from the cluster; not acting")
        if _holder(found) != token:
            raise LeaseLost(f"{_who(found)} took over the lease {self.name}; not acting")
        return found

    def _write(self, found: Object | None, token: str, who: str) -> bool:
        """-> whether we have it; somebody else may have been faster."""
        now, before = self._now(), (found or {}).get("spec", {})
        spec = {
            "holderIdentity": token,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (1 if found else 0),
        }
        meta: Object = {"name": self.name, "labels": self._labels, "annotations": {WHO: who}}
        if found is not None:
            meta["resourceVersion"] = found["metadata"]["resourceVersion"]
        body = {
            "apiVersion": LEASES.version,
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, **meta},
            "spec": spec,
        }
        try:
            if found is None:
                self._api.create(LEASES, self._namespace, body)
            else:
                self._api.replace(LEASES, self._namespace, body)
        except Conflict:
            return False
        return True

    def _now(self) -> str:
        """For people: nobody decides by it."""
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Watch:
    """Of a lease that somebody else holds. A look counts for two pauses at most: time in which
    nobody looked is no time in which the holder failed to renew."""

    def __init__(self, found: Object, monotonic: Callable[[], float]) -> None:
        self._version, self._monotonic = found["metadata"]["resourceVersion"], monotonic
        self._at, self.seconds = monotonic(), 0.0

    def renewed(self, found: Object) -> bool:
        now = self._monotonic()
        self.seconds += min(now - self._at, 2 * LOOK_SECONDS)
        self._at = now
        return bool(found["metadata"]["resourceVersion"] != self._version)


def _holder(found: Object | None) -> str:
    return str((found or {}).get("spec", {}).get("holderIdentity") or "")


def _home(holder: str) -> str:
    return holder.partition("/")[0]


def _who(found: Object) -> str:
    said = (found["metadata"].get("annotations") or {}).get(WHO)
    return f"{said or 'somebody'} ({_home(_holder(found)) or 'free'})"
