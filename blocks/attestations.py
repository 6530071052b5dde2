"""What is said of an artifact under signature, beside it; and whether it is still what was said.

    artifacts/<digest>/attestations/provenance.dsse.json   in-toto statement in a DSSE envelope
                                    files.txt              every file of the artifact
                                    sbom.json              CycloneDX, when Trivy is there
                                    tests-<suite>.dsse.json  that it passed them

The signature covers the others by their digests. Nothing that fails here is started.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blocks import tree
from blocks.files import write_atomically
from blocks.signing import Forged, Keys
from policy.errors import Refused
from policy.provenance import FILES, SBOM, STATEMENT, Made, Statement, statement

FOLDER = "attestations"
PROVENANCE = "provenance.dsse.json"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PARTS = ("app", "venv", "image.json")  # of the artifact: what its digest covers
MOST_TOLD = 3


class Attestations:
    def __init__(self, artifacts: Path, keys: Keys) -> None:
        self._artifacts, self._keys = artifacts, keys

    def attest(
        self,
        folder: Path,
        made: Made,
        *,
        sbom: bytes | None,
        images: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Say of what lies in this folder what it is and how it came about. `images`: reference and
        SHA-256 of each that it names. Raises Unreachable when there is no key to sign with."""
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        listed = tree.listing(folder, PARTS)
        write_atomically(place / FILES, listed)
        byproducts = {}
        if sbom is not None:
            write_atomically(place / SBOM, sbom.decode())
            byproducts[SBOM] = _sha256(sbom)
        subjects = [(FILES, _sha256(listed.encode())), *images]
        said = statement(made, subjects, byproducts)
        envelope = self._keys.sign(json.dumps(said, sort_keys=True).encode())
        write_atomically(place / PROVENANCE, envelope)

    def ready(self) -> None:
        """Raises Unreachable when nothing could be signed, or its signature would not count."""
        self._keys.check()

    def archive_key(self, artifact: str) -> str:
        """Of the artifact itself in the object store: another content is another object."""
        return f"artifacts/{artifact}/artifact-{self.content(artifact)[:16]}.tar.gz"

    def content(self, artifact: str) -> str:
        """SHA-256 over all that an artifact consists of, as its provenance names it. Raises
        Refused."""
        sha = self.statement(artifact)[0].sha256_of(FILES)
        assert sha is not None
        return sha

    def statement(self, artifact: str) -> tuple[Statement, str]:
        """-> (what was signed, id of the key). Raises Refused when the signature does not count."""
        path = self._artifacts / artifact / FOLDER / PROVENANCE
        try:
            payload, key = self._keys.verify(path.read_text())
            said = Statement.model_validate_json(payload)
        except FileNotFoundError:
            raise _refused(
                artifact, "carries no provenance: it was not built here, or that was removed"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise _refused(artifact, f"has a provenance that cannot be read ({error})") from None
        except Forged as why:
            raise _refused(artifact, f"has a provenance that does not count: {why}") from None
        except ValidationError as error:
            what = error.errors()[0]
            where = ".".join(map(str, what["loc"]))
            raise _refused(
                artifact, f"has a provenance that is none ({where}: {what['msg']})"
            ) from None
        if said.artifact != artifact:
            raise _refused(artifact, f"carries the provenance of another, {said.artifact}")
        if said.sha256_of(FILES) is None:
            raise _refused(artifact, f"has a provenance that names no {FILES}")
        return said, key

    def verify(self, artifact: str, content: str | None = None) -> tuple[Statement, str]:
        """Is it what was built and signed, and of this content? -> (what was signed, id of the
        key). Raises Refused, with what was changed."""
        said, key = self.statement(artifact)
        place = self._artifacts / artifact / FOLDER
        listed = _text(place / FILES)
        if listed is None or _sha256(listed.encode()) != said.sha256_of(FILES):
            raise _refused(artifact, f"has a list of files ({FILES}) that was changed")
        try:
            now = tree.listing(self._artifacts / artifact, PARTS)
        except OSError as error:
            raise _refused(artifact, f"cannot be read: {error}") from None
        if now != listed:
            words = tree.differences(listed, now)
            more = f" and {len(words) - MOST_TOLD} more" if len(words) > MOST_TOLD else ""
            changed = ", ".join(words[:MOST_TOLD]) + more
            raise _refused(artifact, f"is not what was built: {changed}")
        sbom = _text(place / SBOM)
        if said.sha256_of(SBOM) != (None if sbom is None else _sha256(sbom.encode())):
            raise _refused(artifact, f"has an SBOM ({SBOM}) that was changed")
        if content is not None and content != said.sha256_of(FILES):
            raise _refused(
                artifact,
                "was built anew since, and came out different from what this release was made of",
            )
        return said, key

    def attest_tests(self, artifact: str, name: str, asked: Any, result: Any) -> None:
        """Say that an artifact passed a suite. `asked`: how the suite is written in the service
        file; `result`: what it ended in. Both as JSON holds them."""
        said = {
            "_type": STATEMENT,
            "subject": [{"name": FILES, "digest": {"sha256": self.content(artifact)}}],
            "predicateType": TEST_RESULT,
            "predicate": {"result": "PASSED", "suite": {"asked": asked, "ended": result}},
        }
        envelope = self._keys.sign(json.dumps(said, sort_keys=True).encode())
        write_atomically(self._artifacts / artifact / FOLDER / f"tests-{name}.dsse.json", envelope)

    def passed_tests(self, artifact: str, name: str, asked: Any) -> Any:
        """What this suite ended in when the artifact passed it; None when it never did, or nobody
        can vouch for it: then it is run."""
        path = self._artifacts / artifact / FOLDER / f"tests-{name}.dsse.json"
        try:
            said = json.loads(self._keys.verify(path.read_text())[0])
            of = [(one["name"], one["digest"]["sha256"]) for one in said["subject"]]
            suite = said["predicate"]["suite"]
            same = said["predicateType"] == TEST_RESULT and suite["asked"] == asked
            return suite["ended"] if same and of == [(FILES, self.content(artifact))] else None
        except (FileNotFoundError, Forged, ValueError, LookupError, TypeError):
            return None

    def files(self, artifact: str) -> Iterator[Path]:
        """Everything that is said of it, for the object store."""
        yield from sorted((self._artifacts / artifact / FOLDER).glob("*"))


def _refused(artifact: str, what: str) -> Refused:
    return Refused(
        f"artifact {artifact} {what}; nothing was started, what served serves. Remove it, then "
        "release again and it is built anew: dafnck discard " + artifact
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ""  # something lies there; it has no digest that was signed


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
