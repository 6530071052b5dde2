"""More manifests of a team, beside those that follow from its service file: a folder of YAML, or a
kustomization, which kubectl renders."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blocks.kubectl import rendered
from policy.errors import BadInput

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
MAX_BYTES = 4 * 2**20


def read_manifests(folder: Path, namespace: str) -> tuple[dict[str, Any], ...]:
    """-> the objects, in the order of the files. Raises BadInput, with the file, for what cannot be
    meant; Refused for a kustomization where there is no kubectl."""
    if any((folder / name).is_file() for name in KUSTOMIZATIONS):
        texts = [(folder, _rendered(folder))]
    else:
        found = sorted(path for path in folder.rglob("*") if _is_manifest(path))
        texts = [(path, _text(path)) for path in found]
    objects = [one for path, text in texts for one in _objects(path, text, namespace)]
    if not objects:
        raise BadInput(f"{folder}: holds no manifest (*.yaml, *.yml, *.json)")
    seen: set[tuple[str, str]] = set()
    for one in objects:
        named = one["kind"], one["metadata"]["name"]
        if named in seen:
            raise BadInput(f"{folder}: there are two {named[0]} {named[1]}")
        seen.add(named)
    return tuple(objects)


def _is_manifest(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml", ".json") and path.is_file()


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    if len(text) > MAX_BYTES:
        raise BadInput(f"{path}: over {MAX_BYTES:,} bytes")
    return text


def _rendered(folder: Path) -> str:
    return rendered(
        folder,
        f"{folder} is a kustomization, and there is no kubectl to render it; nothing was changed. "
        "Install kubectl, or render it into a folder of manifests",
    )


def _objects(path: Path, text: str, namespace: str) -> Iterator[dict[str, Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        documents = list(YAML(typ="safe", pure=True).load_all(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInput(f"{path}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from None
    for document in documents:
        if document is None:
            continue
        listed = isinstance(document, Mapping) and str(document.get("kind", "")).endswith("List")
        for one in document.get("items") or [] if listed else [document]:
            yield _checked(path, one, namespace)


def _checked(path: Path, one: Any, namespace: str) -> dict[str, Any]:
    meta = one.get("metadata") if isinstance(one, Mapping) else None
    if not isinstance(meta, Mapping) or not meta.get("name"):
        raise BadInput(f"{path}: an object without apiVersion, kind and metadata.name")
    for key in ("apiVersion", "kind"):
        if not isinstance(one.get(key), str):
            raise BadInput(f"{path}: {meta['name']}: {key} is missing")
    named = f"{one['kind']} {meta['name']}"
    if meta.get("namespace") not in (None, namespace):
        raise BadInput(
            f"{path}: {named} is for the namespace {meta['namespace']}; the service is in "
            f"{namespace}"
        )
    if one["kind"] == "Secret":
        # It would lie in the ledger with the release.
        raise BadInput(
            f"{path}: {named}: no secrets in manifests. Create it by other means and name it in "
            "run.secrets"
        )
    return dict(one)
