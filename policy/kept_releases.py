"""Which releases stay on disk.

Never drops the stable release, one that runs or has traffic, or the last one that was good.
"""

from collections.abc import Collection, Mapping, Sequence


def split(
    releases: Sequence[str],
    *,
    good: Collection[str],
    in_use: Collection[str],
    keep: int,
    origins: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """-> (keep, drop). `releases`: ids, newest first. `good`: those that were promoted once; the
    `keep` newest of them that are not in use stay for instant rollback. As many of the others stay
    so that their logs can be read. The rest goes. `origins`: renewal -> what it renews. Of those
    that are the same but for their secrets the newest stays, and beside one that is in use the one
    before it, for its secrets; that is none of the `keep`."""
    origin_of = origins or {}
    kept, dropped = [], []
    old: dict[bool, set[str]] = {True: set(), False: set()}
    same = {origin_of.get(release, release) for release in in_use} if origins else set()
    before: set[str] = set()
    for release in releases:
        origin, others = origin_of.get(release, release), old[release in good]
        if release in in_use:
            kept.append(release)
        elif release in good and origin in same - before:
            before.add(origin)
            kept.append(release)
        elif origin not in same and len(others) < keep and origin not in others:
            others.add(origin)
            kept.append(release)
        else:
            dropped.append(release)
    return kept, dropped
