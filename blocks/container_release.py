"""The folder of a release of containers: its image by digest, its configuration, the port of each
replica, and how many are wanted. Asking it asks no engine."""

import json
import shutil
from pathlib import Path

from blocks.files import locked, write_atomically
from blocks.images import FILE, read_image, write_image
from blocks.loopback import PORTS_LOCK, free_port
from blocks.stack import Stack
from policy.errors import NotApplied
from policy.image import Image
from policy.release import Release


class ContainerReleases:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def folder(self, release_id: str) -> Path:
        return self._stack.releases / release_id

    def knows(self, release_id: str) -> bool:
        """Is it a release of images?"""
        return (self.folder(release_id) / FILE).exists()

    def lay_out(self, release: Release) -> Image:
        """Pin the image and write the configuration, all or nothing."""
        folder = self.folder(release.id)
        with locked(self._stack.releases / "containers.lock"):
            if not (folder / "release.json").exists():
                self._fill(release, folder)
            elif not self.wanted(release.id):
                # Nobody knows what was done to its files since it ran.
                self._write_files(release, folder)
        pinned = read_image(folder)
        built = read_image(self._stack.artifacts / release.artifact)
        if pinned is None or (built is not None and pinned != built):
            raise NotApplied(
                f"{folder / FILE} was changed: it is not the image of artifact {release.artifact}; "
                "nothing was started, what serves still serves. Release again"
            )
        return pinned

    def _fill(self, release: Release, folder: Path) -> None:
        image = read_image(self._stack.artifacts / release.artifact)
        if image is None:
            raise NotApplied(
                f"artifact {release.artifact} is no image in {self._stack.artifacts}; nothing was "
                "started"
            )
        shutil.rmtree(folder, ignore_errors=True)
        self._write_files(release, folder)
        write_image(folder, image)
        write_atomically(folder / "release.json", release.model_dump_json(indent=1), 0o600)

    def _write_files(self, release: Release, folder: Path) -> None:
        for target, content in release.files.items():
            path = folder / "files" / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)  # whoever the image runs as; the home is closed to others

    def release(self, release_id: str) -> Release | None:
        try:
            content = (self.folder(release_id) / "release.json").read_text()
        except FileNotFoundError:
            return None
        return Release.model_validate_json(content)

    def wanted(self, release_id: str) -> int:
        try:
            return int((self.folder(release_id) / "wanted").read_text())
        except FileNotFoundError:
            return 0

    def want(self, release_id: str, replicas: int) -> None:
        if self.folder(release_id).exists() and self.wanted(release_id) != replicas:
            write_atomically(self.folder(release_id) / "wanted", f"{replicas}\n")

    def running(self) -> list[str]:
        folders = self._stack.releases.glob("*/wanted")
        return sorted(path.parent.name for path in folders if self.wanted(path.parent.name))

    def port(self, release_id: str, number: int) -> int | None:
        try:
            spec = (self.folder(release_id) / f"replica-{number}.json").read_text()
        except FileNotFoundError:
            return None
        return int(json.loads(spec)["port"])

    def choose_port(self, release_id: str, number: int) -> int:
        with locked(self._stack.releases / PORTS_LOCK):
            port = free_port(self._stack.releases)
            path = self.folder(release_id) / f"replica-{number}.json"
            write_atomically(path, json.dumps({"port": port}))
        return port

    def forget(self, release_id: str) -> None:
        shutil.rmtree(self.folder(release_id), ignore_errors=True)
