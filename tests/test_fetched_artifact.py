"""A home that did not build a release gets what is signed of it from the object store."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from fakes import a_release, an_artifact

from blocks.attestations import Attestations
from blocks.builder import Builder
from blocks.object_store import FolderStore
from blocks.signing import Keys
from policy.errors import Refused
from policy.release import Release
from tasks.verify import fetch_image


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def release(tmp_path: Path, store: FolderStore) -> Release:
    """Built and stored by a machine that is gone."""
    there = tmp_path / "there"
    said = an_artifact(there)
    (there / "artifacts" / "abc" / "artifact.json").write_text('{"size_bytes": 1}')
    with Builder(there / "artifacts").packed("abc") as archive:
        store.put(said.archive_key("abc"), archive)
    shutil.rmtree(there / "artifacts")
    return a_release(content=said_of(tmp_path, store), image="registry.test/shop@sha256:0")


def said_of(tmp_path: Path, store: FolderStore) -> str:
    (key,) = store.sizes("artifacts/abc/artifact-")
    Builder(tmp_path / "look").unpack("abc", store.get(key) or b"")
    keys = Keys(tmp_path / "there" / "secrets", tmp_path / "there" / "keys")
    return Attestations(tmp_path / "look", keys).content("abc")


@pytest.fixture
def here(tmp_path: Path) -> tuple[Builder, Attestations]:
    keys = Keys(tmp_path / "there" / "secrets", tmp_path / "there" / "keys")
    return Builder(tmp_path / "here"), Attestations(tmp_path / "here", keys)


def test_it_is_verified_as_if_it_was_built_here(
    here: tuple[Builder, Attestations], store: FolderStore, release: Release
) -> None:
    builder, said = here
    for _ in range(2):
        fetch_image(builder, store, release)
        assert said.verify("abc", release.content)[0].artifact == "abc"


def test_another_content_than_that_of_the_release_does_not_count(
    here: tuple[Builder, Attestations], store: FolderStore, release: Release
) -> None:
    builder, said = here
    (key,) = store.sizes("artifacts/abc/artifact-")
    Builder(builder.folder("")).unpack("abc", store.get(key) or b"")
    (builder.folder("abc") / "app" / "shop.py").write_text("print('changed')\n")
    with builder.packed("abc") as archive:
        store.put(key, archive)
    shutil.rmtree(builder.folder("abc"))
    fetch_image(builder, store, release)
    with pytest.raises(Refused, match=r"is not what was built: app/shop\.py was changed"):
        said.verify("abc", release.content)


def test_where_there_is_none_the_provenance_is_missed(
    here: tuple[Builder, Attestations], store: FolderStore, release: Release
) -> None:
    builder, said = here
    (key,) = store.sizes("artifacts/abc/artifact-")
    store.delete(key)
    fetch_image(builder, store, release)
    with pytest.raises(Refused, match="carries no provenance"):
        said.verify("abc", release.content)


@pytest.mark.parametrize("name", ["../abc2/shop.py", "/tmp/abc", "link"])  # noqa: S108
def test_nothing_is_written_elsewhere(
    here: tuple[Builder, Attestations],
    store: FolderStore,
    release: Release,
    name: str,
) -> None:
    (key,) = store.sizes("artifacts/abc/artifact-")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    store.put(key, packed.getvalue())
    with pytest.raises(Refused, match="is no plain file of it"):
        fetch_image(here[0], store, release)


def test_rubbish_is_refused(
    here: tuple[Builder, Attestations], store: FolderStore, release: Release
) -> None:
    builder, _ = here
    (key,) = store.sizes("artifacts/abc/artifact-")
    store.put(key, b"no archive")
    with pytest.raises(Refused, match="cannot be unpacked"):
        fetch_image(builder, store, release)
    assert not builder.folder("abc").exists()
