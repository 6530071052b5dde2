"""The manifests that ship, as objects: a namespace and an image put in. kubectl is not needed: of
kustomize the few words are read that these files use. What uses more, kubectl renders."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blocks import kubectl
from policy.errors import BadInput

FILES = Path(__file__).parent / "kubernetes"
OVERLAYS = ("postgres", "external-database")
OWN_NAMESPACE = "dafnck"  # as it is written in the files
OWN_IMAGE = "dafnck"  # likewise
WORKER = "dafnck-worker"
WORDS = {"apiVersion", "kind", "namespace", "resources", "images"}
KUSTOMIZATION = "kustomization.yaml"
CLUSTER_WIDE = (
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "StorageClass",
)
Object = dict[str, Any]


def overlay(name: str) -> Path:
    """One that ships, by its name, or a folder. Raises BadInput."""
    folder = FILES / "overlays" / name if name in OVERLAYS else Path(name)
    if not (folder / KUSTOMIZATION).is_file():
        raise BadInput(
            f"--overlay {name}: there is no {folder / KUSTOMIZATION}; name one of "
            f"{', '.join(OVERLAYS)}, "
            "or a folder with a kustomization"
        )
    return folder


def rendered(folder: Path, namespace: str | None = None, image: str | None = None) -> list[Object]:
    """The objects of a kustomization, with this image of dafnck. None: the namespace and the image
    that it says itself. Raises BadInput for what is none."""
    objects = _objects(folder)
    if image is not None:
        if (held := own_image(objects)) is None:
            raise BadInput(
                f"--image: {folder} has no Deployment {WORKER}, so which of its images is dafnck's "
                "is not known; write it into the kustomization. Nothing was changed"
            )
        name = _split(held)[0]
        for container in _all_containers(objects):
            if _split(container["image"])[0] == name:
                container["image"] = image
    for one in objects:
        if namespace is not None:
            _move(one, namespace)
        elif one["kind"] not in CLUSTER_WIDE:
            one["metadata"].setdefault("namespace", namespace_of(objects))
    return objects


def namespace_of(objects: list[Object]) -> str:
    """Where dafnck itself is in them."""
    for one in objects:
        if _is_worker(one):
            return str(one["metadata"].get("namespace", OWN_NAMESPACE))
    return OWN_NAMESPACE


def own_image(objects: list[Object]) -> str | None:
    """That of dafnck, whatever an overlay called it."""
    for one in objects:
        if _is_worker(one):
            for container in _containers(one):
                return str(container["image"])
    return None


def is_pinned(image: str | None) -> bool:
    """An overlay said where it is, or which it is."""
    return image is not None and (_split(image)[0] != OWN_IMAGE or "@" in image)


def _is_worker(one: Object) -> bool:
    return bool(one["kind"] == "Deployment" and one["metadata"]["name"] == WORKER)


def _objects(folder: Path) -> list[Object]:
    path = folder / KUSTOMIZATION
    if not path.is_file():
        raise BadInput(f"there is no {path}")
    found = list(_documents(path.read_text(), path))
    if len(found) != 1 or not isinstance(found[0], dict):
        raise BadInput(f"{path}: one document is expected, a mapping")
    kustomization = found[0]
    resources, images = _words(kustomization, "resources", str, path), []
    for image in _words(kustomization, "images", dict, path):
        if not isinstance(image.get("name"), str):
            raise BadInput(f"{path}: images: each needs a name")
        images.append(image)
    if set(kustomization) - WORDS or any(_is_elsewhere(one) for one in resources):
        return _checked(_documents(_by_kubectl(folder), path), path)
    objects: list[Object] = []
    for resource in resources:
        there = folder / resource
        if there.is_dir():
            objects += _objects(there)
        elif there.is_file():
            objects += _checked(_documents(there.read_text(), there), there)
        else:
            raise BadInput(f"{path}: resources: there is no {there}")
    if namespace := kustomization.get("namespace"):
        for one in objects:
            _move(one, str(namespace))
    for image in images:
        for container in _all_containers(objects):
            if _split(container["image"])[0] == image["name"]:
                container["image"] = _renamed(container["image"], image)
    return objects


def _words(kustomization: Object, name: str, kind: type, path: Path) -> list[Any]:
    value = kustomization.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise BadInput(f"{path}: {name}: a list of {'names' if kind is str else 'mappings'}")
    return value


def _is_elsewhere(resource: str) -> bool:
    return "://" in resource or resource.startswith(("git@", "github.com/"))


def _checked(documents: Iterable[Any], path: Path) -> list[Object]:
    objects = []
    for one in documents:
        meta = one.get("metadata") if isinstance(one, dict) else None
        named = isinstance(meta, dict) and isinstance(meta.get("name"), str)
        if not named or not one.get("kind") or not one.get("apiVersion"):
            raise BadInput(f"{path}: an object needs apiVersion, kind and metadata.name")
        objects.append(one)
    return objects


def _split(image: str) -> tuple[str, str]:
    """-> its name, and the tag and digest with what sets them off. A port is no tag."""
    before = image.partition("@")[0]
    colon = before.find(":", before.rfind("/") + 1)
    name = before if colon < 0 else before[:colon]
    return name, image[len(name) :]


def _renamed(image: str, words: Object) -> str:
    before, rest = _split(image)
    name = words.get("newName", before)
    if digest := words.get("digest"):
        return f"{name}@{digest}"
    return f"{name}:{words['newTag']}" if "newTag" in words else f"{name}{rest}"


def _move(one: Object, namespace: str) -> None:
    """Into this namespace, and what is said there of accounts in dafnck's own with it."""
    meta = one["metadata"]
    if one["kind"] == "Namespace":
        meta["name"] = namespace
    if one["kind"] in CLUSTER_WIDE:
        return
    before = meta.get("namespace", namespace)
    meta["namespace"] = namespace
    for subject in one.get("subjects") or []:
        if subject.get("namespace") == before:
            subject["namespace"] = namespace


def _all_containers(objects: list[Object]) -> list[Object]:
    return [container for one in objects for container in _containers(one)]


def _containers(value: Any) -> Iterator[Object]:
    """Wherever they are: in the template of a Deployment, in that of a CronJob."""
    for name, below in value.items() if isinstance(value, dict) else enumerate(value):
        if name in ("initContainers", "containers") and isinstance(below, list):
            yield from (one for one in below if isinstance(one, dict) and "image" in one)
        elif isinstance(below, dict | list):
            yield from _containers(below)


def _documents(text: str, path: Path) -> Iterator[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        for document in YAML(typ="safe", pure=True).load_all(text):
            if document is not None:
                yield document
    except YAMLError as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from None


def _by_kubectl(folder: Path) -> str:
    return kubectl.rendered(
        folder,
        f"{folder} uses more of kustomize than {', '.join(sorted(WORDS))} of files, and there is "
        "no kubectl to render it; nothing was changed",
        "--load-restrictor=LoadRestrictionsNone",
    )
