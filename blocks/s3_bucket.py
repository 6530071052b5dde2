"""One bucket of an S3, asked again and again while it is away."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from blocks.s3_client import ABSENT, code_of, passes, s3_client, worded

T = TypeVar("T")
UNVERSIONED = ("NotImplemented", "MethodNotAllowed", "InvalidRequest", "501", "405")
UNLOCKED = ("ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound")


class S3Bucket:
    def __init__(
        self, name: str, endpoint: str | None, credentials: Path | None, patience_seconds: float
    ) -> None:
        self.name, self.endpoint = name, endpoint
        self._credentials, self._patience = credentials, patience_seconds
        self._made: Any = None
        self._making = threading.Lock()
        self._there = False

    def __str__(self) -> str:
        return f"s3://{self.name}" + (f" at {self.endpoint}" if self.endpoint else "")

    def ask(self, what: str, act: Callable[[], T], over: threading.Event | None = None) -> T:
        """Again and again while the store is away, until `over` or the patience ends."""
        from botocore.exceptions import BotoCoreError, ClientError
        from tenacity import (
            Retrying,
            retry_if_exception,
            sleep_using_event,
            stop_after_delay,
            stop_when_event_set,
            wait_exponential,
        )

        over = over or threading.Event()
        again = Retrying(
            retry=retry_if_exception(passes),
            stop=stop_after_delay(self._patience) | stop_when_event_set(over),
            wait=wait_exponential(multiplier=0.2, max=10),
            sleep=sleep_using_event(over),
            reraise=True,
        )
        try:
            return again(act)
        except (BotoCoreError, ClientError) as error:
            told = worded(error, f"{self}: {what}")
            assert told is not None
            raise told from None

    def client(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = s3_client(self.endpoint, self._credentials, attempts=1)
            return self._made

    def have(self, what: str) -> None:
        """Made with object lock, which not every store can add later; without where it cannot."""
        if self._there:
            return

        def make() -> None:
            client = self.client()
            try:
                client.head_bucket(Bucket=self.name)
                return
            except client.exceptions.ClientError as error:
                if code_of(error) not in (*ABSENT, "NoSuchBucket"):
                    raise
            where: dict[str, Any] = {}
            if self.endpoint is None and client.meta.region_name != "us-east-1":
                region = {"LocationConstraint": client.meta.region_name}
                where["CreateBucketConfiguration"] = region
            try:
                client.create_bucket(Bucket=self.name, ObjectLockEnabledForBucket=True, **where)
            except client.exceptions.BucketAlreadyOwnedByYou:
                pass  # by another process just now
            except client.exceptions.ClientError as error:
                if code_of(error) not in ("NotImplemented", "InvalidArgument", "InvalidRequest"):
                    raise
                client.create_bucket(Bucket=self.name, **where)

        self.ask(what, make)
        self._there = True

    def can_lock(self) -> bool:
        def look() -> bool:
            client = self.client()
            try:
                answer = client.get_object_lock_configuration(Bucket=self.name)
            except client.exceptions.ClientError as error:
                if code_of(error) in (*UNLOCKED, *UNVERSIONED, *ABSENT):
                    return False
                raise
            found = answer.get("ObjectLockConfiguration", {})
            return bool(found.get("ObjectLockEnabled") == "Enabled")

        return self.ask("whether it can lock is not known", look)

    def head(self, key: str, version: str | None) -> dict[str, Any] | None:
        def look() -> dict[str, Any] | None:
            client = self.client()
            which = {"VersionId": version} if version else {}
            try:
                return dict(client.head_object(Bucket=self.name, Key=key, **which))
            except client.exceptions.ClientError as error:
                if code_of(error) in (*ABSENT, "NoSuchBucket", "NoSuchVersion"):
                    return None
                raise

        return self.ask(f"{key} was not found", look)

    def versions(self, prefix: str, markers: bool = False) -> list[dict[str, Any]]:
        """Newest first for each key; with delete markers when they are asked for."""
        kinds = ("Versions", "DeleteMarkers") if markers else ("Versions",)

        def listed(name: str, *kinds: str) -> list[dict[str, Any]]:
            pages = self.client().get_paginator(name)
            asked = pages.paginate(Bucket=self.name, Prefix=prefix)
            return [one for page in asked for kind in kinds for one in page.get(kind, [])]

        def look() -> list[dict[str, Any]]:
            client = self.client()
            try:
                return listed("list_object_versions", *kinds)
            except client.exceptions.ClientError as error:
                if code_of(error) == "NoSuchBucket":
                    return []
                if code_of(error) not in UNVERSIONED:
                    raise
            return listed("list_objects_v2", "Contents")

        return self.ask(f"{prefix} was not listed", look)

    def uploads(self, prefix: str) -> list[dict[str, Any]]:
        """Multipart uploads that are neither completed nor aborted."""

        def look() -> list[dict[str, Any]]:
            client = self.client()
            pages = client.get_paginator("list_multipart_uploads")
            try:
                asked = pages.paginate(Bucket=self.name, Prefix=prefix)
                return [one for page in asked for one in page.get("Uploads", [])]
            except client.exceptions.ClientError as error:
                if code_of(error) == "NoSuchBucket":
                    return []
                raise

        return self.ask("uploads were not listed", look)

    def abort(self, key: str, upload: str) -> None:
        def give_up() -> None:
            client = self.client()
            try:
                client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)
            except client.exceptions.NoSuchUpload:
                pass

        self.ask(f"the upload of {key} was not ended", give_up)
