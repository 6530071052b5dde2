"""Where things lie that must outlive this machine: any S3, or a folder.

    s3://bucket/prefix?endpoint=http://127.0.0.1:8333    without endpoint: AWS
    file:///mnt/backup/dafnck

Credentials are boto3's own (environment, profile, instance role); for the store of the local stack
they come from a file.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from blocks.files import scratch
from blocks.ports import ObjectStore
from blocks.s3_client import ABSENT, code_of, s3_client, worded
from policy.errors import BadInput, NotApplied, Unreachable


def object_store(url: str, credentials: Path | None = None) -> ObjectStore:
    """`credentials`: file of the local store's keys. Raises BadInput."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path:
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        endpoint = next(iter(parse_qs(parts.query).get("endpoint", [])), None)
        return S3Store(parts.netloc, parts.path.strip("/"), endpoint, credentials)
    raise BadInput(f"{url}: write s3://bucket/prefix?endpoint=… or file:///folder")


class S3Store:
    """Objects under a prefix of a bucket, which is made when it is not there."""

    def __init__(
        self, bucket: str, prefix: str, endpoint: str | None, credentials: Path | None
    ) -> None:
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._endpoint, self._credentials = endpoint, credentials
        self._made: Any = None

    def __str__(self) -> str:
        return f"s3://{self._bucket}" + (f" at {self._endpoint}" if self._endpoint else "")

    def put(self, key: str, content: bytes | Path) -> None:
        client = self._client()
        with self._errors(f"{key} was not stored"):
            try:
                self._write(client, key, content)
            except client.exceptions.NoSuchBucket:
                client.create_bucket(Bucket=self._bucket)
                self._write(client, key, content)

    def _write(self, client: Any, key: str, content: bytes | Path) -> None:
        name = self._prefix + key
        if isinstance(content, bytes):
            client.put_object(Bucket=self._bucket, Key=name, Body=content)
        else:
            client.upload_file(str(content), self._bucket, name)

    def get(self, key: str) -> bytes | None:
        with self._errors(f"{key} was not read"):
            answer = self._client().get_object(Bucket=self._bucket, Key=self._prefix + key)
            return bytes(answer["Body"].read())
        return None  # there is no such object

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._errors(f"{prefix} was not listed"):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for one in page.get("Contents", []):
                    found[one["Key"].removeprefix(self._prefix)] = one["Size"]
        return found

    def delete(self, key: str) -> None:
        with self._errors(f"{key} was not deleted"):
            self._client().delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def _client(self) -> Any:
        if self._made is None:
            self._made = s3_client(self._endpoint, self._credentials)
        return self._made

    def _errors(self, what: str) -> "_Errors":
        return _Errors(f"{self}: {what}")


class _Errors:
    """boto3's errors in our words; swallows the one that says that there is no such object."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> "_Errors":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if code_of(error) in (*ABSENT, "NoSuchBucket"):
            return True
        if told := worded(error, self._what):
            raise told from None
        return False


class FolderStore:
    """A file an object; none is ever seen half-written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def put(self, key: str, content: bytes | Path) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch(self._folder, "put") as here:
                half = here / "half"
                if isinstance(content, bytes):
                    half.write_bytes(content)
                else:
                    shutil.copyfile(content, half)
                with half.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(half, path)
        except OSError as error:
            raise NotApplied(f"{self}: {key} was not stored: {error}") from None

    def get(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreachable(f"{self}: {key} was not read: {error}") from None

    def sizes(self, prefix: str) -> dict[str, int]:
        return {
            name: path.stat().st_size
            for path in self._files()
            if (name := str(path.relative_to(self._folder))).startswith(prefix)
        }

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(folder) / name for name in files)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self._folder / key
        if not key or ".." in Path(key).parts or Path(key).is_absolute():
            raise BadInput(f"{key!r} is no name of an object")
        return path
