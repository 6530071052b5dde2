import re
from typing import Any

import pytest

from policy.http_route import (
    conditions_of,
    hostnames,
    in_words,
    is_served,
    kept,
    refusal,
    rules_of,
    weights_of,
)
from policy.release import MatchRules

PARENT = {"namespace": "infra", "name": "web"}


def state(shares: dict[str, int], rules: MatchRules | None = None, **hosts: str) -> dict[str, Any]:
    backends = hosts or {"old": "shop.test", "new": "shop.test"}
    return {"backends": backends, "shares": shares, "rules": rules and kept(rules)}


def backends(rule: dict[str, Any]) -> dict[str, int]:
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}


def test_weights_are_shares_and_the_others_are_there_without_one() -> None:
    [main] = rules_of(state({"new": 10, "old": 90}, old="a", new="a", third="a"))
    assert backends(main) == {"new": 10, "old": 90, "third": 0}
    assert {one["port"] for one in main["backendRefs"]} == {80}


def test_without_shares_nothing_serves() -> None:
    [main] = rules_of(state({}))
    assert "backendRefs" not in main


def test_those_with_a_share_come_first_and_sixteen_are_the_most() -> None:
    many = {f"r-{n}": "shop.test" for n in range(20)}
    [main] = rules_of({"backends": many, "shares": {"r-18": 90, "r-19": 10}, "rules": None})
    assert len(main["backendRefs"]) == 16
    assert backends(main)["r-18"] == 90
    assert backends(main)["r-19"] == 10


def test_preview_and_cohort_come_before_all_others() -> None:
    rules = MatchRules(
        preview={"X-Preview": "yes"},
        release_id="new",
        cohort_header=("X-Staff", "1"),
        cohort_cookie=("beta", "y"),
        cohort_on=True,
    )
    preview, header, cookie, main = rules_of(state({"old": 100}, rules))
    assert [backends(rule) for rule in (preview, header, cookie)] == [{"new": 1}] * 3
    assert backends(main) == {"old": 100, "new": 0}
    assert preview["matches"][0]["headers"] == [
        {"type": "Exact", "name": "X-Preview", "value": "yes"}
    ]
    assert header["matches"][0]["headers"][0]["value"] == "1"
    assert cookie["matches"][0]["headers"][0]["type"] == "RegularExpression"
    assert all("headers" not in match for match in main["matches"])


def test_a_cohort_that_is_off_or_a_release_that_is_gone_has_no_rule() -> None:
    off = MatchRules(preview={"X": "1"}, release_id="new", cohort_header=("X-Staff", "1"))
    assert len(rules_of(state({"old": 100}, off))) == 2
    gone = MatchRules(preview={"X": "1"}, release_id="gone")
    assert len(rules_of(state({"old": 100}, gone))) == 1


@pytest.mark.parametrize("looks", [re.search, re.fullmatch])
def test_a_cookie_is_found_among_others(looks: Any) -> None:
    rules = MatchRules(preview={}, release_id="new", cohort_cookie=("be.ta", "y-1"), cohort_on=True)
    pattern = rules_of(state({"old": 100}, rules))[0]["matches"][0]["headers"][0]["value"]
    for cookies in ("be.ta=y-1", "a=1; be.ta=y-1", "be.ta=y-1; a=1", "a=1;be.ta=y-1;b=2"):
        assert looks(pattern, cookies), cookies
    for cookies in ("be.ta=y-12", "xbe.ta=y-1", "beXta=y-1", "a=be.ta=y-1"):
        assert not looks(pattern, cookies), cookies


def test_both_hosts_are_served_while_two_releases_share() -> None:
    hosts = {"old": "old.test", "new": "new.test"}
    assert hostnames(state({"old": 100}, **hosts)) == ["old.test"]
    assert hostnames(state({"old": 90, "new": 10}, **hosts)) == ["old.test", "new.test"]
    preview = MatchRules(preview={"X": "1"}, release_id="new")
    assert hostnames(state({"old": 100}, preview, **hosts)) == ["old.test", "new.test"]
    assert hostnames(state({}, **hosts)) == ["old.test", "new.test"]  # never none at all


def test_weights_are_read_from_whoever_wrote_them() -> None:
    rules = MatchRules(preview={"X": "1"}, release_id="new")
    made = rules_of(state({"old": 70, "new": 30}, rules))
    assert weights_of({"spec": {"rules": made}}) == {"old": 70, "new": 30}
    by_hand = {"backendRefs": [{"name": "old"}]}  # the API's own defaults
    assert weights_of({"spec": {"rules": [by_hand]}}) == {"old": 1}
    assert weights_of({"spec": {}}) == {}


def told(generation: int, accepted: str = "True", resolved: str = "True", **parent: str) -> Any:
    conditions = [
        {
            "type": name,
            "status": status,
            "reason": "Why",
            "message": f"of {name}",
            "observedGeneration": generation,
        }
        for name, status in (("Accepted", accepted), ("ResolvedRefs", resolved))
    ]
    return {"parentRef": {**PARENT, **parent}, "conditions": conditions}


def conditions(*parents: Any, generation: int = 3, **parent: str) -> dict[str, Any]:
    route = {"status": {"parents": list(parents)}}
    return conditions_of(route, {**PARENT, **parent}, generation, "shop")


def test_only_what_is_said_of_this_generation_at_this_parent_counts() -> None:
    assert is_served(conditions(told(3)))
    assert is_served(conditions(told(4)))
    assert not conditions(told(2))
    assert not conditions()
    assert not conditions(told(3, name="other"))
    assert not conditions(told(3, sectionName="http"))
    assert is_served(conditions(told(3, sectionName="http"), sectionName="http"))
    assert not conditions_of({}, PARENT, 1, "shop")


def test_a_parent_without_namespace_is_in_that_of_the_route() -> None:
    entry = told(3)
    del entry["parentRef"]["namespace"]
    assert not conditions(entry)
    assert is_served(conditions(entry, namespace="shop"))


def test_of_two_controllers_that_which_serves_it_counts() -> None:
    assert is_served(conditions(told(3, accepted="False"), told(3)))
    refused = conditions(told(3, accepted="False"))
    assert not is_served(refused)
    assert in_words(refused) == "Accepted is False: Why of Accepted"


def test_stickiness_is_refused_by_name() -> None:
    assert "rollout.sticky" in (refusal(MatchRules(preview={}, sticky=True)) or "")
    assert refusal(MatchRules(preview={"X": "1"})) is None
