"""Reads a secret where its reference says that it is.

No message holds a value, or a part of one.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from blocks.secret_files import SecretFiles
from blocks.stack import Stack
from policy.errors import DafnckError, NotAllowed, Refused, Unreachable
from policy.secrets import Reference

NOT_ALLOWED = ("AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException")


class SecretSources:
    def __init__(self, stack: Stack) -> None:
        self._stack, self._files = stack, SecretFiles(stack)
        self._readers: dict[str, Callable[[str], tuple[str, str]]] = {
            "secret": self._of_the_stack,
            "env": _of_the_environment,
            "prefect": self._of_prefect,
            "aws": _of_aws,
        }

    def read(self, reference: Reference) -> tuple[str, str]:
        """-> its version, as the source names it (empty where it has none), and its value. Raises
        Refused when there is none, NotAllowed, Unreachable."""
        return self._readers[reference.scheme](reference.name)

    def counts(self, reference: Reference, version: str) -> bool:
        """May something still run with this version of it? False once it was closed."""
        if reference.scheme != "secret":
            return True
        versions = self._files.versions(reference.name)
        return not versions.all or versions.counts(int(version))

    def changed_at(self, reference: Reference) -> float | None:
        """When its current value came, in seconds since the epoch; None where the source does not
        know. Raises as `read`."""
        if reference.scheme == "secret":
            versions = self._files.versions(reference.name)
            one = versions.version(versions.current or 0)
            return one.current_since if one else None
        if reference.scheme == "aws":
            made = _current_at_aws(reference.name.partition("#")[0])["CreatedDate"]
            return float(made.timestamp())
        return None

    def _of_the_stack(self, name: str) -> tuple[str, str]:
        number, value = self._files.read(name)
        return str(number), value

    def _of_prefect(self, name: str) -> tuple[str, str]:
        from blocks.prefect_api import stack_api

        with stack_api(self._stack) as api:
            value = api.secret(name)
        if value is None:
            raise Refused(f"prefect://{name}: Prefect's server has no Secret block {name}")
        return "", value if isinstance(value, str) else json.dumps(value)


def _of_the_environment(name: str) -> tuple[str, str]:
    if value := os.environ.get(name):
        return "", value
    raise Refused(f"env://{name}: {name} is not set in the environment of this process")


def _of_aws(name: str) -> tuple[str, str]:
    secret, _, key = name.partition("#")
    answer = _current_at_aws(secret)
    value = str(answer.get("SecretString") or "")
    if key:
        value = _key_of(value, secret, key)
    if not value:
        raise Refused(f"aws://{name}: it has no text for a value")
    return str(answer["VersionId"]), value


def _current_at_aws(secret: str) -> Any:
    """The version that is current: AWSCURRENT is always named, since without it some imitations
    answer with any."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return aws_client().get_secret_value(SecretId=secret, VersionStage="AWSCURRENT")
    except ClientError as error:
        raise aws_trouble(error, secret) from None
    except BotoCoreError as error:
        raise Unreachable(f"aws://{secret}: {error}") from None


def _key_of(value: str, secret: str, key: str) -> str:
    try:
        found = json.loads(value)[key]
    except (ValueError, LookupError, TypeError):
        raise Refused(f"aws://{secret}: its value is no JSON with a key {key}") from None
    return found if isinstance(found, str) else json.dumps(found)


def aws_client() -> Any:
    """Endpoint, region and credentials by boto3's own conventions."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.client("secretsmanager")
    except BotoCoreError as error:  # no region
        raise Unreachable(f"AWS Secrets Manager: {error}") from None


def aws_trouble(error: Any, secret: str) -> DafnckError:
    said = error.response["Error"]
    code = said.get("Code", "")
    if code == "ResourceNotFoundException":
        return Refused(f"aws://{secret}: there is no such secret, or it has no current version")
    if code in NOT_ALLOWED:
        return NotAllowed(f"aws://{secret}: {code}: {said.get('Message', '')}")
    return Unreachable(f"aws://{secret}: {code}: {said.get('Message', '')}")
