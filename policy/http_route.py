"""The HTTPRoute of a service: what its rules say, and what a controller says of them.

The state that a router keeps: {"backends": {release id: host}, "shares": {release id: percent},
"rules": what `kept` makes of MatchRules, or None}.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from policy.kube_names import SERVICE_PORT
from policy.release import MatchRules

Object = dict[str, Any]
GROUP = "gateway.networking.k8s.io"
VERSION = f"{GROUP}/v1"
MOST_BACKENDS = MOST_HOSTNAMES = 16  # that the API takes in one rule, in one route
ANY_PATH = {"path": {"type": "PathPrefix", "value": "/"}}


def kept(rules: MatchRules) -> Object:
    """As JSON keeps it."""
    return asdict(rules)


def refusal(rules: MatchRules) -> str | None:
    """Why a route cannot express these rules; None when it can."""
    if rules.sticky:
        return (
            "a Gateway keeps no client on a release (Gateway API has that in its experimental "
            "channel alone): leave rollout.sticky out, or name a cohort"
        )
    return None


def hostnames(state: Object) -> list[str]:
    """A release brings its own host: while two share the traffic, both are served. A route that
    serves nothing keeps all: without any it would answer for every host of the Gateway."""
    backends = state["backends"]
    named = [release for release in state["shares"] if release in backends]
    if (guest := (state["rules"] or {}).get("release_id")) in backends:
        named.append(guest)
    hosts = dict.fromkeys(backends[release] for release in named or backends)
    return list(hosts)[:MOST_HOSTNAMES]


def rules_of(state: Object) -> list[Object]:
    """Preview before cohort before all others: of rules that fit a request the one with more
    header matches counts, of equals the first."""
    backends, shares, rules = state["backends"], state["shares"], state["rules"] or {}
    made = []
    release = rules.get("release_id") or ""
    if release in backends:
        if preview := rules["preview"]:
            made.append(_to(release, *(_header(*pair) for pair in preview.items())))
        if rules["cohort_on"] and (header := rules["cohort_header"]):
            made.append(_to(release, _header(*header)))
        if rules["cohort_on"] and (cookie := rules["cohort_cookie"]):
            # Whether a controller looks for the pattern somewhere or matches the whole value.
            name, value = map(re.escape, cookie)
            pattern = rf"^(.*;\s*)?{name}={value}(\s*;.*)?$"
            made.append(_to(release, _header("Cookie", pattern, "RegularExpression")))
    weights = {release: share for release, share in shares.items() if share}
    main: Object = {"matches": [ANY_PATH]}
    if weights:
        # The others are there without weight, for a gateway that gets to know them beforehand.
        idle = dict.fromkeys(backends, 0)
        found = list((weights | {r: 0 for r in idle if r not in weights}).items())[:MOST_BACKENDS]
        main["backendRefs"] = [_backend(release, weight) for release, weight in found]
    return [*made, main]


def _to(release: str, *matches: Object) -> Object:
    return {"matches": list(matches), "backendRefs": [_backend(release, 1)]}


def _header(name: str, value: str, kind: str = "Exact") -> Object:
    return {**ANY_PATH, "headers": [{"type": kind, "name": name, "value": value}]}


def _backend(release: str, weight: int) -> Object:
    return {"group": "", "kind": "Service", "name": release, "port": SERVICE_PORT, "weight": weight}


def weights_of(route: Object) -> dict[str, int]:
    """Service -> weight for requests that no header sends elsewhere."""
    weights: dict[str, int] = {}
    for rule in route["spec"].get("rules") or []:
        if not all(match.get("headers") for match in rule.get("matches") or [{}]):
            for backend in rule.get("backendRefs") or []:
                weights[backend["name"]] = backend.get("weight", 1)
    return weights


def conditions_of(
    route: Object, parent: Mapping[str, str], generation: int, namespace: str
) -> dict[str, Object]:
    """What a controller says of this generation of the route, or a later one, at this parent:
    {"Accepted": condition, "ResolvedRefs": condition}; empty until it says both. Of several
    controllers that which serves it."""
    found: dict[str, Object] = {}
    for entry in (route.get("status") or {}).get("parents") or []:
        named = {"namespace": namespace, **entry["parentRef"]}
        if any(named.get(key) != parent.get(key) for key in ("namespace", "name", "sectionName")):
            continue
        told = {
            one["type"]: one
            for one in entry.get("conditions") or []
            if one["type"] in ("Accepted", "ResolvedRefs")
            and one.get("observedGeneration", 0) >= generation
        }
        if len(told) == 2 and (not found or is_served(told)):
            found = told
    return found


def is_served(conditions: Mapping[str, Object]) -> bool:
    return bool(conditions) and all(one["status"] == "True" for one in conditions.values())


def in_words(conditions: Mapping[str, Object]) -> str:
    """What a controller has against the route, in its own words."""
    return "; ".join(
        f"{name} is {one['status']}: {one.get('reason')} {one.get('message') or ''}".rstrip()
        for name, one in conditions.items()
        if one["status"] != "True"
    )
