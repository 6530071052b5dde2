"""Workloads of one machine, each release on the platform that it was made for: a service may move
from one to the other by a release, and back by a rollback."""

from blocks.docker_host import DockerHost
from blocks.local_processes import LocalProcesses
from blocks.ports import Workloads
from blocks.stack import Stack
from policy.release import Endpoints, Release


class ByRelease:
    """Processes and containers. What is no container never asks the Docker engine."""

    def __init__(self, stack: Stack) -> None:
        self._processes = LocalProcesses(stack)
        self._containers = DockerHost(stack)

    def start(self, release: Release, replicas: int) -> None:
        there = self._containers if release.platform == "docker" else self._processes
        there.start(release, replicas)

    def endpoints(self, release_id: str, *, quick: bool = False) -> Endpoints:
        return self._of(release_id).endpoints(release_id, quick=quick)

    def stop(self, release_id: str, grace_seconds: float) -> None:
        self._of(release_id).stop(release_id, grace_seconds)

    def running(self) -> list[str]:
        return sorted([*self._processes.running(), *self._containers.running()])

    def remove(self, release_id: str) -> None:
        self._of(release_id).remove(release_id)

    def _of(self, release_id: str) -> Workloads:
        return self._containers if self._containers.knows(release_id) else self._processes
