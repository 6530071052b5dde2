"""The wheel's Traefik with its provider for the Gateway API, over an API server that has one route.

The names of its series are what is wanted here: they are Traefik's own, not what we think they are.
"""

import json
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conftest import free_port, wait_for
from prometheus_fixtures import Server

LISTS = {
    "gatewayclasses": "GatewayClass",
    "httproutes": "HTTPRoute",
    "grpcroutes": "GRPCRoute",
    "tlsroutes": "TLSRoute",
    "tcproutes": "TCPRoute",
    "listenersets": "ListenerSet",
    "backendtlspolicies": "BackendTLSPolicy",
    "referencegrants": "ReferenceGrant",
    "endpointslices": "EndpointSlice",
    "configmaps": "ConfigMap",
}


def named(name: str, namespace: str = "", **labels: str) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"name": name, "uid": name, "resourceVersion": "1", "labels": labels, **place}


class _Cluster(BaseHTTPRequestHandler):
    """Lists what there is; a watch tells nothing new."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, list[dict[str, Any]]]
    over: threading.Event

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        kind = path.rpartition("/")[2]
        if kind == "version":
            self._send(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
        elif "sendInitialEvents" in query:
            refused = {"kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422}
            self._send(422, {"apiVersion": "v1", **refused})
        elif "watch=" in query:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            self.over.wait()
        else:
            version = "/".join(path.split("/")[2:4]) if path.startswith("/apis") else "v1"
            name = LISTS.get(kind, kind[:-1].capitalize())
            listed = {"kind": f"{name}List", "apiVersion": version, "metadata": {}}
            self._send(200, {**listed, "items": self.objects.get(kind, [])})

    def do_PUT(self) -> None:  # a status
        self._send(200, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _send(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def objects(
    namespace: str, route: str, backends: dict[str, int], port: int
) -> dict[str, list[dict[str, Any]]]:
    """One Gateway on `port`, one route of `route`.test, half to each backend (Service -> port)."""
    listener = {"name": "web", "protocol": "HTTP", "port": port}
    listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
    references = [
        {"group": "", "kind": "Service", "name": name, "port": 80, "weight": 50}
        for name in backends
    ]
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": references,
    }
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    return {
        "namespaces": [{"metadata": named(namespace)}, {"metadata": named("infra")}],
        "gatewayclasses": [
            {
                "metadata": named("traefik"),
                "spec": {"controllerName": "traefik.io/gateway-controller"},
            }
        ],
        "gateways": [
            {
                "metadata": named("web", "infra"),
                "spec": {"gatewayClassName": "traefik", "listeners": [listener]},
            }
        ],
        "httproutes": [
            {
                "metadata": named(route, namespace),
                "spec": {
                    "parentRefs": [gateway | {"name": "web", "namespace": "infra"}],
                    "hostnames": [f"{route}.test"],
                    "rules": [rule],
                },
            }
        ],
        "services": [
            {
                "metadata": named(name, namespace),
                "spec": {
                    "clusterIP": "10.0.0.1",
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                },
            }
            for name in backends
        ],
        "endpointslices": [
            {
                "metadata": named(name, namespace, **{"kubernetes.io/service-name": name}),
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": at, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            }
            for name, at in backends.items()
        ],
    }


class GatewayTraefik:
    def __init__(self, web: int, admin: int, host: str, backends: dict[str, Server]) -> None:
        self._web, self._host, self.admin = web, host, admin
        self.backends = backends

    @property
    def url(self) -> str:
        """Where it tells its metrics."""
        return f"http://127.0.0.1:{self.admin}"

    def ask(self, times: int = 1) -> list[int]:
        """-> the status of each answer."""
        return [self._ask() for _ in range(times)]

    def _ask(self) -> int:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self._web}/", headers={"Host": self._host}
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0


@contextmanager
def gateway_traefik(
    folder: Path, admin: int, namespace: str, route: str, *releases: str
) -> Iterator[GatewayTraefik]:
    """`admin`: the port at which it tells its metrics."""
    web = free_port()
    backends = {release: Server() for release in releases}
    over = threading.Event()
    ports = {release: server.port for release, server in backends.items()}
    held = {"objects": objects(namespace, route, ports, web), "over": over}
    cluster = ThreadingHTTPServer(("127.0.0.1", 0), type("Cluster", (_Cluster,), held))
    cluster.daemon_threads = True
    threading.Thread(target=cluster.serve_forever, args=(0.02,), daemon=True).start()
    provider = {"endpoint": f"http://127.0.0.1:{cluster.server_port}", "token": "none"}
    configuration = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "entryPoints": {
            "web": {"address": f"127.0.0.1:{web}"},
            "traefik": {"address": f"127.0.0.1:{admin}"},
        },
        "metrics": {"prometheus": {"entryPoint": "traefik"}},
        "providers": {"providersThrottleDuration": "50ms", "kubernetesGateway": provider},
    }
    (folder / "traefik.yml").write_text(json.dumps(configuration))
    beside = Path(sys.executable).with_name("traefik")
    program = str(beside) if beside.exists() else shutil.which("traefik") or "traefik"
    with (folder / "traefik.log").open("w") as log:
        process = subprocess.Popen(
            [program, f"--configFile={folder / 'traefik.yml'}"], stdout=log, stderr=log
        )
    traefik = GatewayTraefik(web, admin, f"{route}.test", backends)
    try:
        wait_for(lambda: traefik.ask() == [200], "Traefik with its route")
        yield traefik
    finally:
        process.kill()
        process.wait()
        over.set()
        cluster.shutdown()
        cluster.server_close()
        for server in backends.values():
            server.close()
