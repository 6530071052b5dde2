"""kubectl, where it is installed: renders kustomizations."""

import shutil
import subprocess
from pathlib import Path

from policy.errors import BadInput, Refused

RENDER_SECONDS = 60.0


def rendered(folder: Path, without: str, *options: str) -> str:
    """-> the objects of a kustomization, as YAML. `without`: what to say where there is no kubectl.
    Raises Refused then, and when it takes too long; BadInput, with its last line, when it fails."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise Refused(without)
    try:
        done = subprocess.run(
            [kubectl, "kustomize", *options, str(folder)],
            capture_output=True,
            text=True,
            timeout=RENDER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"kubectl did not render {folder} in {RENDER_SECONDS:g}s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise BadInput(f"{folder}: kubectl kustomize: {last}")
    return done.stdout
