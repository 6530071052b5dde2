"""Waivers let through what they name and nothing else; the severest comes first."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policy.findings import (
    Finding,
    Severity,
    Waiver,
    severity,
    waive,
)
from policy.priority import by_priority, in_short, with_priority

TODAY = date(2026, 11, 24)


def found(name: str, package: str = "jinja2", **others: object) -> Finding:
    given = {"severity": Severity.HIGH, "title": "", "target": "requirements.txt"} | others
    return Finding("trivy", "vulnerability", name, package=package, **given)  # type: ignore[arg-type]


def waiver(name: str, package: str = "jinja2", expires: date = TODAY) -> Waiver:
    return Waiver(
        id=name, package=package, reason="templates are our own", owner="anna", expires=expires
    )


def test_a_waiver_lets_exactly_one_through() -> None:
    findings = [found("CVE-1"), found("CVE-1", "other"), found("CVE-2")]
    waived = waive(findings, [waiver("CVE-1")], TODAY)
    assert waived.open == (findings[1], findings[2])
    assert [finding for finding, _ in waived.waived] == [findings[0]]
    assert waived.expired == waived.unused == ()


def test_package_names_are_written_in_more_than_one_way() -> None:
    assert waive([found("CVE-1", "Jinja2")], [waiver("CVE-1")], TODAY).open == ()


def test_a_finding_without_a_package_is_waived_by_its_file() -> None:
    key = Finding("trivy", "secret", "aws-key", Severity.CRITICAL, "", "settings.py")
    assert waive([key], [waiver("aws-key", "settings.py")], TODAY).open == ()
    assert waive([key], [waiver("aws-key", "other.py")], TODAY).open == (key,)


def test_a_waiver_holds_to_the_end_of_its_last_day() -> None:
    finding = found("CVE-1")
    assert waive([finding], [waiver("CVE-1", expires=TODAY)], TODAY).open == ()
    late = waive([finding], [waiver("CVE-1", expires=TODAY)], TODAY + timedelta(days=1))
    assert late.open == (finding,)
    assert [w.id for w in late.expired] == ["CVE-1"]


def test_one_that_names_nothing_is_told() -> None:
    waived = waive([found("CVE-1")], [waiver("CVE-1"), waiver("CVE-9")], TODAY)
    assert [w.id for w in waived.unused] == ["CVE-9"]


@pytest.mark.parametrize("left_out", ["id", "package", "reason", "owner", "expires"])
def test_every_word_of_a_waiver_is_required(left_out: str) -> None:
    words = waiver("CVE-1").model_dump()
    del words[left_out]
    with pytest.raises(ValidationError, match=left_out):
        Waiver(**words)
    if left_out != "expires":
        with pytest.raises(ValidationError, match=left_out):
            Waiver(**words, **{left_out: "   "})


names = st.sampled_from(["CVE-1", "CVE-2", "CVE-3"])
packages = st.sampled_from(["a", "b"])
days = st.integers(-3, 3).map(lambda n: TODAY + timedelta(days=n))


@given(
    st.lists(st.builds(found, names, packages)),
    st.lists(st.builds(waiver, names, packages, days)),
)
def test_nothing_is_lost_and_nothing_passes_unwaived(
    findings: list[Finding], waivers: list[Waiver]
) -> None:
    waived = waive(findings, waivers, TODAY)
    assert sorted([*waived.open, *(f for f, _ in waived.waived)], key=str) == sorted(
        findings, key=str
    )
    for finding, by in waived.waived:
        assert by.covers(finding)
        assert by.expires >= TODAY
    for finding in waived.open:
        assert not any(w.covers(finding) and w.expires >= TODAY for w in waivers)


def test_what_is_exploited_comes_first_then_the_severest_the_likeliest_what_can_be_mended() -> None:
    findings = [
        found("CVE-8", severity=Severity.LOW, kev=True),
        found("CVE-7", epss=0.5),
        found("CVE-6", epss=0.9),
        found("CVE-4"),
        found("CVE-3"),
        found("CVE-5", severity=Severity.LOW, fixed="2"),
        found("CVE-2", fixed="2"),
        found("CVE-1", severity=Severity.CRITICAL),
    ]
    order = [finding.id for finding in by_priority(findings)]
    assert order == [f"CVE-{n}" for n in (8, 1, 6, 7, 2, 3, 4, 5)]


def test_a_finding_in_short() -> None:
    short = in_short(found("CVE-1", kev=True, epss=0.94321, fixed="2.10.1"))
    assert short == "CVE-1 jinja2 (high, exploited, EPSS 94.3%, mended in 2.10.1)"


def test_snapshots_mark_what_they_name_and_nothing_else() -> None:
    one, two = with_priority([found("CVE-1"), found("CVE-2")], {"CVE-1": 0.5}, {"CVE-2"})
    assert (one.epss, one.kev) == (0.5, False)
    assert (two.epss, two.kev) == (None, True)


def test_severities_are_read_in_any_case() -> None:
    assert severity("High") is severity("HIGH") is Severity.HIGH
    with pytest.raises(ValueError, match="low, medium, high or critical"):
        severity("terrible")
