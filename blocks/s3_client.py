"""How an S3 is spoken to, and its errors in our words."""

import json
from pathlib import Path
from typing import Any

from policy.errors import DafnckError, NotAllowed, Unreachable

REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "ExpiredToken")
ABSENT = ("NoSuchKey", "404", "NotFound")
BUSY = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "429")


def s3_client(endpoint: str | None, credentials: Path | None, attempts: int = 2) -> Any:
    """`credentials`: file of the local store's keys, instead of boto3's own. Raises Unreachable
    when it cannot be read."""
    import boto3
    from botocore.config import Config

    settings = Config(
        s3={"addressing_style": "path"} if endpoint else {},
        connect_timeout=3,
        read_timeout=30,
        retries={"max_attempts": attempts, "mode": "standard"},
    )
    keys = _keys(credentials) if credentials is not None else {}
    return boto3.client("s3", endpoint_url=endpoint, config=settings, **keys)


def _keys(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text())
        identity = content["identities"][0]["credentials"][0]
        return {
            "aws_access_key_id": str(identity["accessKey"]),
            "aws_secret_access_key": str(identity["secretKey"]),
            "region_name": "us-east-1",
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        # What the file holds must not be told.
        raise Unreachable(f"{file} cannot be read ({type(error).__name__}); dafnck up") from None


def code_of(error: BaseException | None) -> str:
    """What the store says by its answer; empty when it is no answer of a store."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def passes(error: BaseException) -> bool:
    """May the same request succeed soon? A lost connection, a store that starts or is busy."""
    from botocore.exceptions import (
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
    )

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in BUSY or (status >= 500 and status != 501)
    return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)


def worded(error: BaseException | None, what: str) -> DafnckError | None:
    """None for an error that is not boto3's."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        code = code_of(error)
        if code in REFUSED:
            return NotAllowed(f"{what}: the store refuses our credentials ({code})")
        return Unreachable(f"{what}: {code}")
    if isinstance(error, BotoCoreError | S3UploadFailedError):
        return Unreachable(f"{what}: {error}")
    return None
