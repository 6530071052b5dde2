"""A vault that is a bucket of any S3.

Invariant: what is there is whole. A multipart upload is nothing until it is completed, and it is
aborted by whatever goes wrong; of one whose process was killed `tidy` knows.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

from blocks.s3_bucket import S3Bucket
from blocks.s3_client import passes, worded
from blocks.s3_upload import Upload, Uploads, parts
from policy.errors import BadInput, NotAllowed, NotApplied, Refused, Unreachable

PATIENCE_SECONDS = 300.0  # for a store that is away
ABANDONED_SECONDS = 2 * 86400.0  # no upload takes longer
PIECE_BYTES = 8 * 2**20


class S3Vault:
    """Objects under a prefix of a bucket, which is made when it is not there, able to lock.

    `uploads`: folder where uploads under way are remembered, for `tidy`."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        endpoint: str | None,
        credentials: Path | None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        uploads: Path | None = None,
    ) -> None:
        self._in = S3Bucket(bucket, endpoint, credentials, patience_seconds)
        self._prefix = f"{prefix}/" if prefix else ""
        self._uploads = Uploads(str(self._in), uploads)

    def __str__(self) -> str:
        return str(self._in)

    # -- writing -------------------------------------------------------------------------------

    def write(
        self, key: str, content: Iterable[bytes], locked_until: float | None = None
    ) -> tuple[int, str]:
        what = f"{key} was not stored"
        self._in.have(what)
        if locked_until is not None:
            self._check_lockable()
        upload = Upload(self._in, self._uploads, self._name(key), what, locked_until)
        size, digest, version = upload.run(parts(content))
        self._check_stored(key, size, version, locked_until)
        return size, digest

    def _check_lockable(self) -> None:
        if not self._in.can_lock():
            raise BadInput(
                f"{self}: this bucket cannot lock objects, nothing was stored. Use a bucket that "
                "was made with object lock, or remove lock_days"
            )

    def _check_stored(
        self, key: str, size: int, version: str | None, locked_until: float | None
    ) -> None:
        found = self._in.head(self._name(key), version)
        if found is None or found["ContentLength"] != size:
            held = "nothing" if found is None else f"{found['ContentLength']:,} bytes"
            raise NotApplied(f"{self}: {key} holds {held}, written were {size:,} bytes; remove it")
        if locked_until is None:
            return
        until = _locked_until(found)
        if until is None or until < locked_until - 1:
            raise NotApplied(f"{self}: {key} is stored, but the store did not lock it as asked")

    # -- reading -------------------------------------------------------------------------------

    def read(self, key: str) -> Iterator[bytes]:
        what = f"{key} was not read"
        pinned = self._found(key)
        at, size, tag = 0, pinned["ContentLength"], pinned["ETag"]
        which = {"VersionId": pinned["VersionId"]} if pinned.get("VersionId") else {}
        name = self._name(key)

        def begin() -> tuple[Any, bytes]:
            """With its first piece: an answer that breaks before it is none."""
            body = self._in.client().get_object(
                Bucket=self._in.name, Key=name, Range=f"bytes={at}-", IfMatch=tag, **which
            )["Body"]
            try:
                return body, body.read(PIECE_BYTES)
            except BaseException:
                body.close()
                raise

        while at < size:
            body, piece = self._in.ask(what, begin)
            with closing(body):
                while piece:
                    at += len(piece)
                    yield piece
                    try:
                        piece = body.read(PIECE_BYTES)
                    except Exception as error:
                        if not passes(error):
                            raise worded(error, f"{self}: {what}") or error from None
                        break  # taken up where it broke
                else:
                    if at < size:
                        raise Unreachable(f"{self}: {what}: it ends at {at:,} of {size:,} bytes")

    def _found(self, key: str) -> dict[str, Any]:
        """The newest version; also one that a delete marker hides."""
        if found := self._in.head(self._name(key), None):
            return found
        for version in self._in.versions(self._name(key)):
            if version["Key"] == self._name(key):
                if found := self._in.head(self._name(key), version.get("VersionId")):
                    return found
        raise Refused(f"{self}: there is no {key}")

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for version in self._in.versions(self._prefix + prefix):
            key = version["Key"].removeprefix(self._prefix)
            if key not in found or version.get("IsLatest"):
                found[key] = version["Size"]
        return found

    # -- removing ------------------------------------------------------------------------------

    def delete(self, key: str) -> None:
        name, what = self._name(key), f"{key} was not deleted"
        versions = [one for one in self._in.versions(name, markers=True) if one["Key"] == name]
        for one in versions:
            self._check_unlocked(key, one)
        for one in versions:
            which = {"VersionId": one["VersionId"]} if one.get("VersionId") else {}
            try:
                self._remove(what, name, which)
            except NotAllowed:
                self._check_unlocked(key, one)
                raise
        if left := [one for one in self._in.versions(name, markers=True) if one["Key"] == name]:
            raise NotApplied(f"{self}: of {key} {len(left)} versions are there after its removal")

    def _remove(self, what: str, name: str, which: dict[str, str]) -> None:
        self._in.ask(
            what, lambda: self._in.client().delete_object(Bucket=self._in.name, Key=name, **which)
        )

    def _check_unlocked(self, key: str, version: dict[str, Any]) -> None:
        """Raises Refused. A delete marker, which has no size, is never locked."""
        if "Size" not in version:
            return
        found = self._in.head(self._name(key), version.get("VersionId"))
        if found is None:
            return
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            raise Refused(f"{self}: {key} is under legal hold; nothing of it was deleted")
        until = _locked_until(found)
        if until is not None and until > time():
            told = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S}"
            raise Refused(f"{self}: {key} is locked until {told} UTC; nothing of it was deleted")

    def tidy(self, prefix: str) -> list[str]:
        removed, remembered = [], self._uploads.dead_or_alive()
        for one in self._in.uploads(self._prefix + prefix):
            name, upload = one["Key"], one["UploadId"]
            age = time() - one["Initiated"].timestamp()
            if not remembered.get(upload, age < ABANDONED_SECONDS):
                self._in.abort(name, upload)
                self._uploads.forget(upload)
                removed.append(name.removeprefix(self._prefix))
        return removed

    def _name(self, key: str) -> str:
        if not key or key.startswith("/"):
            raise BadInput(f"{key!r} is no name of an object")
        return self._prefix + key


def _locked_until(head: dict[str, Any]) -> float | None:
    until = head.get("ObjectLockRetainUntilDate")
    return until.timestamp() if until is not None else None
