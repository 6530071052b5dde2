"""Lists and watches of an API server."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from kube_asked import Asked
from kube_requests import family
from kube_schema import Kind, Object
from kube_store import Answer, Change, Store, fields_test, gone, labels_test, seen, text_of

BOOKMARK_SECONDS = 5.0
WATCH_SECONDS = 1800.0
TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter, or use the continue token in this response to "
    "retrieve the remainder of the results."
)
Queue = asyncio.Queue[Change | None]  # None: hang up


def versioned(kind: Kind, obj: Object) -> Object:
    """In the version that was asked for."""
    if obj.get("kind") != kind.kind or obj["apiVersion"] == kind.api_version:
        return obj
    return obj | {"apiVersion": kind.api_version}


def listed(store: Store, asked: Asked) -> Object:
    kind, query, which = asked.kind, asked.query, family(asked.kind)
    test, limit = _test(asked), int(query.get("limit") or 0)
    _not_ahead(store, _version(query.get("resourceVersion")))
    with store.lock:
        found = [one for one in store.all(which, asked.space) if test(one)]
        version, after = store.version, ("", "")
    if token := query.get("continue"):
        version, after = _continued(token)
        if version < store.forgotten(which):
            raise gone(TOO_OLD)
        found = [one for one in found if _place(one) > after]
    meta: Object = {"resourceVersion": str(version)}
    if limit and len(found) > limit:
        said = text_of({"version": version, "after": _place(found[limit - 1])})
        meta["continue"] = base64.urlsafe_b64encode(said).decode()
        meta["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    items = [versioned(kind, one) for one in found]
    if not kind.crd:  # typed objects in a list do not say what they are
        items = [{k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in items]
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": kind.api_version,
        "metadata": meta,
        "items": items,
    }


def _test(asked: Asked) -> Callable[[Object], bool]:
    labels = labels_test(asked.query.get("labelSelector", ""))
    fields = fields_test(asked.kind, asked.query.get("fieldSelector", ""))
    space = asked.space

    def test(obj: Object) -> bool:
        here = not space or obj["metadata"].get("namespace") == space
        return here and labels(obj) and fields(obj)

    return test


def _version(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        why = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise Answer(500, "", f'resourceVersion: Invalid value: "{text}": {why}') from None


def _not_ahead(store: Store, version: int) -> None:
    if version > store.version:
        said = f"Timeout: Too large resource version: {version}, current: {store.version}"
        causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
        raise Answer(504, "Timeout", said, {"causes": causes, "retryAfterSeconds": 1})


def _continued(token: str) -> tuple[int, tuple[str, str]]:
    try:
        said = json.loads(base64.urlsafe_b64decode(token))
        return said["version"], tuple(said["after"])
    except (binascii.Error, ValueError, KeyError):
        words = "invalid continue token: continue key is not valid"
        raise Answer(400, "BadRequest", words) from None


def _place(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


class Watches:
    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._open: set[Queue] = set()
        self.gone_by_http = False  # a version too old: told by the code, not by an event

    def drop(self) -> None:
        """Hang up on all who watch."""
        for queue in self._open:
            queue.put_nowait(None)

    async def serve(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """-> what was answered, when the watch is over."""
        kind, query, test = asked.kind, asked.query, _test(asked)
        wanted, which = _version(query.get("resourceVersion")), family(asked.kind)
        whole = query.get("sendInitialEvents") == "true"
        bookmarks = query.get("allowWatchBookmarks") == "true"
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        async with self._changes(which) as queue:
            with self._store.lock:
                begun = self._store.version
                try:
                    if whole or not wanted:
                        there = self._store.all(which, asked.space)
                        first = [("ADDED", one) for one in there if test(one)]
                    else:
                        first = list(seen(self._store.since(which, wanted), test))
                except Answer as refusal:
                    if self.gone_by_http:
                        raise
                    first = [("ERROR", refusal.status)]
            await answer.prepare(request)
            for how, obj in first:
                await _tell(answer, kind, how, obj)
            if first and first[0][0] == "ERROR":
                return answer
            if whole:
                await _bookmark(answer, kind, begun, {"k8s.io/initial-events-end": "true"})
            end = self._loop.time() + float(query.get("timeoutSeconds") or WATCH_SECONDS)
            while (left := end - self._loop.time()) > 0:
                try:
                    change = await asyncio.wait_for(queue.get(), min(left, BOOKMARK_SECONDS))
                except TimeoutError:
                    if bookmarks:
                        await _bookmark(answer, kind, self._store.version)
                    continue
                if change is None:
                    if request.transport is not None:
                        request.transport.abort()
                    return answer
                if change.version > begun:
                    for how, obj in seen([change], test):
                        await _tell(answer, kind, how, obj)
        return answer

    @asynccontextmanager
    async def _changes(self, which: tuple[str, str]) -> AsyncIterator[Queue]:
        queue: Queue = asyncio.Queue()

        def put(_: tuple[str, str], change: Change) -> None:
            self._loop.call_soon_threadsafe(queue.put_nowait, change)

        self._store.watchers[which].append(put)
        self._open.add(queue)
        try:
            yield queue
        finally:
            self._open.discard(queue)
            self._store.watchers[which].remove(put)


async def _bookmark(
    answer: web.StreamResponse, kind: Kind, version: int, notes: Object | None = None
) -> None:
    meta = {"resourceVersion": str(version), **({"annotations": notes} if notes else {})}
    await _tell(
        answer,
        kind,
        "BOOKMARK",
        {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta},
    )


async def _tell(answer: web.StreamResponse, kind: Kind, how: str, obj: Object) -> None:
    obj = obj if how == "ERROR" else versioned(kind, obj)
    await answer.write(b'{"type":"' + how.encode() + b'","object":' + text_of(obj) + b"}\n")
