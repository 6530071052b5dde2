"""One object on its way into a bucket, in parts: one is sent while the next is read."""

import base64
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.files import write_atomically
from blocks.processes import Process, machine, own
from blocks.s3_bucket import S3Bucket
from blocks.s3_client import code_of
from policy.errors import DafnckError

PART_BYTES = 8 * 2**20
GROWS_EVERY, GROWS_BY = 1000, 4  # 10,000 parts are the most, of 5 GiB at most


def parts(content: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts: 8 MiB each, after a thousand of them 32 MiB, then 128 MiB. There is
    always one, which may be empty."""
    number, most, part = 0, PART_BYTES, bytearray()
    for piece in content:
        rest = memoryview(piece)
        while rest:
            taken = rest[: most - len(part)]
            part += taken
            rest = rest[len(taken) :]
            if len(part) == most:
                yield bytes(part)
                number, part = number + 1, bytearray()
                most = PART_BYTES * GROWS_BY ** (number // GROWS_EVERY)
    if part or number == 0:
        yield bytes(part)


class Upload:
    """`uploads`: where it is remembered; `what`: begins what is told when it fails."""

    def __init__(
        self,
        bucket: S3Bucket,
        uploads: "Uploads",
        name: str,
        what: str,
        locked_until: float | None,
    ) -> None:
        self._in, self._uploads, self._name, self._what = bucket, uploads, name, what
        self._token = base64.b32encode(os.urandom(10)).decode()
        self._lock: dict[str, Any] = {}
        if locked_until is not None:
            until = datetime.fromtimestamp(locked_until, UTC)
            self._lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
        self._digest, self._bytes = hashlib.sha256(), 0
        self._over = threading.Event()

    def run(self, parts: Iterator[bytes]) -> tuple[int, str, str | None]:
        """-> (bytes, SHA-256 in hex, version of the object)"""
        first = next(parts)
        small = len(first) < PART_BYTES
        version = self._put(first) if small else self._in_parts(first, parts)
        return self._bytes, self._digest.hexdigest(), version

    def _put(self, content: bytes) -> str | None:
        self._count(content)
        answer = self._ask(
            lambda client, where: client.put_object(
                **where, Body=content, ChecksumSHA256=_checksum(content), **self._lock
            )
        )
        version: str | None = answer.get("VersionId")
        return version

    def _in_parts(self, first: bytes, rest: Iterator[bytes]) -> str | None:
        upload = self._ask(
            lambda client, where: client.create_multipart_upload(
                **where, ChecksumAlgorithm="SHA256", Metadata={"upload": self._token}, **self._lock
            )
        )["UploadId"]
        self._uploads.remember(upload)
        try:
            sent = self._send(upload, first, rest)
            version = self._complete(upload, sent)
        except BaseException:
            # Remembered as dead for `tidy` where the store is away now.
            self._uploads.remember(upload, dead=True)
            with suppress(DafnckError):
                self._in.abort(self._name, upload)
                self._uploads.forget(upload)
            raise
        self._uploads.forget(upload)
        return version

    def _send(self, upload: str, first: bytes, rest: Iterator[bytes]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        with ThreadPoolExecutor(1, "upload") as pool:
            try:
                under_way: Future[dict[str, Any]] = pool.submit(self._part, upload, 1, first)
                del first
                number = 1
                for part in rest:
                    sent.append(under_way.result())
                    number += 1
                    under_way = pool.submit(self._part, upload, number, part)
                    del part
                sent.append(under_way.result())
            finally:
                self._over.set()  # what is being sent is not tried again
        return sent

    def _part(self, upload: str, number: int, content: bytes) -> dict[str, Any]:
        self._count(content)
        checksum = _checksum(content)
        answer = self._ask(
            lambda client, where: client.upload_part(
                **where,
                UploadId=upload,
                PartNumber=number,
                Body=content,
                ChecksumSHA256=checksum,
            ),
            self._over,
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _complete(self, upload: str, sent: list[dict[str, Any]]) -> str | None:
        def act(client: Any, where: dict[str, str]) -> dict[str, Any]:
            try:
                return dict(
                    client.complete_multipart_upload(
                        **where, UploadId=upload, MultipartUpload={"Parts": sent}
                    )
                )
            except client.exceptions.ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise
                # Completed before, by a request whose answer was lost?
                found = dict(client.head_object(**where))
                if found.get("Metadata", {}).get("upload") != self._token:
                    raise
                return found

        version: str | None = self._ask(act).get("VersionId")
        return version

    def _count(self, content: bytes) -> None:
        self._digest.update(content)
        self._bytes += len(content)

    def _ask(self, act: Any, over: threading.Event | None = None) -> Any:
        where = {"Bucket": self._in.name, "Key": self._name}
        return self._in.ask(self._what, lambda: act(self._in.client(), where), over)


def _checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


class Uploads:
    """Remembers who uploads what, since a store cannot tell whether whoever began still lives.

    `where`: which store. Without `folder`: one of this user's own for temporary files; what is
    forgotten there is found by its age."""

    def __init__(self, where: str, folder: Path | None = None) -> None:
        self._where = where
        self._folder = folder or Path(tempfile.gettempdir()) / f"dafnck-uploads-{os.getuid()}"

    def remember(self, upload: str, dead: bool = False) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        me = own()
        pid = 0 if dead else me.pid
        said = {"upload": upload, "machine": machine(), "pid": pid, "started": me.started}
        write_atomically(self._file(upload), json.dumps({"where": self._where, **said}), 0o600)

    def forget(self, upload: str) -> None:
        self._file(upload).unlink(missing_ok=True)

    def dead_or_alive(self) -> dict[str, bool]:
        """Upload -> does the process that began it live? Of this machine's alone."""
        found = {}
        for file in self._folder.glob("*.json"):
            try:
                said = json.loads(file.read_text())
                if said["where"] == self._where and said["machine"] == machine():
                    process = Process(said["pid"], said["started"])
                    found[said["upload"]] = process.pid > 0 and process.alive()
            except (OSError, ValueError, LookupError, TypeError):
                continue  # of somebody else, or gone meanwhile
        return found

    def _file(self, upload: str) -> Path:
        digest = hashlib.sha256(f"{self._where} {upload}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"
