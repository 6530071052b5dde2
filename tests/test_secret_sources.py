"""Secrets of AWS, imitated by moto, and of Prefect's own server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from blocks.secret_files import SecretFiles
from blocks.secret_sources import SecretSources
from blocks.stack import Ports, Stack
from policy.errors import NotAllowed, Refused, Unreachable
from policy.secrets import read_reference


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SecretSources:
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    return SecretSources(Stack(home=tmp_path, ports=Ports(), ledger_url=str(tmp_path / "l.db")))


@pytest.fixture
def manager(sources: SecretSources) -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("secretsmanager")


def read(sources: SecretSources, text: str) -> tuple[str, str]:
    return sources.read(read_reference(text))


def test_the_current_version_is_read(sources: SecretSources, manager: Any) -> None:
    manager.create_secret(Name="prod/shop", SecretString="one")
    first = read(sources, "aws://prod/shop")
    manager.put_secret_value(
        SecretId="prod/shop", SecretString="pending", VersionStages=["AWSPENDING"]
    )
    assert read(sources, "aws://prod/shop") == first, "not the one that is pending"
    manager.put_secret_value(SecretId="prod/shop", SecretString="two")
    second = read(sources, "aws://prod/shop")
    assert (first[1], second[1]) == ("one", "two")
    assert first[0] != second[0]


def test_when_it_was_changed(sources: SecretSources, manager: Any) -> None:
    def changed(text: str) -> float | None:
        return sources.changed_at(read_reference(text))

    before = time.time() - 2
    manager.create_secret(Name="prod/shop", SecretString="one")
    SecretFiles(sources._stack).put("shop/url", "one")
    for text in ("aws://prod/shop#url", "secret://shop/url"):
        assert before < (changed(text) or 0) < time.time() + 1
    assert changed("env://HOME") is None
    assert changed("secret://shop/none") is None
    with pytest.raises(Refused, match="no such secret"):
        changed("aws://none")


def test_a_key_of_a_value(sources: SecretSources, manager: Any) -> None:
    manager.create_secret(Name="db", SecretString=json.dumps({"password": "hunter2", "port": 5432}))
    assert read(sources, "aws://db#password")[1] == "hunter2"
    assert read(sources, "aws://db#port")[1] == "5432"
    with pytest.raises(Refused, match="no JSON with a key user") as told:
        read(sources, "aws://db#user")
    assert "hunter2" not in str(told.value)


def test_what_is_not_there_is_told(sources: SecretSources, manager: Any) -> None:
    with pytest.raises(Refused, match="aws://none: there is no such secret"):
        read(sources, "aws://none")
    manager.create_secret(Name="blob", SecretBinary=b"x")
    with pytest.raises(Refused, match="no text"):
        read(sources, "aws://blob")


def test_who_may_not_is_told_so(sources: SecretSources, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    denied = {"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}

    class Denies:
        def get_secret_value(self, **_: Any) -> None:
            raise ClientError(denied, "GetSecretValue")  # type: ignore[arg-type]

    monkeypatch.setattr("blocks.secret_sources.aws_client", Denies)
    with pytest.raises(NotAllowed, match="AccessDeniedException: not authorized"):
        read(sources, "aws://prod/shop")


def test_an_endpoint_that_does_not_answer_is_told(
    sources: SecretSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unreachable, match="aws://prod/shop: Could not connect"):
        read(sources, "aws://prod/shop")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(Unreachable, match="region"):
        read(sources, "aws://prod/shop")


@pytest.mark.live
def test_a_secret_block_of_prefect(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.blocks.system import Secret
    from prefect.context import refresh_global_settings_context

    from deployments.local_stack import prefect_environment

    for name, value in prefect_environment(stack).items():
        monkeypatch.setenv(name, value)
    refresh_global_settings_context()
    try:
        Secret(value="hunter2").save("shop-token", overwrite=True)  # type: ignore[arg-type]
        sources = SecretSources(stack)
        assert read(sources, "prefect://shop-token") == ("", "hunter2")
        with pytest.raises(Refused, match="no Secret block nobody"):
            read(sources, "prefect://nobody")
    finally:
        monkeypatch.undo()
        refresh_global_settings_context()  # what comes next is told nothing of this
