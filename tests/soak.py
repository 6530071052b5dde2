"""Kills everything, everywhere, under load, and says how long it took until all was whole again.

    python tests/soak.py [--platform local] [--seed 1] [--random 200] [--lanes 3] [--json FILE]
        [--only KIND]

A clean run of each kind is counted first; then a process of its own is killed at every boundary
that was counted (see killed_process.py), and at random moments. After each kill one version must
serve everything within 20 seconds, healthy, with nothing left over and the ledger telling the
truth; the next release must work; and no request of a steady load may have failed.
"""

import argparse
import json
import multiprocessing
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from docker_fixtures import image_source, own_name, remove_containers
from kube_fixtures import Gateway, Kube, gateway, running
from kube_stage import KubeStage, on_gateway

from bench.stage import PROBE, probe_file, stage, write_service
from blocks.builder import Builder
from blocks.container import RELEASE
from blocks.docker_engine import engine
from blocks.files import HALF, locked_if_free
from blocks.image_suites import OWNER
from blocks.kube_api import CONFIG_MAPS, PODS, SERVICES
from blocks.ledger import Ledger
from blocks.load import SteadyLoad
from blocks.platforms import kube_platform, local_platform
from blocks.prefect_api import stack_api
from blocks.processes import CHILD_OF, Process, is_orphan, lives
from blocks.stack import Stack
from blocks.supervisor import Supervisor
from deployments import local_stack
from policy.errors import DafnckError
from policy.kube_names import RELEASE as RELEASE_LABEL
from policy.kube_names import SERVICE
from policy.release import Phase

WHOLE_SECONDS = 20.0
# A suite that takes a moment, so that it is killed now and then.
UNIT = "sleep 0.2; echo '<testsuite><testcase name=\"a\"/></testsuite>' > {junit}"
COUNTING = 1_000_000
PRELOADED = ["flows.release", "flows.rollback", "killed_process", "tasks.charts", "jinja2"]
ALONE = ("worker", "flow and worker")  # kinds that kill what others use


@dataclass(frozen=True)
class Kill:
    kind: str
    at: int = 0  # boundary; 0: at a random moment
    after: float = 0.0  # seconds


@dataclass
class Result:
    kill: Kill
    boundary: str = ""
    whole_seconds: float | None = None  # from the kill until everything was as it must be
    ended: str = ""
    trouble: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Where:
    """What the services run on; `cluster` with its gateway for platform kubernetes."""

    platform: str = "local"
    cluster: tuple[Kube, Gateway] | None = None


LOCAL = Where()


@contextmanager
def where(platform: str, folder: Path) -> Iterator[Where]:
    """A cluster is one of the tests' own, a real Traefik in front; named to all by KUBECONFIG."""
    if platform != "kubernetes":
        yield Where(platform)
        return
    folder.mkdir()
    with running(folder) as kube, gateway(kube) as traefik:
        os.environ["KUBECONFIG"] = str(kube.kubeconfig)
        try:
            yield Where(platform, (kube, traefik))
        finally:
            del os.environ["KUBECONFIG"]


class Lane:
    """One service that is released and killed again and again, under load."""

    def __init__(
        self, stack: Stack, folder: Path, name: str, replicas: int, place: Where = LOCAL
    ) -> None:
        self.stack, self.name, self._in_containers = stack, name, place.platform == "docker"
        self._there = on_gateway(*place.cluster, folder, name) if place.cluster else None
        self._folder, self._replicas = folder, replicas
        self._version = 0
        self._ledger = Ledger(stack.ledger_url)
        self._supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
        self._url = f"http://127.0.0.1:{stack.ports.web}/"
        self._platform = local_platform(stack, name, "local")
        if self._there:
            self._url = str(self._there.door)
            there = self._there.target()
            self._platform = kube_platform(self._there.api, there, name, "local", folder)
        self._kubeconfig = str(place.cluster[0].kubeconfig) if place.cluster else None
        self._spawn = multiprocessing.get_context("forkserver")
        self._spawn.set_forkserver_preload(PRELOADED)
        self._orders = stack.home / "kill"
        self._orders.mkdir(exist_ok=True)
        if self._in_containers:
            (folder / "image").mkdir()
            image_source(folder / "image")
        elif self._there is None:
            (folder / "probe.py").write_bytes(PROBE.read_bytes())

    @contextmanager
    def under_load(self) -> Iterator[SteadyLoad]:
        """There is a first release, and it has traffic."""
        try:
            with self._under_load() as load:
                yield load
        finally:
            if self._in_containers:
                remove_containers(engine(), self.name)

    @contextmanager
    def _under_load(self) -> Iterator[SteadyLoad]:
        if self._ledger.stable(self.name, "local") is None:
            self._good_release()
            self._good_release()  # one to roll back to
        with SteadyLoad(self._url, f"{self.name}.local.localhost", per_second=25) as load:
            yield load

    # -- one kill ------------------------------------------------------------------------------

    def count(self, kind: str) -> int:
        """Boundaries of a clean run of this kind."""
        if kind.startswith("guard"):
            self._kill_guard(Kill(kind, at=COUNTING), Result(Kill(kind)))
            (self._orders / self.name).unlink()
            passed = self._orders / f"{self.name}.passed"
        else:
            process, passed = self._begin(kind, 0)
            _join(process, 180)
        return len(passed.read_text().splitlines())

    def run(self, kill: Kill, load: SteadyLoad) -> Result:
        result = Result(kill)
        failed_before = Counter(load.answers.failed_else)
        try:
            known = {rollout.id for rollout in self._ledger.history(self.name, limit=1000)}
            self._kill(kill, result)
            killed_at = time.monotonic()
            self._see_whole(known, killed_at, result)
            self._good_release()
            if trouble := self._until(lambda: self._complaints(None), WHOLE_SECONDS, empty=True):
                result.trouble += [f"after the next release: {words}" for words in trouble]
            self._until(self._all_told, 90)
        except Exception:
            result.trouble.append(traceback.format_exc())
        if failed := Counter(load.answers.failed_else) - failed_before:
            result.trouble.append(f"requests failed: {dict(failed)}")
        return result

    def _kill(self, kill: Kill, result: Result) -> None:
        if kill.kind in ALONE:
            self._kill_worker(kill, result)
        elif kill.kind.startswith("guard"):
            self._kill_guard(kill, result)
        else:
            process, passed = self._begin(kill.kind, kill.at)
            if kill.at:
                _join(process, 180)
            else:
                self._until(lambda: passed.exists() or not _lives(process), 60)
                _join(process, kill.after)
                _sigkill(process)
            lines = passed.read_text().splitlines() if passed.exists() else []
            result.boundary = lines[-1] if lines else "before the first"
            if kill.at and process.exitcode != -signal.SIGKILL:
                said = Path(f"{passed}.log").read_text()[-1500:]
                result.trouble.append(f"was not killed: {len(lines)} boundaries; it said: {said}")

    def _kill_guard(self, kill: Kill, result: Result) -> None:
        """A release kills itself where the guard has something to do; then the guard is killed."""
        self._until(self._all_told, 90)
        order, passed = self._orders / self.name, self._orders / f"{self.name}.passed"
        passed.unlink(missing_ok=True)
        if kill.at:
            order.write_text(str(kill.at))
        process, _ = self._begin("release", "promote" if "forward" in kill.kind else "shift")
        _join(process, 150)
        assert process.exitcode == -signal.SIGKILL, f"the release was not killed: {process}"
        if kill.at == COUNTING:
            self._until(self._all_told, 90)
        elif kill.at:
            self._until(lambda: not order.exists(), 60)
        else:
            time.sleep(kill.after)
            if guard := self._supervisor.programs()[local_stack.GUARD].pid:
                _sigkill_pid(guard)
        result.boundary = (["", *passed.read_text().splitlines()] if passed.exists() else [""])[-1]

    def _all_told(self) -> bool:
        """Nothing is unfinished, and what somebody else ended is reported and shown in Prefect."""
        unclosed = {rollout.service for rollout in self._ledger.unclosed()}
        return not self._ledger.unfinished(self.name) and self.name not in unclosed

    def _kill_worker(self, kill: Kill, result: Result) -> None:
        file = self._file("release")
        with stack_api(self.stack) as api:
            parameters = {"service_file": str(file), "environment": "local", "version": "worker"}
            run = api.start("release", "local", parameters, f"{self.name} by the worker")
            self._until(lambda: self._ledger.rollout_of_flow_run(run), 180)
            time.sleep(kill.after)
            worker = self._supervisor.programs()[local_stack.WORKER].pid
            lease = self._ledger.lease(self.name, "local")
            if kill.kind == "flow and worker" and lease and lease.pid:
                _sigkill_pid(lease.pid)
            if worker:
                _sigkill_pid(worker)
        result.boundary = f"{kill.after:.2f} s after the rollout began"

    def _begin(self, kind: str, at: int | str) -> tuple[Any, Path]:
        import killed_process

        self._version += 1
        passed = self._folder / f"passed-{self._version}"
        if kind == "rollback":
            parameters: dict[str, Any] = {"service": self.name, "environment": "local"}
        else:
            parameters = {
                "service_file": str(self._file("release")),
                "environment": "local",
                "version": f"killed {self._version}",
            }
        flow = "rollback" if kind == "rollback" else "release"
        process = self._spawn.Process(
            target=killed_process.flow,
            args=(flow, parameters, at, str(passed), kind == "rolled back", self._kubeconfig),
        )
        _start(process)
        return process, passed

    def _file(self, kind: str) -> Path:
        """A service file; each has an artifact of its own, whose build takes a moment."""
        self._version += 1
        canary = {"strategy": "canary", "steps": ["20%", "100%"], "bake": "500ms", "keep": 2}
        parts: dict[str, Any] = {
            "run": {
                "replicas": self._replicas,
                "drain": "5s",
                "grace": "3s",
                "start": "30s",
                "health": {"path": "/healthz", "successes": 2},
            },
            "tests": [{"name": "unit", "command": UNIT}],
            "rollout": canary if kind == "release" else {"strategy": "blue-green", "keep": 2},
        }
        file = self._folder / f"{self.name}-{kind}.yaml"
        if self._there:
            del parts["tests"]  # which would run in an image that is named alone
            parts["run"]["env"] = {"VERSION": str(self._version)}
            return self._there.file(f"{kind}.yaml", **parts)
        if self._in_containers:
            image = {"target": "app", "args": {"WORDS": str(self._version)}}
            parts["run"]["port"] = 8000
            built = {"source": "image", "image": image}
            document = {"version": 1, "service": self.name, "platform": "docker", "build": built}
            return write_service(file, document, parts)
        parts["build"] = {"command": f"sleep 0.4; cp probe.py {{out}} # {self._version}"}
        return probe_file(file, self.name, parts)

    def _good_release(self) -> None:
        import killed_process

        self._version += 1
        passed = str(self._folder / f"passed-{self._version}")
        parameters = {
            "service_file": str(self._file("good")),
            "environment": "local",
            "version": f"good {self._version}",
        }
        process = self._spawn.Process(
            target=killed_process.flow,
            args=("release", parameters, 0, passed, False, self._kubeconfig),
        )
        _start(process)
        _join(process, 180)
        assert process.exitcode == 0, f"{process}: {Path(f'{passed}.log').read_text()[-1500:]}"
        last = self._ledger.history(self.name, limit=1)[0]
        assert last.version == parameters["version"], (
            f"the next release did not begin: {Path(f'{passed}.log').read_text()[-1500:]}"
        )
        assert last.phase is Phase.PROMOTED, f"the next release: {last.phase}: {last.reason}"

    # -- is all whole? -------------------------------------------------------------------------

    def _see_whole(self, known: set[int], killed_at: float, result: Result) -> None:
        trouble = self._until(lambda: self._complaints(known), WHOLE_SECONDS, empty=True)
        if trouble:
            result.trouble += trouble
            return
        result.whole_seconds = round(time.monotonic() - killed_at, 2)
        last = self._ledger.history(self.name, limit=1)[0]
        result.ended = "nothing begun" if last.id in known else str(last.phase)

    def _complaints(self, known: set[int] | None) -> list[str]:
        """The first thing that is not as it must be; nothing when all is."""
        try:
            return list(islice(self._look(known), 1))
        except DafnckError as error:
            return [f"{type(error).__name__}: {error}"]

    def _look(self, known: set[int] | None) -> Iterator[str]:
        ledger, mine = self._ledger, f"{self.name}-local"
        if unfinished := ledger.unfinished(self.name):
            yield f"unfinished: {unfinished}"
        if lease := ledger.lease_row(self.name, "local"):
            yield f"a lease is left: {lease}"
        stable = ledger.stable(self.name, "local")
        assert stable
        if (shares := self._platform.router.shares()) != {stable: 100}:
            yield f"{stable} should serve alone: {shares}"
        seen = self._platform.workloads.endpoints(stable)
        if not seen.wanted == len(seen.ready) == self._replicas:
            yield f"{stable} is not healthy: {seen}"
        if self._there:
            yield from _in_cluster(self._there, stable)
        allowed = {f"{stable}.{number}" for number in range(self._replicas)}
        there = {n for n in self._supervisor.programs() if n.startswith(f"{mine}-")}
        confs = (self.stack.supervisor / "conf.d").glob(f"{mine}-*.conf")
        if extra := (there | {path.stem for path in confs}) - allowed:
            yield f"programs are left: {extra}"
        yield from _processes(mine, stable)
        if self._in_containers:
            kept = set(ledger.releases(self.name, "local"))
            yield from _containers(self.name, allowed, kept)
        yield from _rubbish(self.stack)
        answers = Counter(self._ask() for _ in range(10))
        if set(answers) != {stable}:
            yield f"{stable} should answer all: {dict(answers)}"
        if known is None:
            return
        for rollout in ledger.history(self.name, limit=5):
            if rollout.id in known:
                continue
            if (rollout.release_id == stable) is not (rollout.phase is Phase.PROMOTED):
                yield f"{stable} is stable, and {rollout}"
            if rollout.finished_at is None or not rollout.reason:
                yield f"how it ended is not told: {rollout}"

    def _ask(self) -> str:
        import urllib.error
        import urllib.request

        headers = {"Host": f"{self.name}.local.localhost"}
        request = urllib.request.Request(self._url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError as error:
            return str(error)

    def _until(self, look: Callable[[], Any], seconds: float, *, empty: bool = False) -> Any:
        """-> the first answer that is true (or empty), else the last one; raises for the former."""
        give_up = time.monotonic() + seconds
        while bool(answer := look()) is empty:
            if time.monotonic() > give_up:
                if empty:
                    return answer
                raise AssertionError(f"not within {seconds} s")
            time.sleep(0.2)
        return answer


def _processes(mine: str, stable: str) -> Iterator[str]:
    """No replica of another release of this service, and no child of a dead process."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.Error, OSError):
            continue
        release = environment.get("DAFNCK_RELEASE", "")
        if release.startswith(f"{mine}-") and release != stable:
            yield f"a process of {release} is left: {process}"
        if CHILD_OF in environment and is_orphan(process.pid):
            yield f"a child of a dead process is left: {process} {process.cmdline()}"


def _in_cluster(there: KubeStage, stable: str) -> Iterator[str]:
    """No pod of another release, nothing of a release that was removed, and callers inside the
    cluster reach the one that serves."""
    kept = there.left()
    for pod in there.api.list(PODS, there.namespace, {SERVICE: there.name}):
        if (release := pod["metadata"]["labels"][RELEASE_LABEL]) != stable:
            yield f"a pod is left: {pod['metadata']['name']} of {release}"
    for kind in (CONFIG_MAPS, SERVICES):
        for one in there.api.list(kind, there.namespace, {SERVICE: there.name}):
            release = one["metadata"]["labels"].get(RELEASE_LABEL)
            if release and release not in kept:
                yield f"{kind.plural} of a release that was removed are left: {release}"
    shared = there.api.get(SERVICES, there.namespace, f"{there.name}-local")
    selector = ((shared or {}).get("spec") or {}).get("selector")
    if selector != {RELEASE_LABEL: stable}:
        yield f"callers inside the cluster reach {selector}, not {stable}"


def _containers(service: str, allowed: set[str], kept: set[str]) -> Iterator[str]:
    """None runs that should not, and none is of a release that was removed."""
    for one in engine().containers(all=True, filters={"label": f"dafnck.service={service}"}):
        name = one["Names"][0].lstrip("/")
        if one["State"] not in ("exited", "created") and name not in allowed:
            yield f"a container is left: {name} {one['State']}"
        if one["Labels"][RELEASE] not in kept:
            yield f"a container of a release that was removed is left: {name}"


def suites_left() -> list[str]:
    """Containers of suites whose process died: the next suite removes them."""
    found = engine().containers(all=True, filters={"label": OWNER})
    return [one["Id"] for one in found if not lives(one["Labels"][OWNER])]


def _rubbish(stack: Stack) -> Iterator[str]:
    written = (stack.dynamic, stack.supervisor, stack.releases, stack.artifacts, stack.reports)
    for folder in (*written, stack.evidence, stack.scratch, stack.scan_cache):
        for path in folder.rglob(f".*{HALF}"):
            pid, _, started = path.name.removesuffix(HALF).rpartition(".")[2].partition("-")
            if not Process(int(pid), started).alive():
                yield f"half-written: {path}"
    for folder in stack.artifacts.glob("*/"):
        if folder.name != "locks" and not (folder / "artifact.json").exists():
            with locked_if_free(stack.artifacts / "locks" / f"{folder.name}.lock") as free:
                if free and folder.exists() and not (folder / "artifact.json").exists():
                    yield f"half-built: {folder}"


# Whoever starts a process has multiprocessing read the status of all that ended; who joins one at
# the same moment would find none.
_status = threading.Lock()


def _start(process: Any) -> None:
    with _status:
        process.start()


def _join(process: Any, seconds: float) -> None:
    wait([process.sentinel], seconds)
    with _status:
        process.join(0)


def _lives(process: Any) -> bool:
    with _status:
        return bool(process.is_alive())


def _sigkill(process: Any) -> None:
    process.kill()
    _join(process, 10)


def _sigkill_pid(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# -- all of them -----------------------------------------------------------------------------

KINDS = ("release", "rolled back", "rollback", "guard", "guard forward")


def boundaries(counts: dict[str, int]) -> list[Kill]:
    return [Kill(kind, at=n) for kind in KINDS for n in range(1, counts.get(kind, 0) + 1)]


def moments(seed: int, wanted: int, worker: int) -> list[Kill]:
    """At random: `worker` of them kill the worker, half of those with the flow."""
    chosen = random.Random(seed)
    kills = [
        Kill(ALONE[n % 2], after=round(chosen.uniform(0, 3.5), 3))
        for n in range(min(worker, wanted))
    ]
    longest = {
        "release": 5.0,
        "rolled back": 4.0,
        "rollback": 3.0,
        "guard": 2.5,
        "guard forward": 2,
    }
    while len(kills) < wanted:
        kind = chosen.choice(KINDS)
        kills.append(Kill(kind, after=round(chosen.uniform(0, longest[kind]), 3)))
    return kills


def drive_the_guard(stack: Stack) -> None:
    """Have supervisord run the driver as this stack's guard."""
    supervisor = Supervisor(stack.supervisor, stack.supervisor_socket)
    spec = stack.supervisor / f"{local_stack.GUARD}.json"
    content = json.loads(spec.read_text())
    content["argv"] = [sys.executable, str(Path(__file__).with_name("killed_process.py"))]
    content["env"] |= {k: v for k, v in os.environ.items() if k == "KUBECONFIG"}
    supervisor.remove(local_stack.GUARD, 2)
    spec.write_text(json.dumps(content))
    log = stack.logs / f"{local_stack.GUARD}.log"
    supervisor.add(local_stack.GUARD, spec, log, restarts=50, grace_seconds=2)


def run_all(
    stack: Stack,
    folder: Path,
    kills: list[Kill],
    lanes: int,
    said: Callable[[str], None],
    over: threading.Event,
    on: Where = LOCAL,
) -> list[Result]:
    """Each lane takes the next kill until `over` is set; what kills the worker has one lane for
    itself."""
    waiting: dict[bool, queue.SimpleQueue[Kill]] = {
        True: queue.SimpleQueue(),
        False: queue.SimpleQueue(),
    }
    for kill in kills:
        waiting[kill.kind in ALONE].put(kill)
    results: list[Result] = []

    def lane(number: int, alone: bool) -> None:
        place = folder / f"lane{number}"
        place.mkdir()
        runner = Lane(stack, place, name_of(f"s{number}", on.platform), 1 + number % 2, on)
        with runner.under_load() as load:
            while not over.is_set():
                try:
                    kill = waiting[alone].get_nowait()
                except queue.Empty:
                    return
                began = time.monotonic()
                result = runner.run(kill, load)
                results.append(result)
                where = kill.at or f"{kill.after:.2f} s"
                whole = (
                    f"{result.whole_seconds} s" if result.whole_seconds is not None else "NOT WHOLE"
                )
                said(
                    f"{len(results):4}/{len(kills)} {kill.kind:15} {where!s:8} {whole:9} "
                    f"{result.ended:13} {result.boundary}"
                    f"  ({time.monotonic() - began:.0f} s in all)"
                )
                for trouble in result.trouble:
                    said(f"     TROUBLE {trouble}")

    threads = [threading.Thread(target=lane, args=(n, False)) for n in range(lanes)]
    if not waiting[True].empty():
        threads.append(threading.Thread(target=lane, args=(lanes, True)))
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return results


def name_of(lane: str, platform: str) -> str:
    """Names of containers are the engine's, where two runs may meet; and what serves on a cluster
    is no service of the same stack on this machine."""
    return lane if platform == "local" else own_name(lane)


def count_all(stack: Stack, folder: Path, on: Where) -> dict[str, int]:
    """Boundaries of each kind, by a clean run."""
    folder.mkdir()

    def count(number: int, kind: str) -> int:
        (place := folder / f"{number}").mkdir()
        runner = Lane(stack, place, name_of(f"count{number}", on.platform), 1, on)
        with runner.under_load():
            return runner.count(kind)

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(KINDS, pool.map(count, range(len(KINDS)), KINDS), strict=True))


def summary(counts: dict[str, int], wanted: int, results: list[Result]) -> dict[str, Any]:
    whole = [r.whole_seconds for r in results if r.whole_seconds is not None]
    kinds = Counter(f"{r.kill.kind}, {'boundary' if r.kill.at else 'random'}" for r in results)
    return {
        "boundaries": counts,
        "wanted": wanted,
        "kills": len(results),
        "by_kind": dict(sorted(kinds.items())),
        "exceptions": sum(bool(r.trouble) for r in results),
        "worst_seconds_to_whole": max(whole, default=None),
        "median_seconds_to_whole": sorted(whole)[len(whole) // 2] if whole else None,
        "troubles": [asdict(r) for r in results if r.trouble],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--platform", choices=["local", "docker", "kubernetes"], default="local")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--random", type=int, default=200, help="kills at random moments")
    parser.add_argument("--worker", type=int, default=30, help="of these, of the worker")
    parser.add_argument("--lanes", type=int, default=3, help="services at once")
    parser.add_argument("--every", type=int, default=1, help="only each n-th boundary")
    parser.add_argument("--minutes", type=float, default=120, help="take no kill after so long")
    parser.add_argument("--counted", type=Path, help="a summary whose count of boundaries is used")
    parser.add_argument("--only", help="one kind alone")
    parser.add_argument("--json", type=Path, default=Path(".bench/soak.json"))
    given = parser.parse_args()
    over = threading.Event()
    # Whole kills alone count: what is under way is finished, and what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    began = time.monotonic()

    def said(words: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {words}", flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="dafnck-soak-") as name,
        where(given.platform, Path(name) / "cluster") as on,
        stage(Path(name)) as here,
    ):
        folder = Path(name) / "lanes"
        folder.mkdir()
        drive_the_guard(here.stack)
        counts = (
            json.loads(given.counted.read_text())["boundaries"]
            if given.counted
            else count_all(here.stack, folder / "count", on)
        )
        said(f"boundaries: {counts}, {sum(counts.values())} in all")
        kills = [k for k in boundaries(counts) if k.at % given.every == 0]
        kills += moments(given.seed, given.random, given.worker)
        kills = [kill for kill in kills if given.only in (None, kill.kind)]
        random.Random(given.seed).shuffle(kills)
        timer = threading.Timer(given.minutes * 60 - (time.monotonic() - began), over.set)
        timer.daemon = True
        timer.start()
        results = run_all(here.stack, folder, kills, given.lanes, said, over, on)
        Builder(here.stack.artifacts).remove_unused(set(), idle_seconds=0)  # images outlive it
    told = summary(counts, len(kills), results) | {
        "platform": given.platform,
        "suites_left": suites_left() if given.platform == "docker" else [],
        "seed": given.seed,
        "took_seconds": time.monotonic() - began,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(told, indent=1) + "\n")
    said(json.dumps({k: v for k, v in told.items() if k != "troubles"}))
    return 1 if told["exceptions"] or told["suites_left"] or len(results) < len(kills) else 0


if __name__ == "__main__":
    sys.exit(main())
