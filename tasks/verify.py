"""The chain from a commit to the replicas that run: every link looked at, none taken on trust."""

import json
from collections.abc import Iterator

from blocks.builder import Builder
from blocks.images import Images
from blocks.ports import ObjectStore
from policy.errors import DafnckError, NotAllowed, Refused, Unreachable
from policy.provenance import SBOM, Link, Statement
from policy.release import Release
from tasks.site import Site


def chain(site: Site, release: Release) -> Iterator[Link]:
    """From the commit on. A link that does not hold ends it: nothing can be said of the rest."""
    try:
        said, key = site.attestations.statement(release.artifact)
    except Refused as why:
        yield Link("signature", False, _first(why))
        return
    yield _source(said)
    details = said.predicate.run_details
    versions = ", ".join(f"{name} {version}" for name, version in details.builder.version.items())
    at = f"{details.metadata.finished_on:%Y-%m-%d %H:%M:%S} UTC"
    run = details.metadata.invocation_id
    by = details.builder.id + (f", run {run}" if run else "")
    yield Link("build", True, f"{at} by {by} ({versions})")
    yield Link("signature", True, f"ed25519, key {key}")
    try:
        site.attestations.verify(release.artifact, release.content or None)
    except Refused as why:
        yield Link("artifact", False, _first(why))
        return
    yield Link("artifact", True, f"{release.artifact}, every file as it was built")
    yield _sbom(site, said, release)
    yield _stored(site, release)
    yield from site.platform.inspect(release)


def fetch_image(builder: Builder, store: ObjectStore, release: Release) -> None:
    """What is known of an image that was built elsewhere, from the object store: each run in a
    cluster has a home of its own. It is believed no more than what lies here: it is verified next.
    What is not there is told by that."""
    if not release.image or not release.content:
        return
    if builder.size_bytes(release.artifact) is not None:
        return
    key = f"artifacts/{release.artifact}/artifact-{release.content[:16]}.tar.gz"
    if (archive := store.get(key)) is not None:
        builder.unpack(release.artifact, archive)


def verify_artifact(site: Site, rollout_id: int, release: Release) -> None:
    """Is what is about to be started what was built and signed? Raises Refused, with what is not.
    For an image also: does its tag still name it? Somebody moved it otherwise, and what people
    think that they release is not what was built."""
    with site.ledger.act(rollout_id, "verify", artifact=release.artifact) as said:
        fetch_image(site.builder, site.store, release)
        statement, key = site.attestations.verify(release.artifact, release.content or None)
        commit = statement.source.digest.get("gitCommit", "no commit")
        said["signed"] = f"by {key[:12]}, of {commit}"
        if image := site.builder.image_of(release.artifact):
            try:
                now = Images(site.builder.scratch).moved(image)
            except (Unreachable, NotAllowed) as error:
                # It is run by its digest, which nobody can move: no reason to keep it from running.
                said["tag"] = f"not looked at: {error}"
                return
            if now:
                raise Refused(
                    f"{image.tag} is another image now, {now}, than {image.digest}, which was "
                    "built; nothing was started, what served serves. Find out who moved the tag, "
                    f"then have it built anew: dafnck discard {release.artifact}"
                )


def _source(said: Statement) -> Link:
    source = said.source
    commit = source.digest.get("gitCommit")
    if commit is None:
        return Link("commit", None, "its source is in no git repository")
    at = source.annotations.get("authoredAt") or "unknown"
    words = f"{commit} of {source.uri or 'a local repository'}, written {at}"
    if source.annotations.get("dirty"):
        return Link("commit", None, f"{words}; but the folder held something else than that")
    return Link("commit", True, words)


def _sbom(site: Site, said: Statement, release: Release) -> Link:
    if said.sha256_of(SBOM) is None:
        return Link("SBOM", None, "none was made: there was no Trivy")
    files = {path.name: path for path in site.attestations.files(release.artifact)}
    components = json.loads(files[SBOM].read_text()).get("components", [])
    return Link("SBOM", True, f"CycloneDX, {len(components)} components")


def _stored(site: Site, release: Release) -> Link:
    """The copies in the object store are the same bytes."""
    name, prefix = "object store", f"artifacts/{release.artifact}/"
    try:
        for path in site.attestations.files(release.artifact):
            there = site.store.get(prefix + path.name)
            if there is None:
                words = f"{site.store} holds no {path.name} of it; the next release stores it"
                return Link(name, None, words)
            if there != path.read_bytes():
                return Link(name, False, f"{site.store} holds another {path.name} of it")
        archive = site.attestations.archive_key(release.artifact)
        size = site.store.sizes(archive).get(archive)
    except (Unreachable, NotAllowed) as error:
        return Link(name, None, _first(error))
    kept = "no archive of it yet" if size is None else f"its archive, {size / 2**20:.1f} MiB"
    return Link(name, True, f"{site.store}: the same, and {kept}")


def _first(error: DafnckError) -> str:
    return str(error).splitlines()[0]
