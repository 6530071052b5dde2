"""Which releases stay on disk.

Never drops the stable release, one that runs or has traffic, or the last one that was good.
"""

from collections.abc import Collection, Sequence


def split(
    releases: Sequence[str], *, good: Collection[str], in_use: Collection[str], keep: int
) -> tuple[list[str], list[str]]:
    """-> (keep, drop). `releases`: ids, newest first. `good`: those that were promoted once; the
    `keep` newest of them that are not in use stay for instant rollback. As many of the others stay
    so that their logs can be read. The rest goes."""
    kept, dropped = [], []
    old = {True: 0, False: 0}
    for release in releases:
        is_good = release in good
        if release in in_use:
            kept.append(release)
        elif old[is_good] < keep:
            old[is_good] += 1
            kept.append(release)
        else:
            dropped.append(release)
    return kept, dropped
