"""What the first container of a pod of dafnck does: lay out a home without servers of its own, or
tell Prefect which pool and deployments there are. `python -m deployments.kube_pod home|register`"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blocks.files import write_atomically
from blocks.kube_api import PODS, connect
from blocks.prefect_api import PrefectApi
from blocks.signing import Keys
from blocks.stack import STORE_URL, Ports, Stack, stack_at, stack_home
from policy.errors import BadInput, DafnckError, Unreachable

WORK_POOL = "dafnck-kubernetes"
FILES = Path(__file__).parent / "kubernetes"
SIGNING = Path("/etc/dafnck/signing/signing-key.pem")
TRUSTED = Path("/etc/dafnck/keys")
PREFECT_SECONDS = 600.0  # its database may be migrated


def lay_out(home: Path, signing: Path = SIGNING, trusted: Path = TRUSTED) -> Stack:
    """A home whose ledger, object store and Prefect are those that the environment names. No secret
    is written there. Raises BadInput when the environment names no ledger."""
    if not os.environ.get("DAFNCK_LEDGER_URL"):
        raise BadInput("DAFNCK_LEDGER_URL is not set: a pod has no ledger of its own")
    stack = stack_at(home, Ports())
    folders = (stack.logs, stack.releases, stack.artifacts, stack.reports, home / "tmp")
    for folder in (*folders, stack.secrets, stack.keys):
        folder.mkdir(parents=True, exist_ok=True)
    for key in trusted.glob("*.pem"):
        shutil.copyfile(key, stack.keys / key.name)
    if not os.environ.get("DAFNCK_OBJECT_STORE_URL"):
        # No other pod reads it: a rollback has nothing to verify an artifact by.
        print("DAFNCK_OBJECT_STORE_URL is not set: provenance is kept as long as this pod lives")
        write_atomically(home / STORE_URL, f"file://{home}/objects\n", 0o600)
    if signing.exists():
        Keys(stack.secrets, stack.keys).make(linked_to=signing)
    write_atomically(home / "stack.json", stack.ports.model_dump_json(indent=2) + "\n")
    return stack


def register(
    prefect: PrefectApi,
    template: dict[str, Any],
    deploy: Callable[[], None],
    limit_seconds: float = PREFECT_SECONDS,
) -> None:
    """Have the work pool with this template, then the deployments."""
    give_up = time.monotonic() + limit_seconds
    while not prefect.answers():
        if time.monotonic() > give_up:
            raise Unreachable(f"Prefect at {prefect.url} does not answer in {limit_seconds:g}s")
        time.sleep(1)
    prefect.have_pool_of(WORK_POOL, "kubernetes", template)
    deploy()


def job_template(namespace: str, image: str) -> dict[str, Any]:
    """The base job template for the runs of this namespace, with the worker's own image."""
    path = Path(os.environ.get("DAFNCK_JOB_TEMPLATE") or FILES / "base-job-template.json")
    try:
        template: dict[str, Any] = json.loads(path.read_text())
        properties = template["variables"]["properties"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is no base job template ({error})") from None
    for name, value in (("namespace", namespace), ("image", image)):
        properties[name]["default"] = value
    return template


def _own_image(namespace: str, pod: str) -> str:
    """As the cluster was told: by digest where it was pinned so."""
    found = connect().get(PODS, namespace, pod)
    if found is None:
        raise Unreachable(f"the cluster knows no pod {namespace}/{pod}")
    return str(found["spec"]["containers"][0]["image"])


def _deploy() -> None:
    words = ["--no-prompt", "deploy", "--all", "--prefect-file", str(FILES / "prefect.yaml")]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "prefect"), *words],
        cwd=FILES,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DafnckError(f"no deployments were registered:\n{(done.stdout + done.stderr)[-2000:]}")


def main(words: list[str]) -> None:
    try:
        if words == ["home"]:
            stack = lay_out(stack_home())
            print(f"{stack.home} is laid out")
        elif words == ["register"]:
            namespace, pod = os.environ["DAFNCK_NAMESPACE"], os.environ["DAFNCK_POD"]
            template = job_template(namespace, _own_image(namespace, pod))
            auth = os.environ.get("PREFECT_API_AUTH_STRING")
            with PrefectApi(os.environ["PREFECT_API_URL"], auth) as prefect:
                register(prefect, template, _deploy)
            print(f"the work pool {WORK_POOL} and its deployments are registered")
        else:
            raise BadInput("home or register?")
    except DafnckError as error:
        print(f"dafnck: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
