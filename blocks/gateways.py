"""The Gateway that requests come in by: where it is, and what is wrong with it. Never written."""

from blocks.kube_api import KubeApi, Object
from policy.errors import DafnckError, NotApplied
from policy.http_route import GROUP, VERSION

DEFAULT_PORTS = {"http": 80, "https": 443}


class Gateway:
    def __init__(
        self, api: KubeApi, place: tuple[str, str, str | None], url: str | None = None
    ) -> None:
        """`place`: namespace, name, listener. `url`: where it is reached, if not by the address in
        its status."""
        self.namespace, self.name, self.listener = place
        self._api, self._url = api, url

    def __str__(self) -> str:
        listener = f"#{self.listener}" if self.listener else ""
        return f"{self.namespace}/{self.name}{listener}"

    def reference(self) -> dict[str, str]:
        """As a route names its parent."""
        parent = {"group": GROUP, "kind": "Gateway", "namespace": self.namespace, "name": self.name}
        return parent | ({"sectionName": self.listener} if self.listener else {})

    def url(self) -> str:
        """Raises NotApplied when nothing tells where it is."""
        if self._url:
            return self._url
        gateway = self._read()
        listeners = self._listeners(gateway)
        addresses = (gateway.get("status") or {}).get("addresses") or []
        if not listeners or not addresses:
            lacks = f"listener {self.listener}" if not listeners else "address in its status"
            raise NotApplied(
                f"the Gateway {self} has no {lacks}; write where it is reached as kubernetes.url"
            )
        scheme = "https" if listeners[0]["protocol"] in ("HTTPS", "TLS") else "http"
        host, port = str(addresses[0]["value"]), int(listeners[0]["port"])
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}" + ("" if port == DEFAULT_PORTS[scheme] else f":{port}")

    def trouble(self, namespace: str) -> str | None:
        """Why it does not serve a route of this namespace, as far as it can be seen."""
        try:
            gateway = self._read()
        except DafnckError as error:
            return str(error)
        listeners = self._listeners(gateway)
        if not listeners:
            offered = ", ".join(one["name"] for one in gateway["spec"]["listeners"])
            return f"the Gateway {self} has no such listener; it has {offered}"
        if namespace != self.namespace and all(_keeps_to_itself(one) for one in listeners):
            return (
                f"no listener of the Gateway {self} lets in routes of the namespace {namespace} "
                "(allowedRoutes.namespaces.from)"
            )
        told = {one["type"]: one for one in (gateway.get("status") or {}).get("conditions") or []}
        for name in ("Accepted", "Programmed"):
            state = told.get(name, {"status": "Unknown", "message": "no controller said so"})
            if state["status"] != "True":
                return (
                    f"the Gateway {self} is not {name}: "
                    f"{state.get('message') or state.get('reason')}; see whether the controller of "
                    f"its class {gateway['spec']['gatewayClassName']} runs"
                )
        return None

    def _read(self) -> Object:
        # Raises NotApplied where the cluster knows no such thing as a Gateway.
        kind = self._api.kind_of({"apiVersion": VERSION, "kind": "Gateway"})
        if (found := self._api.get(kind, self.namespace, self.name)) is None:
            raise NotApplied(f"there is no Gateway {self.namespace}/{self.name}")
        return found

    def _listeners(self, gateway: Object) -> list[Object]:
        listeners = list(gateway["spec"]["listeners"])
        if self.listener:
            return [one for one in listeners if one["name"] == self.listener]
        return sorted(listeners, key=lambda one: one["protocol"] != "HTTP")


def _keeps_to_itself(listener: Object) -> bool:
    allowed = (listener.get("allowedRoutes") or {}).get("namespaces") or {}
    return bool(allowed.get("from", "Same") == "Same")
