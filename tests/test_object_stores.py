"""The same promises of every object store: a folder, and the S3 of the local stack."""

import json
from pathlib import Path

import pytest
from conftest import free_port

from blocks.object_store import FolderStore, S3Store, object_store
from blocks.ports import ObjectStore
from blocks.stack import Stack
from policy.errors import BadInput, NotAllowed, NotApplied, Unreachable
from tasks.site import store_of


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.live)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    stack: Stack = request.getfixturevalue("stack")
    url = f"s3://contract/{tmp_path.name}?endpoint=http://127.0.0.1:{stack.ports.object_store}"
    return object_store(url, stack.store_credentials)


def test_what_is_put_is_there(store: ObjectStore, tmp_path: Path) -> None:
    assert store.get("a/b") is None
    store.put("a/b", b"one")
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 80_000)  # over a part of a multipart upload
    store.put("a/large", large)
    assert store.get("a/b") == b"one"
    assert store.get("a/large") == large.read_bytes()
    assert store.sizes("a/") == {"a/b": 3, "a/large": 20_480_000}
    assert store.sizes("other/") == {}


def test_a_second_put_replaces(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    assert store.get("a") == b"two"


def test_deleted_is_gone(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.delete("a")
    store.delete("a")
    assert store.get("a") is None


def test_it_is_a_store(store: ObjectStore) -> None:
    assert isinstance(store, ObjectStore)


def test_names_stay_inside_of_a_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    for name in ("../a", "/etc/passwd", ""):
        with pytest.raises(BadInput):
            store.put(name, b"x")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotApplied, match="was not stored"):
        FolderStore(tmp_path / "file").put("a", b"x")


def test_a_store_that_is_away(tmp_path: Path) -> None:
    credentials = tmp_path / "keys.json"
    identity = {"credentials": [{"accessKey": "a", "secretKey": "s3cret"}]}
    credentials.write_text(json.dumps({"identities": [identity]}))
    store = S3Store("bucket", "", f"http://127.0.0.1:{free_port()}", credentials)
    for act in (lambda: store.put("a", b"x"), lambda: store.get("a"), lambda: store.sizes("a")):
        with pytest.raises(Unreachable) as away:
            act()
        assert "s3cret" not in str(away.value)


@pytest.mark.live
def test_credentials_that_are_refused(stack: Stack, tmp_path: Path) -> None:
    store_of(stack).put("there", b"x")
    credentials = tmp_path / "keys.json"
    identity = {"credentials": [{"accessKey": "dafnck", "secretKey": "wrong"}]}
    credentials.write_text(json.dumps({"identities": [identity]}))
    store = S3Store("dafnck", "", f"http://127.0.0.1:{stack.ports.object_store}", credentials)
    with pytest.raises(NotAllowed, match="refuses our credentials"):
        store.get("there")


def test_urls() -> None:
    assert str(object_store("s3://bucket/prefix")) == "s3://bucket"
    assert str(object_store("file:///mnt/a%20b")) == "/mnt/a b"
    for url in ("http://host", "s3://", "bucket", "file://"):
        with pytest.raises(BadInput, match="write s3://"):
            object_store(url)


@pytest.mark.live
def test_the_stores_own_key_is_private(stack: Stack) -> None:
    assert stack.store_credentials.stat().st_mode & 0o777 == 0o600


@pytest.mark.live
def test_there_is_room_for_many_buckets(stack: Stack) -> None:
    for number in range(4):
        url = f"s3://bucket-{number}?endpoint=http://127.0.0.1:{stack.ports.object_store}"
        object_store(url, stack.store_credentials).put("a", b"x")
