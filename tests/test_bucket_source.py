"""The objects of a bucket as a stream and back, over a SeaweedFS of these tests."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tree_source import manifest, streams_of, taken
from test_vaults import Store

from blocks import tar_pipe
from blocks.bucket_source import GONE, BucketRestore, BucketSource, FolderOfObjects
from blocks.ports import BackupSource, Restoring
from policy.backup_manifest import Facts
from policy.errors import BadInput, Damaged, NotApplied

LARGE = bytes(range(256)) * 80_000  # several parts


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store"))
    client = store.client()
    client.create_bucket(Bucket="shop")
    put = client.put_object
    put(Bucket="shop", Key="photos/a.jpg", Body=b"jpg", ContentType="image/jpeg")
    put(Bucket="shop", Key="photos/a-b", Body=b"", Metadata={"owner": "shop", "n": "1"})
    put(Bucket="shop", Key="photos/Größe + 1%.txt", Body="ü".encode(), CacheControl="no-store")
    tags = "team=a+b&Gr%C3%B6%C3%9Fe=1"
    put(Bucket="shop", Key="photos/deep/" + "x" * 200, Body=LARGE, Tagging=tags)
    put(Bucket="shop", Key="other", Body=b"not of the prefix")
    yield store
    store.kill()


def url(store: Store, place: str) -> str:
    return f"s3://{place}?endpoint={store.endpoint}"


def source(store: Store, place: str = "shop/photos") -> BucketSource:
    return BucketSource(url(store, place), store.stack.store_credentials)


def into(store: Store, place: str) -> BucketRestore:
    return BucketRestore(url(store, place), store.stack.store_credentials)


@pytest.mark.live
def test_everything_comes_back(store: Store, tmp_path: Path) -> None:
    assert isinstance(source(store), BackupSource)
    streams, facts = taken(source(store))
    assert list(streams) == ["objects", "listing"]
    assert facts.tree
    assert (facts.tree.count, facts.tree.total_bytes) == (4, len(LARGE) + 3 + 2)
    folder, bucket = FolderOfObjects(tmp_path / "back"), into(store, "back/below")
    for there in (folder, bucket):
        assert isinstance(there, Restoring)
        there.restore(manifest(facts), streams_of(streams))
        assert there.differences(manifest(facts)) == []
    again, _ = taken(source(store, "back/below"))
    assert again["listing"] == streams["listing"]
    client = store.client()
    found = client.get_object(Bucket="back", Key="below/a-b")
    assert found["Metadata"] == {"owner": "shop", "n": "1"}
    tags = client.get_object_tagging(Bucket="back", Key="below/deep/" + "x" * 200)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "a b", "Größe": "1"}
    with pytest.raises(BadInput, match="is not empty"):
        into(store, "back/below").restore(manifest(facts), streams_of(streams))

    client.put_object(Bucket="back", Key="below/a.jpg", Body=b"jpg", ContentType="text/plain")
    client.put_object(Bucket="back", Key="below/a-b", Body=b"1", Metadata={"owner": "shop"})
    client.put_object(Bucket="back", Key="below/more", Body=b"1")
    client.delete_object(Bucket="back", Key="below/deep/" + "x" * 200)
    words = {one.what: str(one) for one in bucket.differences(manifest(facts))}
    assert sorted(words) == ["a-b", "a.jpg", "deep/" + "x" * 200, "more"]
    assert "text/plain" in words["a.jpg"]
    assert '"ContentType": "image/jpeg"' in words["a.jpg"]
    assert "it is missing" in words["deep/" + "x" * 200]
    assert "too many" in words["more"]
    [changed, *_] = sorted((tmp_path / "back").glob("*.json"))
    changed.with_suffix("").write_bytes(b"other")
    assert len(folder.differences(manifest(facts))) == 1


@pytest.mark.live
def test_objects_that_go_meanwhile(store: Store) -> None:
    client = store.client()
    client.create_bucket(Bucket="busy")
    for key, body in (("a", LARGE), ("b", b"b"), ("c", b"c")):
        client.put_object(Bucket="busy", Key=key, Body=body)
    with source(store, "busy").begin() as copying:
        names = []
        for name, pipe in copying.streams():
            names.append(name)
            if name == "objects":
                client.delete_object(Bucket="busy", Key="b")
            pipe.read()
        facts = copying.facts()
    assert names == ["objects", "listing"]
    assert facts.detail[GONE] == "b"
    assert facts.tree
    assert facts.tree.count == 2


@pytest.mark.live
def test_buckets_that_are_none(store: Store) -> None:
    with pytest.raises(BadInput, match="no such bucket"), source(store, "nothing").begin():
        pass
    with pytest.raises(BadInput, match="is no bucket"):
        BucketSource("file:///tmp", None)
    client = store.client()
    client.create_bucket(Bucket="void")
    streams, facts = taken(source(store, "void"))
    there = into(store, "void2")
    there.restore(manifest(facts), streams_of(streams))
    assert there.differences(manifest(facts)) == []


def archive(*objects: dict[str, str]) -> bytes:
    out: Any = io.BytesIO()
    for number, headers in enumerate(objects):
        member = tarfile.TarInfo(str(number))
        member.pax_headers = headers
        tar_pipe.head(out, member)
    tar_pipe.end(out)
    return bytes(out.getvalue())


def test_keys_are_no_paths(tmp_path: Path) -> None:
    keys = ("../../out", "/out", "a//b", "a/", "a\nb")
    objects = [{"DAFNCK.key": key.replace("\n", "%0A"), "DAFNCK.headers": "{}"} for key in keys]
    there = FolderOfObjects(tmp_path / "back")
    with pytest.raises(Damaged, match="listing"):
        there.restore(manifest(Facts()), streams_of({"objects": archive(*objects), "listing": b""}))
    assert len(list((tmp_path / "back").iterdir())) == 2 * len(keys)
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_what_is_no_object(tmp_path: Path) -> None:
    streams = {"objects": archive({"DAFNCK.key": "a"}), "listing": b""}
    with pytest.raises(NotApplied, match="is no object"):
        FolderOfObjects(tmp_path / "back").restore(manifest(Facts()), streams_of(streams))
    with pytest.raises(NotApplied, match="nothing was restored"):
        FolderOfObjects(tmp_path / "back").differences(manifest(Facts()))
