"""Runs the command of a suite in a container of the image that ships.

It gets nothing of our environment, and what it may write is gone with it, but for its reports.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blocks.confined import OUTPUT_BYTES, CannotRun, Ended
from blocks.docker_engine import asking, engine
from blocks.files import read_plain_file, scratch
from blocks.images import Images
from blocks.processes import CHILD_OF, lives, marked
from policy.errors import DafnckError
from policy.image import Image

REPORTS = Path("/dafnck-reports")  # inside
OWNER = "dafnck.suite-of"  # which process of which machine waits for it
MEMORY_BYTES = 2 * 2**30
PROCESSES = 2048


@contextmanager
def in_container(
    argv: Sequence[str],
    image: Image,
    place: Path,
    reports: Mapping[str, Path],
    *,
    within_seconds: float,
    environment: Mapping[str, str],
    over: threading.Event,
) -> Iterator[Ended]:
    """Run it in a fresh container, which is killed in time, and removed. `reports`: what it wrote
    in REPORTS under these names is copied there. `over`: when it is set, it is killed. Raises
    CannotRun."""
    try:
        with scratch(place, "i") as here:
            written, answer = here / "reports", here / "answer"
            written.mkdir()
            written.chmod(0o777)  # whoever the image runs as; the home is closed to others
            _remove_left_behind()
            name = _create(argv, image, written, environment)
            try:
                code, trouble = _run(name, argv[0], within_seconds, over)
                said = _output(name, answer)
            finally:
                _remove(name)
            for file, target in reports.items():
                if (written / file).exists() and not (written / file).is_symlink():
                    target.write_bytes(read_plain_file(written / file, OUTPUT_BYTES))
            yield Ended(code, answer, answer, trouble or said)
    except (DafnckError, OSError) as error:
        raise CannotRun(str(error)) from error


def _create(
    argv: Sequence[str], image: Image, reports: Path, environment: Mapping[str, str]
) -> str:
    images, mark = Images(reports.parent), marked({})[CHILD_OF]
    if not images.have(image):
        raise CannotRun(f"the image {image.reference} is nowhere any more; release again")
    with asking(f"create a container of {image.reference}"):
        made = engine().create_container_from_config(
            {
                "Image": images.held(image),
                "Entrypoint": list(argv[:1]),
                "Cmd": list(argv[1:]),
                # The mark lets whoever tidies up find what a killed process left running.
                "Env": [
                    f"{name}={value}" for name, value in {**environment, CHILD_OF: mark}.items()
                ],
                "Labels": {OWNER: mark},
                "Healthcheck": {"Test": ["NONE"]},
                "HostConfig": {
                    "Init": True,
                    "SecurityOpt": ["no-new-privileges"],
                    "CapDrop": ["ALL"],
                    "Memory": MEMORY_BYTES,
                    "MemorySwap": MEMORY_BYTES,
                    "PidsLimit": PROCESSES,
                    "Ulimits": [{"Name": "fsize", "Soft": OUTPUT_BYTES, "Hard": OUTPUT_BYTES}],
                    "LogConfig": {
                        "Type": "json-file",
                        "Config": {"max-size": "10m", "max-file": "2"},
                    },
                    "Mounts": [{"Type": "bind", "Source": str(reports), "Target": str(REPORTS)}],
                },
            }
        )
    return str(made["Id"])


def _run(
    name: str, program: str, within_seconds: float, over: threading.Event
) -> tuple[int | None, str]:
    """-> (its exit code, or None when it did not end in time; what the engine says of its end)"""
    with asking(f"run {program}"):
        engine().start(name)
        give_up = time.monotonic() + within_seconds
        while (state := engine().inspect_container(name)["State"])["Running"]:
            if over.wait(0.2):
                raise CannotRun(f"{program} was stopped")
            if time.monotonic() > give_up:
                engine().kill(name)
                return None, ""
    return int(state["ExitCode"]), "out of memory" if state["OOMKilled"] else state["Error"]


def _output(name: str, answer: Path) -> str:
    """Write what it said to `answer`. -> the last words of it"""
    with asking("read the output of a suite"), answer.open("wb") as file:
        for chunk in engine().logs(name, stream=True, follow=False):
            file.write(chunk)
    with answer.open("rb") as file:
        file.seek(max(0, answer.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def _remove(name: str) -> None:
    from blocks.docker_errors import NotFound

    with asking("remove the container of a suite"):
        try:
            engine().remove_container(name, force=True, v=True)
        except NotFound:
            return


def _remove_left_behind() -> None:
    """Containers whose process was killed: nobody waits for them any more."""
    with asking("list the containers of suites"):
        found: list[Any] = engine().containers(all=True, filters={"label": OWNER})
    for one in found:
        if not lives(one["Labels"][OWNER]):
            _remove(one["Id"])
