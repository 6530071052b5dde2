"""What the pods of a release run and write, as the cluster's nodes say."""

from collections.abc import Iterator

from blocks.container import Logged
from blocks.kube_api import PODS, KubeApi
from policy.errors import NotAllowed, Unreachable
from policy.kube_names import CONTAINER, RELEASE, release_labels
from policy.provenance import Link
from policy.release import Release


def inspect_pods(api: KubeApi, namespace: str, release: Release) -> Iterator[Link]:
    """The image that it was made from, then each pod."""
    digest = release.image.rpartition("@")[2]
    if not digest:
        yield Link("image", False, "its release names no image")
        return
    yield Link("image", True, release.image)
    try:
        pods = api.list(PODS, namespace, release_labels(release))
    except (Unreachable, NotAllowed) as error:
        yield Link("pods", None, str(error).splitlines()[0])
        return
    for pod in pods:
        name = pod["metadata"]["name"]
        wanted = {one["name"]: one["image"] for one in pod["spec"]["containers"]}
        if wanted.get(CONTAINER) != release.image:
            yield Link(name, False, f"is to run {wanted.get(CONTAINER)}, not {release.image}")
            continue
        statuses = pod.get("status", {}).get("containerStatuses", [])
        runs = next((one.get("imageID", "") for one in statuses if one["name"] == CONTAINER), "")
        if not runs:
            yield Link(name, None, "does not run yet")
        elif "@" in runs and not runs.endswith(digest):
            # A node may name an image of several platforms by the digest of its own.
            yield Link(name, None, f"asked for by {digest}; its node names it {runs}")
        else:
            yield Link(name, True, f"runs {runs}")
    if not pods:
        yield Link("pods", None, "none is wanted")


def logged_by_pods(
    api: KubeApi, namespace: str, release_id: str, lines: int, after: str = ""
) -> Iterator[Logged]:
    """The last lines of each pod, or those that are later than `after`."""
    for pod in api.list(PODS, namespace, {RELEASE: release_id}):
        name = pod["metadata"]["name"]
        for line in api.log(namespace, name, lines=lines).splitlines():
            at, _, words = line.partition(" ")
            if at > after:
                yield Logged(name, at, words)
