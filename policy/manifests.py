"""What a release consists of on Kubernetes: its objects, as plain mappings.

Nothing of a release is shared with another one but its ServiceAccount: configuration and secrets
are immutable and carry its id, so that a rollback brings back what it ran with. All of it belongs
to its Deployment and goes with it.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from math import ceil
from typing import Any

from policy.kube_names import (
    EXTRA,
    PORT_NAME,
    RELEASE,
    SERVICE_PORT,
    container_port,
    own_labels,
    pair_label,
    release_labels,
    shared_name,
)
from policy.kube_pod import file_keys, place_of, pod
from policy.release import Release

Object = dict[str, Any]

HOST = "dafnck/host"  # annotation of a Deployment: Host header of the requests for it
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # every namespace has it


def deployment(release: Release, replicas: int, follows: str | None) -> Object:
    """`follows`: the release that serves while this one begins; a Service alone selects the pods
    of both by one label."""
    labels = _labels(release)
    pairs = [pair_label(release.id), *([pair_label(follows)] if follows else [])]
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,  # the next release is another Deployment
        "progressDeadlineSeconds": max(1, ceil(release.run.start)),
        "selector": {"matchLabels": {RELEASE: release.id}},
        # Nothing of the template changes while it runs; this is for a restart by hand.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
        "template": {"metadata": {"labels": labels | dict(pairs)}, "spec": pod(release)},
    }
    body = _object("apps/v1", "Deployment", release, release.id, labels)
    body["metadata"]["annotations"] = {HOST: release.host}
    return body | {"spec": spec}


def owned(release: Release, owner_uid: str) -> list[Object]:
    """What belongs to the Deployment with this uid, but for the immutable ones. Without a uid:
    without an owner, to be compared."""
    labels, selector = _labels(release), {RELEASE: release.id}
    port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
    service = {"type": "ClusterIP", "selector": selector, "ports": [port]}
    ingress: Object = {"ports": [{"protocol": "TCP", "port": container_port(release)}]}
    place = place_of(release)
    if place.callers:
        names = sorted({*place.callers, place.namespace})
        inside = {"key": NAMESPACE_LABEL, "operator": "In", "values": names}
        ingress["from"] = [{"namespaceSelector": {"matchExpressions": [inside]}}]
    policy = {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress"],
        "ingress": [ingress],
    }
    budget = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector},
        # Replicas that are not ready do not keep a node from being emptied.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    made = [
        _object("v1", "Service", release, release.id, labels) | {"spec": service},
        _object("networking.k8s.io/v1", "NetworkPolicy", release, release.id, labels)
        | {"spec": policy},
        _object("policy/v1", "PodDisruptionBudget", release, release.id, labels) | {"spec": budget},
    ]
    return [_owned_by(body, release.id, owner_uid) for body in made]


def config_map(release: Release, owner_uid: str) -> Object:
    """Its environment and its files; immutable."""
    port = str(container_port(release))
    environment = {
        "PORT": port,
        "DAFNCK_RELEASE": release.id,
        "DAFNCK_VERSION": release.version,
        **{name: value.replace("{port}", port) for name, value in release.run.env.items()},
    }
    body = _object("v1", "ConfigMap", release, release.id, _labels(release))
    body |= {"immutable": True, "data": environment}
    if files := {key: release.files[target] for key, target in file_keys(release).items()}:
        body["binaryData"] = {key: b64encode(content).decode() for key, content in files.items()}
    return _owned_by(body, release.id, owner_uid)


def secret(release: Release, values: Mapping[str, str], owner_uid: str) -> Object:
    """`values`: environment variable -> value in base64, as they were when the release began;
    immutable."""
    body = _object("v1", "Secret", release, release.id, _labels(release))
    body |= {"immutable": True, "type": "Opaque", "data": dict(values)}
    return _owned_by(body, release.id, owner_uid)


def service_account(release: Release, annotations: Mapping[str, str] | None = None) -> Object:
    """Shared by the releases of a service in an environment. It may nothing at the cluster; roles
    at a cloud hang on its annotations."""
    name = shared_name(release.service, release.environment)
    labels = own_labels(release.service, release.environment)
    body = _object("v1", "ServiceAccount", release, name, labels)
    body["metadata"]["annotations"] = {**place_of(release).annotations, **(annotations or {})}
    return body | {"automountServiceAccountToken": False}


def extras(release: Release, owner_uid: str) -> list[Object]:
    """The team's own manifests, with `{release}` in them filled in. One whose name holds it
    belongs to the release and goes with it; the others stay until `dafnck down`."""
    return [_extra(release, body, owner_uid) for body in release.manifests]


def _extra(release: Release, body: Mapping[str, Any], owner_uid: str) -> Object:
    filled: Object = _filled(body, release.id)
    meta = filled["metadata"] = dict(filled["metadata"])
    meta["namespace"] = place_of(release).namespace
    labels = own_labels(release.service, release.environment)
    mark = {EXTRA: shared_name(release.service, release.environment)}
    meta["labels"] = {**(meta.get("labels") or {}), **labels, **mark}
    if "{release}" in body["metadata"]["name"]:
        return _owned_by(filled, release.id, owner_uid)
    return filled


def _filled(value: Any, release_id: str) -> Any:
    return json.loads(json.dumps(value, default=str).replace("{release}", release_id))


def rendered(release: Release) -> str:
    """All of it as text, to be read and compared; secrets by their references alone."""
    objects = [
        service_account(release),
        deployment(release, release.run.replicas, None),
        config_map(release, ""),
        *owned(release, ""),
        *extras(release, ""),
    ]
    if release.run.secrets:
        objects.append(secret(release, release.run.secrets, ""))
    return "\n".join(json.dumps(one, indent=1, sort_keys=True, default=str) for one in objects)


# -- what all have in common ---------------------------------------------------------------------


def _labels(release: Release) -> dict[str, str]:
    labels = {
        **release_labels(release),
        "app.kubernetes.io/name": release.service,
        "app.kubernetes.io/instance": shared_name(release.service, release.environment),
    }
    if version := label_value(release.version):
        labels["app.kubernetes.io/version"] = version
    return labels


def label_value(text: str) -> str:
    """What of it a label can hold; may be nothing."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")


def _object(
    version: str, kind: str, release: Release, name: str, labels: Mapping[str, str]
) -> Object:
    meta = {"name": name, "namespace": place_of(release).namespace, "labels": dict(labels)}
    return {"apiVersion": version, "kind": kind, "metadata": meta}


def owner(name: str, uid: str) -> Object:
    """A reference to the Deployment that something goes with, and is waited for."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": name,
        "uid": uid,
        "blockOwnerDeletion": True,
    }


def _owned_by(body: Object, name: str, uid: str) -> Object:
    if uid:
        body["metadata"]["ownerReferences"] = [owner(name, uid)]
    return body
