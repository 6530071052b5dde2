"""The pod of a release: what one replica is made of, what it gets and what it may do.

It gets nothing of the cluster's, writes nowhere but to memory, and has no privileges: a namespace
that is held to the Pod Security standard "restricted" takes it.
"""

import posixpath
import shlex
from math import ceil
from typing import Any

from policy.kube_names import CONTAINER, PORT_NAME, RELEASE, container_port, shared_name
from policy.kubernetes import Kubernetes
from policy.part import Command
from policy.release import Release
from policy.service_file import Health

Object = dict[str, Any]

MEMORY_BYTES = 2**30  # at most, as in a container of Docker
WRITABLE = "64Mi"
# A gateway or a kube-proxy may send requests to a pod for so long after it began to end.
FORGET_SECONDS = 3
SPREAD = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


def pod(release: Release) -> Object:
    place, run = place_of(release), release.run
    end = _sleep_seconds(release) + max(1, ceil(run.grace))
    spec: Object = {
        "serviceAccountName": shared_name(release.service, release.environment),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # else a variable for each Service of the namespace
        "terminationGracePeriodSeconds": end,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(release)],
        "volumes": _volumes(release),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {RELEASE: release.id}},
            }
            for key in SPREAD
        ],
    }
    if place.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in place.pull_secrets]
    if place.node_selector:
        spec["nodeSelector"] = dict(place.node_selector)
    return spec


def _container(release: Release) -> Object:
    run, port = release.run, container_port(release)
    environment: list[Object] = [{"configMapRef": {"name": release.id}}]
    if run.secrets:
        environment.append({"secretRef": {"name": release.id}})
    question = _question(run.health, port)
    wait = {"timeoutSeconds": max(1, ceil(run.health.timeout))}
    made: Object = {
        "name": CONTAINER,
        "image": release.image,
        "imagePullPolicy": "IfNotPresent",  # a digest means the same everywhere
        "ports": [{"name": PORT_NAME, "containerPort": port, "protocol": "TCP"}],
        "envFrom": environment,
        "resources": _resources(release),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(release),
        "startupProbe": {
            **question,
            **wait,
            "periodSeconds": 1,
            "failureThreshold": max(1, ceil(run.start)),
        },
        "readinessProbe": {
            **question,
            **wait,
            "periodSeconds": max(1, round(run.health.interval)),
            "successThreshold": 1,
            "failureThreshold": 3,
        },
        # No liveness probe: asking the same question it would restart every replica when a
        # database that all of them need is slow, and make it worse. What hangs gets no requests,
        # what ends is started again.
        "lifecycle": {"preStop": {"sleep": {"seconds": _sleep_seconds(release)}}},
    }
    if run.command is not None:
        # Instead of an entrypoint too: the command is a whole one, as on the other platforms.
        words = _words(run.command, port)
        made |= {"command": words[:1], "args": words[1:]}
    return made


def _sleep_seconds(release: Release) -> int:
    """From leaving the endpoints to SIGTERM: old connections may last so long. Nobody tells when
    the last of them has ended."""
    return max(FORGET_SECONDS, ceil(release.run.drain))


def _question(health: Health, port: int) -> Object:
    if health.path is not None:
        return {"httpGet": {"path": health.path, "port": PORT_NAME, "scheme": "HTTP"}}
    assert health.command is not None  # the service file has nothing else for this platform
    return {"exec": {"command": _words(health.command, port)}}


def _resources(release: Release) -> Object:
    place, memory = place_of(release), release.run.limits.memory or MEMORY_BYTES
    asked, limit = place.requests, place.cpu_limit
    limits = {"memory": str(memory)} | ({"cpu": _cpu(limit)} if limit else {})
    cpu = min(asked.cpu, limit) if limit else asked.cpu
    return {
        "requests": {"cpu": _cpu(cpu), "memory": str(min(asked.memory, memory))},
        "limits": limits,
    }


def _cpu(cores: float) -> str:
    return f"{max(1, round(cores * 1000))}m"


def _mounts(release: Release) -> list[Object]:
    mounts: list[Object] = [
        {"name": name, "mountPath": path} for name, path in _writable(release).items()
    ]
    for key, target in file_keys(release).items():
        path = posixpath.normpath(posixpath.join(release.workdir, target))
        mounts.append({"name": "files", "mountPath": path, "subPath": key, "readOnly": True})
    return mounts


def _volumes(release: Release) -> list[Object]:
    in_memory = {"medium": "Memory", "sizeLimit": WRITABLE}
    volumes: list[Object] = [{"name": name, "emptyDir": in_memory} for name in _writable(release)]
    if keys := list(file_keys(release)):
        items = [{"key": key, "path": key} for key in keys]
        volumes.append({"name": "files", "configMap": {"name": release.id, "items": items}})
    return volumes


def _writable(release: Release) -> dict[str, str]:
    """Volume -> directory."""
    paths = dict.fromkeys(["/tmp", *release.run.writable])  # noqa: S108 - inside
    return {f"writable-{number}": path for number, path in enumerate(paths)}


def file_keys(release: Release) -> dict[str, str]:
    """Key in the ConfigMap -> path in the working directory, which no key could spell."""
    return {f"file-{number}": target for number, target in enumerate(sorted(release.files))}


def _words(command: Command, port: int) -> list[str]:
    """Kubernetes would fill in $(NAME), and takes $$ for a $."""
    words = shlex.split(command) if isinstance(command, str) else command
    return [word.replace("{port}", str(port)).replace("$", "$$") for word in words]


def place_of(release: Release) -> Kubernetes:
    assert release.kubernetes is not None, f"{release.id} is none for Kubernetes"
    return release.kubernetes
