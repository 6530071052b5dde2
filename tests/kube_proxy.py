"""What kube-proxy does: the addresses of Services answer, by the pods of their EndpointSlices.

Off until a test asks for it (`kube.proxy.start()`): it listens on the ports of the Services, which
are those of root below 1024.
"""

import asyncio
import random
import zlib
from collections.abc import Coroutine
from typing import Any

from kube_schema import Object
from kube_store import Change, Family, Store

SERVICES, SLICES = ("", "services"), ("discovery.k8s.io", "endpointslices")


class Proxy:
    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._listeners: dict[tuple[str, int], asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random(0)

    def start(self) -> None:
        """For the Services there are and those to come."""
        self._store.watchers[SERVICES].append(self._seen)
        asyncio.run_coroutine_threadsafe(self._listen_to_all(), self._loop).result(30)

    async def stop(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _seen(self, _: Family, change: Change) -> None:
        self._loop.call_soon_threadsafe(
            self._spawn, self._listen(change.obj, change.type == "DELETED")
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen_to_all(self) -> None:
        for service in self._store.all(SERVICES):
            await self._listen(service)

    async def _listen(self, service: Object, gone: bool = False) -> None:
        meta, spec = service["metadata"], service["spec"]
        where = (meta["namespace"], meta["name"])
        for port in spec.get("ports") or [] if spec.get("clusterIP", "None") != "None" else []:
            at, name = (spec["clusterIP"], port["port"]), port.get("name", "")
            if gone:
                if (listener := self._listeners.pop(at, None)) is not None:
                    listener.close()
            elif at not in self._listeners:

                async def serve(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name
                ) -> None:
                    await self._serve(where, name, reader, writer)

                self._listeners[at] = await asyncio.start_server(serve, *at)

    async def _serve(
        self,
        where: tuple[str, str],
        port: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            chosen = self._choose(where, port, str(writer.get_extra_info("peername")[0]))
            if chosen is not None:
                there, back = await asyncio.open_connection(*chosen)
                await asyncio.gather(_copied(reader, back), _copied(there, writer))
        except (OSError, asyncio.CancelledError):
            return  # the pod is gone, or we are
        finally:
            self._tasks.discard(task)
            writer.close()

    def _choose(self, where: tuple[str, str], port: str, client: str) -> tuple[str, int] | None:
        """A ready endpoint; else one that still serves; None when there is none."""
        service = self._store.get(SERVICES, where)
        found: dict[str, list[tuple[str, int]]] = {"ready": [], "serving": []}
        for part in self._store.all(SLICES, where[0]):
            if part["metadata"]["labels"].get("kubernetes.io/service-name") != where[1]:
                continue
            ports = [one["port"] for one in part.get("ports") or [] if one.get("name", "") == port]
            for endpoint in part.get("endpoints") or [] if ports else []:
                for how, those in found.items():
                    if endpoint["conditions"][how]:
                        those.append((endpoint["addresses"][0], ports[0]))
        those = found["ready"] or found["serving"]
        if not those or service is None:
            return None
        if service["spec"]["sessionAffinity"] == "ClientIP":
            return sorted(those)[zlib.crc32(client.encode()) % len(those)]
        return self._random.choice(those)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
