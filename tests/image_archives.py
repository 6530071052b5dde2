"""Image archives as `docker save` writes them, made by hand: no engine is needed."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any


def image_archive(
    path: Path, files: dict[str, str], config: dict[str, Any] | None = None, *, made_by: str = ""
) -> Path:
    """One layer with these files. `config`: Env, User, Cmd, Healthcheck, as Docker keeps them."""
    layer = _tar({name: content.encode() for name, content in files.items()})
    digest = hashlib.sha256(layer).hexdigest()
    step = {"created": "2026-01-01T00:00:00Z", "created_by": made_by or "COPY . / # buildkit"}
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [step],
    }
    about = json.dumps(document).encode()
    name = f"{hashlib.sha256(about).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": ["shop:1"], "Layers": [f"{digest}/layer.tar"]}]
    path.write_bytes(
        _tar(
            {
                name: about,
                f"{digest}/layer.tar": layer,
                "manifest.json": json.dumps(manifest).encode(),
            }
        )
    )
    return path


def _tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()
