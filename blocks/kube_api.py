"""The API of a Kubernetes cluster: objects as plain mappings, refusals in words of ours.

Objects are written by server-side apply under one field manager. What somebody else holds is told,
never taken. Each process asks at a bounded rate; 429 and a server that is away are tried again.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay

from policy.errors import DafnckError, NotAllowed, NotApplied, Unreachable

log = logging.getLogger("dafnck")

MANAGER = "dafnck"  # our field manager
Object = dict[str, Any]
ASK_SECONDS = 20.0  # for one answer
PATIENCE_SECONDS = 5.0  # for one that is busy, or away for a moment
PER_SECOND, AT_ONCE = 50.0, 100  # requests of this process
PAGE = 500  # objects in one answer
OLDEST = (1, 30)  # has the preStop action `sleep` switched on


@dataclass(frozen=True)
class Kind:
    """A sort of objects: `apps/v1`, `deployments`."""

    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        root = "/api" if "/" not in self.version else "/apis"
        place = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        words = [f"{root}/{self.version}{place}/{self.plural}", name, part]
        return "/".join(word for word in words if word)


DEPLOYMENTS = Kind("apps/v1", "deployments")
REPLICA_SETS = Kind("apps/v1", "replicasets")
PODS = Kind("v1", "pods")
SERVICES = Kind("v1", "services")
ENDPOINT_SLICES = Kind("discovery.k8s.io/v1", "endpointslices")
CONFIG_MAPS = Kind("v1", "configmaps")
SECRETS = Kind("v1", "secrets")
SERVICE_ACCOUNTS = Kind("v1", "serviceaccounts")
EVENTS = Kind("v1", "events")
NETWORK_POLICIES = Kind("networking.k8s.io/v1", "networkpolicies")
DISRUPTION_BUDGETS = Kind("policy/v1", "poddisruptionbudgets")
AUTOSCALERS = Kind("autoscaling/v2", "horizontalpodautoscalers")
SCALED_OBJECTS = Kind("keda.sh/v1alpha1", "scaledobjects")
GATEWAYS = Kind("gateway.networking.k8s.io/v1", "gateways")
HTTP_ROUTES = Kind("gateway.networking.k8s.io/v1", "httproutes")
LEASES = Kind("coordination.k8s.io/v1", "leases")
BUILT_IN = {
    "Deployment": DEPLOYMENTS,
    "Service": SERVICES,
    "ConfigMap": CONFIG_MAPS,
    "Secret": SECRETS,
    "ServiceAccount": SERVICE_ACCOUNTS,
    "NetworkPolicy": NETWORK_POLICIES,
    "PodDisruptionBudget": DISRUPTION_BUDGETS,
    "HTTPRoute": HTTP_ROUTES,
    "Lease": LEASES,
}


class Conflict(NotApplied):
    """Somebody else wrote it since it was read, or holds a field that we would change."""


class HeldByOther(Conflict):
    """Of the two the latter: to ask again changes nothing."""


class Rejected(NotApplied):
    """The cluster does not take the object as it is: a quota, a policy, a value. `why`: its own
    words."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class _Answered(Exception):
    """What the API server said instead of doing it."""

    def __init__(self, status: int, body: Object, after: float | None) -> None:
        self.status, self.body, self.after = status, body, after
        super().__init__(str(body.get("message") or f"HTTP {status}"))


class _Pace:
    """A token bucket: `AT_ONCE` requests at once, `PER_SECOND` in the long run."""

    def __init__(self) -> None:
        self._lock, self._left, self._at = threading.Lock(), float(AT_ONCE), time.monotonic()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._left = min(AT_ONCE, self._left + (now - self._at) * PER_SECOND) - 1
            self._at = now
            owed = -self._left / PER_SECOND
        if owed > 0:
            time.sleep(owed)


class KubeApi:
    """One cluster, as one user. Safe for threads."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name
        self._pace = _Pace()
        self._kinds: dict[tuple[str, str], Kind] = {}
        self.calls = 0  # requests sent so far

    @property
    def identity(self) -> str:
        """The same for the same cluster, by whatever address and name it is reached: its
        certificate authority; its address where there is none."""
        settings = self._client.configuration
        authority = settings.ca_cert_data or b""
        if settings.ssl_ca_cert:
            authority = Path(settings.ssl_ca_cert).read_bytes()
        if isinstance(authority, str):
            authority = authority.encode()
        if b"-----BEGIN" not in authority:
            return str(settings.host).rstrip("/")
        return f"ca-{sha256(b''.join(authority.split())).hexdigest()[:16]}"

    def get(self, kind: Kind, namespace: str, name: str, part: str = "") -> Object | None:
        """None when there is no such object."""
        with self._asking(f"read {kind.plural} {name}"):
            try:
                return self._ask("GET", kind.path(namespace, name, part))
            except _Answered as said:
                if said.status == 404:
                    return None
                raise

    def list(
        self, kind: Kind, namespace: str, labels: Mapping[str, str] | str = "", fields: str = ""
    ) -> list[Object]:
        """Objects with these labels (a mapping, or a selector as text), page by page; empty where
        the cluster does not know the kind."""
        if not isinstance(labels, str):
            labels = ",".join(f"{name}={value}" for name, value in labels.items())
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE)}
        for _ in range(3):  # 410: a page came too late, and the list begins anew
            found: list[Object] = []
            more = ""
            try:
                with self._asking(f"list {kind.plural}"):
                    while True:
                        page = self._ask("GET", kind.path(namespace), query | {"continue": more})
                        found += page.get("items", [])
                        if not (more := page.get("metadata", {}).get("continue") or ""):
                            return found
            except _Gone:
                continue
            except _Unknown:
                return []
        raise Unreachable(f"{self.name} changes too fast to list its {kind.plural}")

    def apply(self, body: Object, *, dry_run: bool = False) -> Object:
        """Have the object as it is here, by server-side apply. -> as the cluster holds it.

        Raises Conflict, naming them, for fields that another manager holds with another value;
        nothing is changed then."""
        kind, meta = self.kind_of(body), body["metadata"]
        query = {"fieldManager": MANAGER, "force": "false"}
        if dry_run:
            query["dryRun"] = "All"
        path = kind.path(meta.get("namespace", ""), meta["name"])
        with self._asking(f"apply {body['kind']} {meta['name']}"):
            return self._ask("PATCH", path, query, body, "application/apply-patch+yaml")

    def patch(self, kind: Kind, namespace: str, name: str, body: Object, part: str = "") -> Object:
        """Lay these values over the object (JSON merge patch). With metadata.resourceVersion in
        `body`, raises Conflict when it was changed since."""
        query = {"fieldManager": MANAGER}
        path = kind.path(namespace, name, part)
        with self._asking(f"change {kind.plural} {name}"):
            return self._ask("PATCH", path, query, body, "application/merge-patch+json")

    def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Raises Conflict when it is there already."""
        with self._asking(f"create {kind.plural} {body['metadata']['name']}"):
            query = {"fieldManager": MANAGER}
            return self._ask("POST", kind.path(namespace), query, body)

    def replace(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Raises Conflict when it was changed since it was read."""
        name = body["metadata"]["name"]
        with self._asking(f"replace {kind.plural} {name}"):
            return self._ask("PUT", kind.path(namespace, name), {"fieldManager": MANAGER}, body)

    def delete(self, kind: Kind, namespace: str, name: str) -> bool:
        """With everything that it owns. -> whether it was there."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        with self._asking(f"delete {kind.plural} {name}"):
            try:
                self._ask("DELETE", kind.path(namespace, name), body=options)
            except _Answered as said:
                if said.status == 404:
                    return False
                raise
        return True

    def log(self, namespace: str, pod: str, *, lines: int, previous: bool = False) -> str:
        """The last lines that its container wrote; `previous`: the one before it. Empty when there
        is none."""
        query = {"tailLines": str(lines), "timestamps": "true"}
        query |= {"previous": "true"} if previous else {}
        path = PODS.path(namespace, pod, "log")
        with self._asking(f"read the log of {pod}"):
            try:
                return self._send("GET", path, query, None, "", text=True).decode(errors="replace")
            except _Answered as said:
                if said.status in (400, 404):  # it is not there, or not yet, or not any more
                    return ""
                raise

    def kind_of(self, body: Object) -> Kind:
        """Raises NotApplied for a kind that the cluster does not know."""
        version, name = body["apiVersion"], body["kind"]
        if (known := BUILT_IN.get(name)) and known.version == version:
            return known
        if (version, name) not in self._kinds:
            root = "/api" if "/" not in version else "/apis"
            with self._asking(f"look up {version}"):
                try:
                    offered = self._ask("GET", f"{root}/{version}")["resources"]
                except _Answered as said:
                    if said.status != 404:
                        raise
                    offered = []
            for one in offered:
                if "/" not in one["name"]:
                    kind = Kind(version, one["name"], one["namespaced"])
                    self._kinds[version, one["kind"]] = kind
        if (version, name) not in self._kinds:
            raise NotApplied(
                f"the cluster {self.name} knows no {name} of {version}: is its CRD installed? "
                "Nothing was changed"
            )
        return self._kinds[version, name]

    def version(self) -> tuple[int, int]:
        with self._asking("tell its version"):
            said = self._ask("GET", "/version")
        return int(said["major"]), int(said["minor"].rstrip("+"))

    # -- asking --------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        return dict(json.loads(self._send(method, path, query or {}, body, content_type)))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None,
        content_type: str,
        *,
        text: bool = False,
    ) -> bytes:
        """-> the body of a good answer. Raises _Answered for another."""
        headers = {"Accept": "*/*" if text else "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        asked = [(name, value) for name, value in query.items() if value]
        for attempt in Retrying(
            retry=retry_if_exception(_is_passing),
            wait=_pause,
            stop=stop_after_delay(PATIENCE_SECONDS),
            reraise=True,
        ):
            with attempt:
                self._pace.wait()
                self.calls += 1
                request = self._client.param_serialize(
                    method,
                    path,
                    query_params=asked,
                    header_params=dict(headers),
                    body=body,  # which the client writes as JSON, also where YAML is meant
                    auth_settings=["BearerToken"],
                )
                answer = self._client.call_api(*request, _request_timeout=ASK_SECONDS)
                said = bytes(answer.read() or b"")
                if not 200 <= answer.status < 300:
                    after = answer.getheader("Retry-After")
                    raise _Answered(answer.status, _status(said), _number(after))
                return said
        raise AssertionError("tenacity returns or raises")

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Whatever happens in the body becomes an error of ours. `what`: "read pods shop-1"."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except _Answered as said:
            raise self._refusal(said, what) from None
        except ApiException as error:  # of TLS
            words = str(error.reason).replace("\n", ": ")
            raise Unreachable(f"the API of {self.name} cannot be trusted: {words}") from None
        except (HTTPError, OSError) as error:
            raise Unreachable(f"the API of {self.name} does not answer: {_plain(error)}") from None

    def _refusal(self, said: _Answered, what: str) -> DafnckError:
        words = str(said).strip()
        if said.status == 401:
            return NotAllowed(
                f"{self.name} does not know us any more, to {what}: {words}. Renew the credentials "
                "(kubeconfig, token or block); what serves still serves"
            )
        if said.status == 403 and said.body.get("reason") == "Forbidden" and " cannot " in words:
            return NotAllowed(f"{self.name} does not let us {what}: {words}")
        if said.status == 409:
            if held := _held(said.body):
                return HeldByOther(f"{self.name} did not {what}: {held}")
            return Conflict(f"{self.name} did not {what}: {words}")
        if said.status == 404:
            return _Unknown(f"{self.name} could not {what}: {words}", words)
        if said.status == 410:
            return _Gone(words)
        if said.status == 429 or said.status >= 500:
            return Unreachable(f"{self.name} could not {what} ({said.status}): {words}")
        return Rejected(f"{self.name} did not {what} ({said.status}): {words}", words)


class _Gone(NotApplied):
    pass


class _Unknown(Rejected):
    pass


def _is_passing(error: BaseException) -> bool:
    from urllib3.exceptions import HTTPError

    if isinstance(error, _Answered):
        return error.status == 429 or error.status in (500, 502, 503, 504)
    return isinstance(error, HTTPError | OSError)


def _pause(state: RetryCallState) -> float:
    """As long as the server asks for; else longer and longer."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Answered) and error.after is not None:
        return float(min(error.after, PATIENCE_SECONDS))
    return float(min(2.0, 0.1 * 2**state.attempt_number))


def _status(content: bytes) -> Object:
    try:
        said = json.loads(content)
    except ValueError:
        return {"message": content[:500].decode(errors="replace")}
    return said if isinstance(said, dict) else {"message": str(said)}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _held(body: Object) -> str:
    """Who holds which fields, of a conflict of field managers."""
    causes = (body.get("details") or {}).get("causes") or []
    held = [
        f"{cause.get('field')}: {cause.get('message')}"
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
    if not held:
        return ""
    return f"{'; '.join(held)}. It was left to them: have them let go of it, or leave it out"


def _plain(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).partition("object at 0x")[2].partition(": ")[2] or str(reason)


# -- which cluster -------------------------------------------------------------------------------


def connect(context: str | None = None, config: str | None = None) -> KubeApi:
    """The cluster of a context of the kubeconfig; without one, in a pod, the pod's own. `config`:
    instead, a kubeconfig as JSON (of a credentials block). One client for each in a process.

    Raises NotAllowed when there are no such credentials."""
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    # Who renews the credentials in the file is believed at once.
    found = [Path(file) for file in files.split(os.pathsep)]
    written = tuple(file.stat().st_mtime for file in found if file.exists())
    return _connected(context, config, files, written)


@cache
def _connected(
    context: str | None, config: str | None, files: str, written: tuple[float, ...]
) -> KubeApi:
    from kubernetes import client as sdk
    from kubernetes import config as loading
    from urllib3 import Retry

    settings = sdk.Configuration()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG")
    try:
        if config is not None:
            read = json.loads(config)
            loading.load_kube_config_from_dict(read, context, settings, persist_config=False)
            name = str(context or read.get("current-context") or "the cluster")
        elif in_pod and context is None:
            loading.load_incluster_config(settings)
            name = "the cluster"
        else:
            loading.load_kube_config(files, context, settings, persist_config=False)
            contexts, active = loading.list_kube_config_contexts(files)
            name = context or (active or contexts[0])["name"]
    except (loading.ConfigException, OSError, KeyError, ValueError) as error:
        words = f"context {context} of {files}" if context else files
        raise NotAllowed(
            f"there is no way into the cluster by {words}: {error}. Name another one by KUBECONFIG "
            "or kubernetes.context; nothing was changed"
        ) from None
    settings.retries = Retry(0, redirect=3)  # what is tried again is tried by us
    settings.connection_pool_maxsize = 16
    return KubeApi(sdk.ApiClient(settings), str(name))
