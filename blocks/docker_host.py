"""Workloads as containers of this machine's Docker engine, each replica on a loopback port.

A container that was stopped is kept, with its log, until the release is removed: an old release
starts again as it was.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from zlib import crc32

from blocks.container import (
    RELEASE,
    REPLICA,
    STACK,
    Logged,
    Seen,
    last_words,
    logged,
    seen,
    settings,
)
from blocks.container_release import ContainerReleases
from blocks.docker_engine import asking, engine
from blocks.files import locked
from blocks.images import Images
from blocks.loopback import connections_to, http_trouble, is_free, url_of
from blocks.release_secrets import ReleaseSecrets
from blocks.stack import Stack
from policy.errors import NotApplied, Refused
from policy.image import Image
from policy.release import Endpoints, Release

CRASHES = 3  # starts without success after which a replica is given up
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class DockerHost:
    """Workloads in containers."""

    def __init__(self, stack: Stack) -> None:
        self._releases = ContainerReleases(stack)
        self._secrets = ReleaseSecrets(stack)
        self._images = Images(stack.scratch)
        # Containers of two homes on one machine must not be taken for each other's.
        self._mark = f"{crc32(str(stack.home).encode()):08x}"

    def knows(self, release_id: str) -> bool:
        """Is it a release of images?"""
        return self._releases.knows(release_id)

    # -- Workloads ---------------------------------------------------------------------------

    def start(self, release: Release, replicas: int) -> None:
        image = self._releases.lay_out(release)
        name = self._runnable(image, release.id)
        # The guard and `dafnck up` may mean the same replica.
        with locked(self._releases.folder(release.id) / "start.lock"):
            if not self._releases.wanted(release.id) and self._secrets.due(release):
                for number in self._numbers(release.id):  # made with what it had before
                    self._forget(release.id, number)
                self._secrets.provide(release)
            self._releases.want(release.id, replicas)
            for number in range(replicas):
                self._run(release, number, name)
        extra = [n for n in self._numbers(release.id) if n >= replicas]
        self._stop(release.id, extra, release.run.grace)

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        release, wanted = self._releases.release(release_id), self._releases.wanted(release_id)
        if release is None or not wanted:
            return Endpoints(release_id, 0, (), ())
        ports = [self._releases.port(release_id, number) or 0 for number in range(wanted)]
        with ThreadPoolExecutor(max_workers=8) as pool:
            all_seen = list(pool.map(lambda n: self._look(release_id, n), range(wanted)))
            troubles = list(
                pool.map(
                    lambda pair: self._check(release, *pair, quick=quick),
                    zip(all_seen, ports, strict=True),
                )
            )
        urls = tuple(url_of(port) for port in ports)
        health = release.run.health
        # First of one that ended: what another one, just started, does not answer yet, says less.
        pairs = [pair for pair in zip(all_seen, troubles, strict=True) if pair[1]]
        pairs.sort(key=lambda pair: not (pair[0] and pair[0].ended))
        said, trouble = "" if quick else self._last_words(all_seen), pairs[0][1] if pairs else ""
        if said or trouble:
            hidden = self._secrets.redactor(release_id)
            said, trouble = hidden.clean(said), hidden.clean(trouble)
        return Endpoints(
            release_id=release_id,
            wanted=wanted,
            ready=tuple(url for url, t in zip(urls, troubles, strict=True) if not t),
            urls=urls,
            # Of the client's end alone: with the engine's proxy both are on this machine, without
            # it (userland-proxy: false) the other one is in the container's network.
            connections=connections_to(ports, by_client=True),
            trouble=trouble,
            health_path=health.path,
            fatal=any(s is not None and s.ended and s.restarts + 1 >= CRASHES for s in all_seen),
            restarts=sum(s.restarts for s in all_seen if s is not None),
            last_words=said,
            health_timeout=health.timeout,
            host=release.host,
            port=release.route.port,
        )

    def stop(self, release_id: str, grace_seconds: float) -> None:
        self._stop(release_id, self._numbers(release_id), grace_seconds)
        self._releases.want(release_id, 0)

    def running(self) -> list[str]:
        return self._releases.running()

    def remove(self, release_id: str) -> None:
        if self._releases.wanted(release_id):
            raise Refused(f"{release_id} still runs; it was not removed")
        for number in self._numbers(release_id):
            self._forget(release_id, number)
        self._releases.forget(release_id)
        self._secrets.forget(release_id)

    # -- beside the port -----------------------------------------------------------------------

    def stop_all(self) -> list[str]:
        """Every container of this stack, as when the machine goes down; what is wanted stays
        wanted. -> ids of the releases."""
        ids = self.running()
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(self._stop_as_it_says, ids))
        return ids

    def log(self, release_id: str, lines: int, after: str = "") -> Iterator[Logged]:
        """What its replicas wrote last, those that were stopped too; `after`: what came later."""
        for number in self._numbers(release_id):
            yield from logged(f"{release_id}.{number}", lines, after)

    # -- containers ----------------------------------------------------------------------------

    def _runnable(self, image: Image, release_id: str) -> str:
        """-> the image by its digest or id, which the engine has and this machine can run."""
        if not self._images.have(image):
            raise NotApplied(
                f"the image of {release_id}, {image.reference}, is neither in the engine nor in a "
                "registry any more; nothing was started, what serves still serves. Release again"
            )
        name = self._images.held(image)
        with asking(f"look at {name}"):
            made_for, ours = engine().inspect_image(name), engine().info()["Architecture"]
        if made_for["Architecture"] != ARCHITECTURES.get(ours, ours):
            raise NotApplied(
                f"the image of {release_id} is made for {made_for['Architecture']}, this machine "
                f"is {ARCHITECTURES.get(ours, ours)}; nothing was started, what serves still "
                "serves. Build it here, or for this machine"
            )
        return name

    def _run(self, release: Release, number: int, image: str) -> None:
        """Have this replica run, on the port that it had when that is still free."""
        name = f"{release.id}.{number}"
        for _ in range(3):  # somebody may take a port between our look and the engine's
            port = self._releases.port(release.id, number)
            free = port is not None and is_free(port)
            found = self._look(release.id, number)  # after the port: it may be starting itself
            if found and not found.ended:
                if found.status == "paused":
                    with asking(f"go on with {name}"):
                        engine().unpause(name)
                return
            if port is None or not free:
                port = self._releases.choose_port(release.id, number)
            if found and found.port != port:
                self._forget(release.id, number)
                found = None
            with asking(f"start {name}"):
                if not found:
                    files = self._releases.folder(release.id) / "files"
                    values = self._secrets.values(release.id)
                    made = settings(
                        engine(), release, number, image, port, files, self._mark, values
                    )
                    engine().create_container_from_config(made, name)
                taken = self._begin(name)
            if not taken:
                return
            self._releases.choose_port(release.id, number)
        raise NotApplied(f"{name} cannot be started: other programs take the ports chosen for it")

    def _begin(self, name: str) -> bool:
        """-> whether its port was taken meanwhile."""
        from blocks.docker_errors import APIError

        try:
            engine().start(name)
        except APIError as error:
            said = str(error.explanation or error)
            if "already allocated" in said or "address already in use" in said:
                return True
            if "OCI runtime create failed" in said or "executable file not found" in said:
                raise NotApplied(
                    f"{name} cannot be started: {said.rpartition('starting container process')[2]}"
                    "; what serves still serves. Is run.command a program of the image?"
                ) from error
            raise
        return False

    def _look(self, release_id: str, number: int) -> Seen | None:
        """None when there is no such container. Raises NotApplied when it is somebody else's."""
        name = f"{release_id}.{number}"
        found = seen(name)
        if found and found.labels.get(STACK) != self._mark:
            raise NotApplied(
                f"there is a container {name} that is not of this stack; nothing was started, what "
                f"serves still serves. Rename it: docker rename {name} other"
            )
        return found

    def _numbers(self, release_id: str) -> list[int]:
        """Of its containers, also of those that were stopped."""
        labels = [f"{RELEASE}={release_id}", f"{STACK}={self._mark}"]
        with asking(f"list the containers of {release_id}"):
            found = engine().containers(all=True, filters={"label": labels})
        return sorted(int(one["Labels"][REPLICA]) for one in found)

    def _stop(self, release_id: str, numbers: Sequence[int], grace_seconds: float) -> None:
        from blocks.docker_errors import NotFound

        def stop(number: int) -> None:
            name = f"{release_id}.{number}"
            with asking(f"stop {name}"), suppress(NotFound):  # somebody removed it meanwhile
                engine().stop(name, timeout=max(1, round(grace_seconds)))
            found = self._look(release_id, number)
            if found and not found.ended:
                raise NotApplied(f"{name} does not end, not even by SIGKILL")

        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(stop, numbers))

    def _stop_as_it_says(self, release_id: str) -> None:
        release = self._releases.release(release_id)
        grace = release.run.grace if release else 10.0
        self._stop(release_id, self._numbers(release_id), grace)

    def _forget(self, release_id: str, number: int) -> None:
        from blocks.docker_errors import NotFound

        with asking(f"remove {release_id}.{number}"), suppress(NotFound):
            engine().remove_container(f"{release_id}.{number}", force=True, v=True)

    # -- looking -------------------------------------------------------------------------------

    def _check(self, release: Release, found: Seen | None, port: int, *, quick: bool) -> str:
        """Why this replica is not ready; empty when it is."""
        if found is None:
            return "its container is gone"
        if found.status != "running":
            words = found.trouble or last_words(found.name) or f"exit code {found.exit_code}"
            return f"{found.status}: {words}"
        if quick:
            return ""
        health = release.run.health
        if health.path is not None:
            return http_trouble(port, health.path, health.timeout)
        return found.health_trouble

    def _last_words(self, replicas: Sequence[Seen | None]) -> str:
        """What one that ended wrote last, before it was started again."""
        for found in replicas:
            if found and found.restarts and (words := found.trouble or last_words(found.name)):
                return words
        return ""
