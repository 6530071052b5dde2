"""A Kubernetes API server for tests: answers as the real one (1.36) does, over HTTP, in-process.

Not kmock: that keeps objects and serves watches, but knows no server-side apply, no selectors, no
validation, no permissions, and nothing happens in it by itself.

All of it lives in one thread with an event loop: requests here, the controllers and nodes of the
cluster in kube_controllers.py and kube_nodes.py, which write the same way as clients do.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from kube_access import ADMIN, ANONYMOUS, Tokens
from kube_asked import Asked, asked
from kube_discovery import discovered
from kube_faults import Fault, Faults
from kube_parts import SUCCESS, as_scale, reviewed, written_part
from kube_reads import Watches, listed, versioned
from kube_requests import How, Requests, Write, family
from kube_schema import Object
from kube_store import Answer, Store, labels_test, text_of

ANSWER_SECONDS = 30.0


def _cut_before_it_began(error: BaseException) -> bool:
    """aiohttp asserts that a connection is there whose handler begins after we cut it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = (Path(last.filename).name, last.name)
    return isinstance(error, AssertionError) and place == ("web_protocol.py", "start")


class KubeServer:
    def __init__(self) -> None:
        self.store, self.tokens, self.faults = Store(), Tokens(), Faults()
        self.requests = Requests(self.store, self.tokens)
        self.loop = asyncio.new_event_loop()
        self.watches = Watches(self.store, self.loop)
        self.log_of: Callable[[Asked], str] = lambda asked: ""
        self.troubles: list[str] = []  # of the fake itself
        self.loop.set_exception_handler(self._troubled)
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="kube", daemon=True)
        self._server = web.Server(
            self._handle, access_log=None, handler_cancellation=True, loop=self.loop
        )
        self._listener: asyncio.Server | None = None

    # -- life ----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        self.call(self._listen())

    def stop(self) -> None:
        self.call(self._leave())
        self.call(self._server.shutdown(0.5))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert not self.troubles, "\n".join(self.troubles)

    def call(self, work: Any) -> Any:
        """Wait for a coroutine in the thread of the cluster. -> what it returns"""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(ANSWER_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        # Connections that were cut, also while being accepted, are closed a moment later.
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    def _troubled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error and _cut_before_it_began(error):
            return
        words = traceback.format_exception(error) if error else []
        self.troubles.append("".join([context["message"], "\n", *words]))

    async def _listen(self) -> None:
        self._listener = await self.loop.create_server(
            self._server, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _leave(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    # -- faults --------------------------------------------------------------------------------

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens, and who was connected is cut off."""
        self.call(self._leave())
        try:
            yield
        finally:
            self.call(self._listen())

    def away_for(self, seconds: float) -> None:
        """The same, from now on for so long; does not wait."""

        async def leave() -> None:
            await self._leave()
            self.loop.call_later(seconds, lambda: self.loop.create_task(self._listen()))

        self.call(leave())

    def drop_watches(self) -> None:
        self.loop.call_soon_threadsafe(self.watches.drop)

    # -- answering -----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except Answer as answer:
            return _json(answer.status, answer.code, answer.headers)
        except ConnectionError:
            raise  # who watched is gone
        except Exception as error:
            self._troubled(
                self.loop, {"message": f"{request.method} {request.path}", "exception": error}
            )
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        user = self.tokens.user(request.headers.get("Authorization"))
        user = ADMIN if user is ANONYMOUS and not self.requests.rbac else user
        content = await request.read()
        if (found := discovered(self.requests, request.path)) is not None:
            return _json(found)
        if (review := reviewed(self.requests, user, request.path, content)) is not None:
            return _json(review, 201)
        if (wanted := asked(self.requests, request, content)) is None:
            if request.path.startswith("/apis/"):
                return web.Response(status=404, text="404 page not found\n")
            raise Answer(404, "NotFound", "the server could not find the requested resource", {})
        verb = "apply" if wanted.patch == "apply" else wanted.verb
        self.requests.calls[verb, wanted.resource] += 1
        fault = self.faults.next(verb, wanted.resource, wanted.name)
        if fault is not None and (cut := await _faulty(request, fault)) is not None:
            return cut
        how = wanted.how(user)
        self.requests.permit(how, wanted.verb, wanted.kind, wanted.namespace, wanted.name)
        if wanted.verb == "watch":
            return await self.watches.serve(request, wanted)
        if wanted.verb in ("get", "list"):
            return self._read(wanted)
        answer = self._written(wanted, how, verb)
        return _hang_up(request) if fault is not None and fault.lost else answer

    def _read(self, wanted: Asked) -> web.Response:
        if wanted.verb == "list":
            return _json(listed(self.store, wanted))
        if wanted.part == "log":
            return web.Response(text=self.log_of(wanted), content_type="text/plain")
        obj = self.requests.get(wanted.kind, wanted.where)
        return _json(as_scale(obj) if wanted.part == "scale" else versioned(wanted.kind, obj))

    def _written(self, wanted: Asked, how: How, verb: str) -> web.Response:
        body = wanted.body if isinstance(wanted.body, dict) else {}
        name = wanted.name or (body.get("metadata") or {}).get("name") or ""
        space = wanted.space
        write = Write(verb, wanted.resource, space, name, how.user.name, how.manager)
        told = [] if how.dry_run else [*self.requests.before_write]
        for act in told:
            act(write)
        code, obj = self._write(wanted, how)
        if not how.dry_run:
            write = replace(write, name=name or obj["metadata"].get("name", ""))
            self.requests.writes.append(write)
            for act in list(self.requests.after_write):
                act(write)
        answer = _json(versioned(wanted.kind, obj), code)
        for words in how.warnings:
            quoted = words.replace('"', '\\"')
            answer.headers.add("Warning", f'299 - "{quoted}"')
        return answer

    def _write(self, wanted: Asked, how: How) -> tuple[int, Object]:
        requests, kind, where = self.requests, wanted.kind, wanted.where
        if (done := written_part(requests, wanted, how)) is not None:
            return done
        if wanted.verb == "create":
            return 201, requests.create(kind, where[0], wanted.body, how)
        if wanted.verb == "update":
            return 200, requests.update(kind, where, wanted.body, how)
        if wanted.verb == "patch":
            there = self.store.get(family(kind), where) is not None
            obj = requests.patch(kind, where, wanted.patch, wanted.body, how)
            return (200 if there else 201), obj
        names = ("propagationPolicy", "gracePeriodSeconds")
        options = (wanted.body or {}) | {n: wanted.query[n] for n in names if n in wanted.query}
        if wanted.verb == "delete":
            return 200, requests.delete(kind, where, options, how)
        test = labels_test(wanted.query.get("labelSelector", ""))
        for one in self.store.all(family(kind), where[0]):
            if test(one):
                at = (one["metadata"].get("namespace", ""), one["metadata"]["name"])
                requests.delete(kind, at, options, how)
        return 200, SUCCESS


async def _faulty(request: web.BaseRequest, fault: Fault) -> web.Response | None:
    await asyncio.sleep(fault.seconds)
    if fault.code:
        raise fault.answer()
    return _hang_up(request) if fault.reset else None


def _json(body: Any, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    content = body.encode() if isinstance(body, str) else text_of(body)
    kind = "text/plain" if isinstance(body, str) else "application/json"
    return web.Response(body=content, status=code, content_type=kind, headers=headers)


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
