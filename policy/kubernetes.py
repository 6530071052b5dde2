"""What a team may ask for on Kubernetes: where, through which gateway, measured by what."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from policy.part import Part
from policy.quantities import Bytes

LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # RFC 1123: names of namespaces
SUBDOMAIN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"  # names of most other things
KubeName = Annotated[str, Field(pattern=SUBDOMAIN)]
_SECRET = re.compile(r"secret://([a-z0-9][a-z0-9.-]*)/([A-Za-z0-9._-]+)")


def _cpu(value: object) -> float:
    """'250m' or 0.25 -> cores. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+)m|(\d+(?:\.\d+)?)", value)):
        cores = float(found[1]) / 1000 if found[1] else float(found[2])
        if cores > 0:
            return cores
    raise ValueError(f"{value!r} is no amount of CPU; write 250m or 0.5")


Cpu = Annotated[
    float,
    BeforeValidator(_cpu),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]


def secret_key(reference: str) -> tuple[str, str]:
    """'secret://shop-db/url' -> ('shop-db', 'url'). Raises ValueError."""
    if found := _SECRET.fullmatch(reference):
        return found[1], found[2]
    raise ValueError(f"{reference!r} names no secret; write secret://name/key")


class Requests(Part):
    """What a replica is sure to get; the scheduler places it by this."""

    cpu: Cpu = Field(0.05, description="cores: 250m or 0.25")
    memory: Bytes = Field(64 * 2**20, description="memory: 128M")


class Metrics(Part):
    """Where the counts of requests, errors and latencies of each release are read."""

    prometheus: str | None = Field(
        None, pattern=r"^https?://[^\s/@]+(/\S*)?$", description="URL of a Prometheus"
    )
    traefik: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+(/\S*)?$",
        description="instead: URL at which the one Traefik behind the gateway tells its metrics",
    )
    source: Literal["traefik", "ingress-nginx", "istio", "application"] = Field(
        "traefik",
        description="whose metrics Prometheus has: traefik, ingress-nginx, istio, "
        "application (http_requests_total and http_request_duration_seconds by pod)",
    )
    token: str | None = Field(
        None, min_length=2, description="bearer token: a file, or $NAME of the environment"
    )
    basic: str | None = Field(
        None, min_length=2, description="user:password: a file, or $NAME of the environment"
    )
    ca: str | None = Field(None, min_length=1, description="file of an authority to trust")
    matchers: dict[Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")], str] = Field(
        default_factory=dict, description="labels that its series must have: {cluster: eu}"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Metrics":
        if (self.prometheus is None) == (self.traefik is None):
            raise ValueError("needs exactly one of prometheus, traefik")
        if self.token and self.basic:
            raise ValueError("basic: there is a token already")
        return self


class Kubernetes(Part):
    """Where and how it runs, with `platform: kubernetes`."""

    namespace: str = Field(pattern=LABEL, description="namespace of everything that it consists of")
    context: str | None = Field(
        None,
        min_length=1,
        description="of the kubeconfig; default: the current one, or, in a pod, "
        "the cluster of that pod",
    )
    credentials: str | None = Field(
        None, min_length=1, description="instead: name of a KubernetesCredentials block of Prefect"
    )
    gateway: Annotated[
        str | None, Field(pattern=r"^([a-z0-9-]+/)?[a-z0-9][a-z0-9.-]*(#[a-z0-9.-]+)?$")
    ] = Field(
        None,
        description="Gateway that requests come in by: name, namespace/name, "
        "namespace/name#listener; without one the Service alone decides",
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+$",
        description="where dafnck reaches that Gateway; default: the address in its status",
    )
    metrics: Metrics | None = Field(None, description="what the judge reads")
    requests: Requests = Field(
        default_factory=Requests, description="what a replica is sure to get"
    )
    cpu_limit: Cpu | None = Field(None, description="cores, at most; default: no limit")
    manifests: str | None = Field(
        None,
        min_length=1,
        description="folder of more manifests, or a kustomization, applied with each release",
    )
    pull_secrets: list[KubeName] = Field(
        default_factory=list, description="Secrets by which the cluster pulls the image"
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="of the ServiceAccount: roles at a cloud, for example"
    )
    callers: list[Annotated[str, Field(pattern=LABEL)]] = Field(
        default_factory=list,
        description="namespaces that may call it, that of the gateway among them; default: all",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that it may run on"
    )

    @model_validator(mode="after")
    def _one_cluster(self) -> "Kubernetes":
        if self.credentials and self.context:
            raise ValueError("credentials: a block has a context of its own; leave one out")
        if self.url and not self.gateway:
            raise ValueError("url: there is no gateway")
        return self

    def gateway_parts(self) -> tuple[str, str, str | None]:
        """-> (namespace, name, listener) of the gateway."""
        assert self.gateway is not None
        place, _, listener = self.gateway.partition("#")
        namespace, _, name = place.rpartition("/")
        return namespace or self.namespace, name, listener or None


def door_of(there: Kubernetes | None) -> object:
    """What two services with the same host would meet at."""
    if there is None:
        return "this machine's router"
    if there.gateway is None:
        return there  # no host at all
    return there.context, there.credentials, there.gateway_parts()[:2]
