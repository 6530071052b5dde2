"""What a switch costs on a real cluster, side by side with `kubectl set image` under the same load.

    python -m bench.kube_switch [--requests N] [--switches N] [--json FILE] [--only kubectl|dafnck]

The cluster is that of KUBECONFIG. It needs a registry that its nodes and this machine reach
(--registry), a Gateway (--gateway), and on this machine `kubectl` and a Docker engine, which builds
the image. Ours: as in bench.switch, through the ordinary flow. Kubernetes' own: a Deployment, a
Service and an HTTPRoute on the same Gateway, `kubectl set image` and `kubectl rollout undo`, each
waited for by `kubectl rollout status`; once as it comes, once with a preStop hook that sleeps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import switch
from bench.probe_image import PORT, USER, image_file, image_source
from bench.stage import Stage, stage

NAMESPACE = "dafnck-bench"
RIVAL = "rival"
PRE_STOP_SECONDS = 10  # longer than any WebSocket of the load lasts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registry", default="127.0.0.1:5000")
    parser.add_argument("--gateway", default="infra/web")
    parser.add_argument("--url", default="http://127.0.0.1:8880", help="where it is reached")
    parser.add_argument("--traefik", default="http://127.0.0.1:8881", help="its metrics")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--switches", type=int, default=20, help="of each, half of them back")
    parser.add_argument("--only", choices=["kubectl", "dafnck"])
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, namespace():
        folder = Path(name)
        if wanted.only != "dafnck":
            images = two_images(folder / "image", f"{wanted.registry}/{NAMESPACE}/rival")
            for title, hook in (("no preStop", 0), (f"preStop {PRE_STOP_SECONDS} s", 10)):
                figures[f"kubectl set image, {title}"] = by_kubectl(wanted, images, hook)
        if wanted.only != "kubectl":
            (folder / "stage").mkdir()
            with kube_stage(folder / "stage", wanted) as here:
                figures["dafnck"] = switch.measure(here, wanted.requests, wanted.switches // 2)
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1) + "\n")
    ours = figures.get("dafnck", {})
    parts = [ours[part] for part in switch.PARTS if part in ours]
    sys.exit(any(part["failed"] or part["websockets_cut"] for part in parts))


@contextmanager
def namespace() -> Iterator[None]:
    """Of its own, where Pod Security takes nothing but "restricted"; gone afterwards."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {"metadata": {"name": NAMESPACE, "labels": enforce}}
    apply({"apiVersion": "v1", "kind": "Namespace"} | made)
    try:
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=180s")


# -- ours ----------------------------------------------------------------------------------------


@contextmanager
def kube_stage(folder: Path, wanted: argparse.Namespace) -> Iterator[Stage]:
    write = partial(
        kube_file,
        gateway=wanted.gateway,
        url=wanted.url,
        metrics={"traefik": wanted.traefik},
        push=f"{wanted.registry}/{NAMESPACE}/switch",
    )
    with stage(folder, write) as here:
        image_source(here.folder / "image")
        here.url = wanted.url
        try:
            yield here
        finally:
            switch.remove_releases(here)


def kube_file(file: Path, name: str, parts: dict[str, Any], *, push: str, **there: Any) -> Path:
    parts = {**parts, "platform": "kubernetes", "kubernetes": {"namespace": NAMESPACE, **there}}
    return image_file(file, name, parts, push=push)


# -- theirs --------------------------------------------------------------------------------------


def by_kubectl(wanted: argparse.Namespace, images: list[str], pre_stop: int) -> dict[str, Any]:
    for body in rival(images[0], pre_stop, wanted.gateway):
        apply(body)
    rolled_out()
    with switch.load(wanted.url, f"{RIVAL}.bench.localhost", "150") as result:
        for number in range(wanted.switches):
            if number % 2:
                kubectl("-n", NAMESPACE, "rollout", "undo", f"deployment/{RIVAL}")
            else:
                kubectl("-n", NAMESPACE, "set", "image", f"deployment/{RIVAL}", f"app={images[1]}")
            rolled_out()
            print(f"  preStop {pre_stop}: {number + 1} of {wanted.switches}", file=sys.stderr)
    for kind in ("deployment", "service", "httproute"):
        kubectl("-n", NAMESPACE, "delete", kind, RIVAL, "--wait=true")
    return {"switches": wanted.switches, **result, "failures": result["failures"][:20]}


def rolled_out() -> None:
    """As people wait for it: old pods may still be on their way out."""
    kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{RIVAL}", "--timeout=300s")


def rival(image: str, pre_stop: int, gateway: str) -> Iterator[dict[str, Any]]:
    """What a team would write that knows readiness probes, and lets requests end."""
    labels, meta = {"app": RIVAL}, {"name": RIVAL, "namespace": NAMESPACE}
    container: dict[str, Any] = {
        "name": "app",
        "image": image,
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if pre_stop:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": pre_stop}}}
    pod = {
        "terminationGracePeriodSeconds": pre_stop + 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": switch.RUN["replicas"],
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    where, _, name = gateway.rpartition("/")
    parent = {"name": name, **({"namespace": where} if where else {})}
    yield {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": meta,
        "spec": {
            "parentRefs": [parent],
            "hostnames": [f"{RIVAL}.bench.localhost"],
            "rules": [{"backendRefs": [{"name": RIVAL, "port": 80}]}],
        },
    }


def two_images(folder: Path, repository: str) -> list[str]:
    """Built here and pushed. -> their references by digest"""
    image_source(folder)
    pushed = []
    for words in ("one", "two"):
        tagged = f"{repository}:{words}"
        ran("docker", "build", "-q", "--build-arg", f"WORDS={words}", "-t", tagged, str(folder))
        ran("docker", "push", "-q", tagged)
        held = ran("docker", "inspect", "--format", "{{json .RepoDigests}}", tagged)
        pushed.append(next(d for d in json.loads(held) if d.startswith(f"{repository}@")))
        ran("docker", "rmi", tagged)
    return pushed


def apply(body: dict[str, Any]) -> None:
    ran("kubectl", "apply", "-f", "-", told=json.dumps(body))


def kubectl(*words: str) -> str:
    return ran("kubectl", *words)


def ran(*argv: str, told: str | None = None) -> str:
    done = subprocess.run(argv, input=told, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
