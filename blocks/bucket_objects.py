"""The objects of a bucket, as they are now: what is in them, and what is said of them.

What counts of an object: its key, its content, its type, its metadata and its tags. Not: older
versions, access lists, storage classes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from blocks.s3_bucket import S3Bucket
from blocks.s3_client import ABSENT, code_of, passes, s3_client, worded
from blocks.tree_listing import Entry
from policy.errors import BadInput, Unreachable

PATIENCE_SECONDS = 300.0  # for a store that is away
PIECE_BYTES = 4 << 20
ATTEMPTS = 5  # of one part of a large object
PART_BYTES = 8 << 20
MOST_PARTS = 9_000  # S3 takes 10,000
# As boto3 calls them, read and written.
HEADERS = (
    "ContentType",
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
)


@dataclass(frozen=True)
class Object:
    key: str  # within the prefix
    size: int
    headers: dict[str, Any]  # of HEADERS those that it has, Metadata, and Tagging if it has any
    pieces: Iterator[bytes]

    def entry(self, sha256: str) -> Entry:
        return Entry(self.key.encode(), 0, self.size, f"{sha256} {quote(packed(self.headers))}")


def packed(headers: dict[str, Any]) -> str:
    """The same text for the same headers."""
    return json.dumps(headers, sort_keys=True, ensure_ascii=False)


class _Pipe:
    """What can only be read on: a member of a tar stream says that it could be sought in."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def read(self, size: int = -1) -> bytes:
        return bytes(self._content.read(size))


class Objects:
    """Those under a prefix of a bucket."""

    def __init__(self, url: str, credentials: Path | None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise BadInput(f"{url} is no bucket; write s3://bucket/prefix?endpoint=…")
        endpoint = next(iter(parse_qs(parts.query).get("endpoint", [])), None)
        prefix = unquote(parts.path).strip("/")
        self._in = S3Bucket(parts.netloc, endpoint, credentials, PATIENCE_SECONDS)
        self._credentials = credentials
        self._prefix = f"{prefix}/" if prefix else ""

    def __str__(self) -> str:
        return f"{self._in}" + (f" under {self._prefix}" if self._prefix else "")

    def keys(self, most: int | None = None) -> list[str] | None:
        """In the order of a listing; None when there is no such bucket."""

        def look() -> list[str] | None:
            found: list[str] = []
            pages = self._in.client().get_paginator("list_objects_v2")
            paging = {"MaxItems": most} if most else {}
            asked = pages.paginate(
                Bucket=self._in.name, Prefix=self._prefix, PaginationConfig=paging
            )
            try:
                for page in asked:
                    found += [one["Key"] for one in page.get("Contents", [])]
            except self._in.client().exceptions.ClientError as error:
                if code_of(error) in ("NoSuchBucket", *ABSENT):
                    return None
                raise
            return found

        found = self._in.ask("its objects were not listed", look)
        if found is None:
            return None
        within = [key.removeprefix(self._prefix) for key in found]
        return sorted((key for key in within if key), key=lambda key: key.encode().split(b"/"))

    def get(self, key: str) -> Object | None:
        """None when it is not there any more. Its pieces raise Unreachable."""
        what, name = f"{key} was not read", self._prefix + key

        def begin() -> dict[str, Any] | None:
            client = self._in.client()
            try:
                answer = dict(client.get_object(Bucket=self._in.name, Key=name))
                if answer.get("TagCount"):
                    tags = client.get_object_tagging(Bucket=self._in.name, Key=name)["TagSet"]
                    answer["Tagging"] = urlencode(sorted((t["Key"], t["Value"]) for t in tags))
                return answer
            except client.exceptions.ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise

        if (answer := self._in.ask(what, begin)) is None:
            return None
        headers: dict[str, Any] = {one: answer[one] for one in HEADERS if answer.get(one)}
        headers["Metadata"] = answer.get("Metadata", {})
        if answer.get("Tagging"):
            headers["Tagging"] = answer["Tagging"]
        return Object(key, answer["ContentLength"], headers, self._pieces(what, name, answer))

    def _pieces(self, what: str, name: str, answer: dict[str, Any]) -> Iterator[bytes]:
        at, size, tag, body = 0, answer["ContentLength"], answer["ETag"], answer["Body"]

        def again() -> Any:
            return self._in.client().get_object(
                Bucket=self._in.name, Key=name, Range=f"bytes={at}-", IfMatch=tag
            )["Body"]

        while True:
            before = at
            try:
                while piece := body.read(PIECE_BYTES):
                    at += len(piece)
                    yield piece
            except Exception as error:
                if not passes(error):
                    raise worded(error, f"{self}: {what}") or error from None
            finally:
                body.close()
            if at >= size:
                return
            if at == before:
                raise Unreachable(f"{self}: {what}: it ends at {at:,} of {size:,} bytes")
            body = self._in.ask(what, again)  # taken up where it broke

    def have(self) -> None:
        """The bucket, made when it is not there."""

        def make() -> None:
            client = self._in.client()
            where: dict[str, Any] = {}
            if self._in.endpoint is None and client.meta.region_name != "us-east-1":
                region = {"LocationConstraint": client.meta.region_name}
                where["CreateBucketConfiguration"] = region
            try:
                client.head_bucket(Bucket=self._in.name)
            except client.exceptions.ClientError as error:
                if code_of(error) not in (*ABSENT, "NoSuchBucket"):
                    raise
                client.create_bucket(Bucket=self._in.name, **where)

        self._in.ask("it was not made", make)

    def put(self, key: str, size: int, headers: dict[str, Any], content: Any) -> None:
        """`content`: a file, read to its end; of a large object some parts are in memory."""
        from boto3.s3.transfer import TransferConfig

        name, what = self._prefix + key, f"{key} was not stored"
        if size <= PIECE_BYTES:
            whole = content.read()
            self._in.ask(what, self._putting(name, whole, headers))
            return
        # What cannot be read again is not tried again as a whole: its parts are.
        client = s3_client(self._in.endpoint, self._credentials, ATTEMPTS)
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        settings = TransferConfig(max_concurrency=2, multipart_chunksize=part_bytes)
        try:
            client.upload_fileobj(
                _Pipe(content), self._in.name, name, ExtraArgs=headers, Config=settings
            )
        except Exception as error:
            raise worded(error, f"{self}: {what}") or error from None

    def _putting(self, name: str, whole: bytes, headers: dict[str, Any]) -> Callable[[], None]:
        def put() -> None:
            self._in.client().put_object(Bucket=self._in.name, Key=name, Body=whole, **headers)

        return put
