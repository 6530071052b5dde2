"""Which requests reach a release whatever its share: preview header, cohort, stickiness."""

from policy.release import MatchRules, Release

PREVIEW_HEADER = "X-Dafnck-Release"


def rollout_rules(release: Release, *, cohort_on: bool) -> MatchRules:
    """While `release` is on its way in. The cohort is on from the first step until 100%."""
    preview, cohort = release.rollout.preview, release.rollout.cohort
    header = cohort.header if cohort else None
    cookie = cohort.cookie if cohort else None
    return MatchRules(
        preview={preview.name: preview.value} if preview else {PREVIEW_HEADER: release.id},
        release_id=release.id,
        cohort_header=(header.name, header.value) if header else None,
        cohort_cookie=(cookie.name, cookie.value) if cookie else None,
        cohort_on=cohort_on,
        sticky=release.rollout.sticky,
    )


def resting_rules(release: Release) -> MatchRules | None:
    """When it serves alone."""
    if not release.rollout.sticky:
        return None
    return MatchRules(preview={}, release_id=release.id, sticky=True)
