"""Tampering: whatever is changed after the build, its name is told and nothing starts."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks import tree
from blocks.attestations import Attestations
from blocks.signing import Forged, Keys
from policy.errors import BadInput, Refused, Unreachable
from policy.provenance import FILES, Made, Revision

REVISION = Revision("https://host/shop.git", "a" * 40, 1.0, "Anna <anna@example.org>")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "secrets", tmp_path / "keys")
    keys.make()
    return keys


def built(folder: Path, keys: Keys, name: str = "abc", code: str = "print('one')\n") -> Path:
    artifact = folder / "artifacts" / name
    (artifact / "app").mkdir(parents=True)
    (artifact / "venv" / "bin").mkdir(parents=True)
    (artifact / "app" / "shop.py").write_text(code)
    (artifact / "venv" / "bin" / "python").symlink_to("/usr/bin/python3")
    (artifact / "venv" / "bin" / "gunicorn").write_text("#!/bin/sh\n")
    (artifact / "venv" / "bin" / "gunicorn").chmod(0o755)
    made = Made(name, {"command": "make"}, REVISION, 1.0, 2.0, "worker", "run", {"dafnck": "1"})
    sbom = b'{"bomFormat": "CycloneDX", "components": []}'
    Attestations(folder / "artifacts", keys).attest(artifact, made, sbom=sbom)
    return artifact


@pytest.fixture
def artifact(tmp_path: Path, keys: Keys) -> Path:
    return built(tmp_path, keys)


@pytest.fixture
def attestations(tmp_path: Path, keys: Keys) -> Attestations:
    return Attestations(tmp_path / "artifacts", keys)


def test_what_was_built_is_what_is_said(artifact: Path, attestations: Attestations) -> None:
    said, key = attestations.verify("abc", attestations.content("abc"))
    assert said.source.digest == {"gitCommit": "a" * 40}
    assert said.source.uri == "git+https://host/shop.git"
    assert said.predicate.run_details.metadata.invocation_id == "run"
    assert len(key) == 64


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def another_statement(path: Path) -> None:
    envelope = json.loads(path.read_text())
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["predicate"]["runDetails"]["metadata"]["invocationId"] = "another"
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    path.write_text(json.dumps(envelope))


Change = Callable[[Path], object]
TAMPERED: list[tuple[str, Change, str]] = [
    ("a byte of the code", lambda a: one_byte(a / "app" / "shop.py"), "app/shop.py was changed"),
    ("a mode", lambda a: (a / "app" / "shop.py").chmod(0o755), "app/shop.py was changed"),
    ("a file more", lambda a: (a / "app" / "x.pth").touch(), "app/x.pth was added"),
    ("a file less", lambda a: (a / "venv/bin/gunicorn").unlink(), "venv/bin/gunicorn is gone"),
    (
        "where a link points",
        lambda a: [(p := a / "venv/bin/python").unlink(), p.symlink_to("/tmp/evil")],  # noqa: S108
        "venv/bin/python was changed",
    ),
    ("a byte of the SBOM", lambda a: one_byte(a / "attestations/sbom.json"), "SBOM"),
    ("no SBOM", lambda a: (a / "attestations/sbom.json").unlink(), "SBOM"),
    ("a byte of the list", lambda a: one_byte(a / "attestations/files.txt"), "list of files"),
    (
        "another statement",
        lambda a: another_statement(a / "attestations/provenance.dsse.json"),
        "made its signature",
    ),
    (
        "no provenance",
        lambda a: (a / "attestations/provenance.dsse.json").unlink(),
        "carries no provenance",
    ),
    (
        "no envelope",
        lambda a: (a / "attestations/provenance.dsse.json").write_text("{}"),
        "no DSSE envelope",
    ),
    (
        "garbage",
        lambda a: (a / "attestations/provenance.dsse.json").write_bytes(b"\xff\xfe"),
        "cannot be read",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), [t[1:] for t in TAMPERED], ids=[t[0] for t in TAMPERED]
)
def test_a_change_is_refused_and_named(
    artifact: Path, attestations: Attestations, change: Change, words: str
) -> None:
    change(artifact)
    with pytest.raises(Refused, match=words) as refused:
        attestations.verify("abc")
    assert "nothing was started" in str(refused.value)


def test_every_byte_of_the_envelope_counts(artifact: Path, attestations: Attestations) -> None:
    path = artifact / "attestations" / "provenance.dsse.json"
    whole = path.read_bytes()
    envelope = json.loads(whole)
    parts = [envelope["payload"], envelope["signatures"][0]["sig"], envelope["payloadType"]]
    for part in parts:
        begin = whole.index(part.encode())
        for at in range(begin, begin + len(part), max(1, len(part) // 25)):
            changed = bytearray(whole)
            changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
            path.write_bytes(changed)
            with pytest.raises(Refused):
                attestations.verify("abc")
    path.write_bytes(whole)
    attestations.verify("abc")


def test_a_signature_by_another_key(
    artifact: Path, attestations: Attestations, tmp_path: Path
) -> None:
    stranger = Keys(tmp_path / "theirs", tmp_path / "their-keys")
    stranger.make()
    shutil.rmtree(artifact)
    built(tmp_path, stranger)
    with pytest.raises(Refused, match=r"no key of .* made its signature"):
        attestations.verify("abc")


def test_the_provenance_of_another_artifact(
    artifact: Path, attestations: Attestations, keys: Keys, tmp_path: Path
) -> None:
    other = built(tmp_path, keys, "other", "print('two')\n")
    shutil.rmtree(artifact)
    shutil.copytree(other, artifact, symlinks=True)
    with pytest.raises(Refused, match="carries the provenance of another, other"):
        attestations.verify("abc")


def test_what_was_built_anew_is_not_what_was_released(
    artifact: Path, attestations: Attestations, keys: Keys, tmp_path: Path
) -> None:
    content = attestations.content("abc")
    shutil.rmtree(artifact)
    built(tmp_path, keys, "abc", "print('other')\n")
    attestations.verify("abc")
    with pytest.raises(Refused, match="came out different"):
        attestations.verify("abc", content)


def test_a_new_key_leaves_the_old_signatures_good(
    artifact: Path, attestations: Attestations, keys: Keys, tmp_path: Path
) -> None:
    _, old = attestations.verify("abc")
    new = keys.make()
    assert attestations.verify("abc")[1] == old != new
    (tmp_path / "keys" / f"{old}.pem").unlink()
    with pytest.raises(Refused, match="made its signature"):
        attestations.verify("abc")


def test_a_mounted_key(keys: Keys, tmp_path: Path) -> None:
    other = Keys(tmp_path / "vault", tmp_path / "unused")
    identity = other.make()
    mounted = tmp_path / "vault" / "signing-key.pem"
    assert keys.make(linked_to=mounted) == identity
    assert (tmp_path / "secrets" / "signing-key.pem").is_symlink()
    assert keys.verify(keys.sign(b"{}")) == (b"{}", identity)


def test_a_key_that_is_none_is_told_without_its_content(keys: Keys, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    bad = tmp_path / "bad.pem"
    bad.write_text("hunter2")
    with pytest.raises(BadInput) as refused:
        keys.make(linked_to=bad)
    assert "hunter2" not in str(refused.value)
    bad.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
    )
    with pytest.raises(BadInput, match="another kind of key"):
        keys.make(linked_to=bad)
    with pytest.raises(Unreachable, match="dafnck keygen"):
        keys.make(linked_to=tmp_path / "nothing")
    assert keys.verify(keys.sign(b"{}"))[0] == b"{}"


def test_the_private_key_is_private(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "signing-key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_payload_of_another_type(keys: Keys) -> None:
    envelope = json.loads(keys.sign(b"{}"))
    envelope["payloadType"] = "text/plain"
    with pytest.raises(Forged, match="its payload is 'text/plain'"):
        keys.verify(json.dumps(envelope))


def test_odd_names_have_a_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    for name in ("a b", "two\nlines", "ümlaut", "per%cent"):
        (folder / name).write_text(name)
    listed = tree.listing(tmp_path, ("app",))
    assert listed.count("\n") == 4
    (folder / "two\nlines").write_text("else")
    assert tree.differences(listed, tree.listing(tmp_path, ("app",))) == [
        "app/two\nlines was changed"
    ]
    assert FILES == "files.txt"


def test_what_cannot_be_listed_is_not_vouched_for(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that another user closed. Root may list all, so the refusal is played."""

    def closed(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", closed)
        with pytest.raises(PermissionError):
            tree.listing(artifact, ("app",))
