"""What `status`, `history` and `logs` show."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from blocks.container import Logged
from blocks.docker_host import DockerHost
from blocks.kube_running import logged_by_pods
from blocks.ledger import Ledger
from blocks.local_processes import tail
from blocks.stack import Stack
from policy.change import ChangeVerdict
from policy.errors import DafnckError, Refused
from policy.kube_names import shared_name
from policy.quantities import in_words
from policy.release import Phase, Release, RolloutRecord
from tasks.clusters import cluster_of
from tasks.site import site_of


def status(stack: Stack, ledger: Ledger) -> list[dict[str, Any]]:
    """One mapping a service and environment; parts that do not answer are named in `unknown`."""
    services = []
    led = [*ledger.frozen(), *ledger.unfinished()]
    unfinished = {(r.service, r.environment): r for r in reversed(led)}  # the newest of each
    stables = {(s, e): (release, since) for s, e, release, since in ledger.stables()}
    changes = _changes(ledger)
    for service, environment in sorted({*stables, *unfinished}):
        release_id, since = stables.get((service, environment), (None, None))
        rollout = unfinished.get((service, environment))
        last = ledger.history(service, environment, limit=1)[0]
        seen: dict[str, Any] = {
            "service": service,
            "environment": environment,
            "release": release_id,
            "version": ledger.release(release_id).version if release_id else None,
            "since": since,
            "last_change": {"phase": last.phase, "version": last.version, "reason": last.reason},
            "unknown": [],
        }
        change = changes.get((service, environment))
        if change and (change["verdict"] is None or last.change_id == change["id"]):
            seen["change"] = change
        named = (release_id, rollout.release_id if rollout else None)
        releases = sorted({name for name in named if name})
        if rollout:
            lease = ledger.lease(service, environment)
            seen["rollout"] = {
                "id": rollout.id,
                "version": rollout.version,
                "phase": rollout.phase,
                "reason": rollout.reason,
                "held_by": lease.holder if lease else None,
            }
        if releases:
            seen |= _live(stack, ledger, releases, seen["unknown"])
        services.append(seen)
    return services


def _changes(ledger: Ledger) -> dict[tuple[str, str], dict[str, Any]]:
    """By service and environment: the last change of several services that it is part of, when
    that is not over or did not end as one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for change in reversed(ledger.last_changes()):  # the newest last
        over = change.verdict not in (None, ChangeVerdict.INCONSISTENT)
        lease = None if change.verdict else ledger.lease(change.service, change.environment)
        about = {
            "id": change.id,
            "stack": change.stack,
            "version": change.version,
            "verdict": change.verdict,
            "trouble": change.trouble,
            "held_by": lease.holder if lease else None,
        }
        for member in ledger.members(change.id):
            place = member.service, change.environment
            found.pop(place, None)
            if not over:
                found[place] = about
    return found


def _live(stack: Stack, ledger: Ledger, ids: list[str], unknown: list[str]) -> dict[str, Any]:
    release = ledger.release(ids[0])
    seen: dict[str, Any] = {"host": release.host, "platform": release.platform}
    if release.kubernetes:
        seen["kubernetes"] = _on_kubernetes(release)
    try:
        platform = site_of(stack, ledger, release.service, release.environment).platform
        seen["url"] = platform.url_of(release)
        seen["shares"] = platform.router.shares()
    except DafnckError as error:
        unknown.append(str(error))
        return seen
    replicas = {}
    for release_id in ids:
        try:
            endpoints = platform.workloads.endpoints(release_id)
        except DafnckError as error:
            unknown.append(str(error))
            break
        replicas[release_id] = {
            "ready": len(endpoints.ready),
            "wanted": endpoints.wanted,
            "trouble": endpoints.trouble,
        }
    return {**seen, "replicas": replicas}


def _on_kubernetes(release: Release) -> dict[str, str | None]:
    """Where the cluster's own service discovery knows it."""
    there, name = release.kubernetes, shared_name(release.service, release.environment)
    assert there is not None
    return {
        "namespace": there.namespace,
        "service": f"{name}.{there.namespace}.svc",
        "gateway": there.gateway,
    }


def _address(seen: dict[str, Any]) -> str:
    if there := seen.get("kubernetes"):
        inside = f"http://{there['service']} inside the cluster"
        if there["gateway"] is None:
            return inside
        return f"http://{seen['host']} by {there['gateway']} ({seen['url']}); {inside}"
    return f"http://{seen['host']}{seen['url'].removeprefix('http://127.0.0.1')}"


def status_text(services: list[dict[str, Any]]) -> str:
    if not services:
        return "nothing was released yet; release something: dafnck release dafnck.yaml"
    blocks = []
    for seen in services:
        since = in_words(round(time.time() - seen["since"])) if seen["since"] else ""
        serves = f"{seen['version']} ({seen['release']}) since {since}" if since else "nothing"
        lines = [f"{seen['service']} in {seen['environment']}: {serves}"]
        if "url" in seen:
            lines.append(f"  {_address(seen)}")
        for release_id, replicas in seen.get("replicas", {}).items():
            share = seen.get("shares", {}).get(release_id, 0)
            trouble = f"  {replicas['trouble']}" if replicas["trouble"] else ""
            ready = f"{replicas['ready']}/{replicas['wanted']} ready"
            lines.append(f"  {share:3d}%  {release_id:30} {ready}{trouble}")
        if change := seen.get("change"):
            lines.append(_change_line(change))
        if rollout := seen.get("rollout"):
            if rollout["phase"] == Phase.FROZEN and not rollout["held_by"]:
                lines += _frozen_lines(seen, rollout)
                blocks.append("\n".join([*lines, *_unknown(seen)]))
                continue
            held = rollout["held_by"] or "nobody: its process died; the guard ends it"
            lines.append(f"  {rollout['phase']}: {rollout['version']}, led by {held}")
        else:
            last = seen["last_change"]
            lines.append(f"  last change: {last['version']} {last['phase']}: {last['reason']}")
        blocks.append("\n".join([*lines, *_unknown(seen)]))
    return "\n".join(blocks)


def _change_line(change: dict[str, Any]) -> str:
    name = f"  part of the change {change['stack']} {change['version']}"
    if change["verdict"]:
        return f"{name}: {change['verdict']}: {change['trouble']}"
    goes = f"goes back: {change['trouble']}" if change["trouble"] else "under way"
    led = change["held_by"] or "nobody: its process died; the guard ends it"
    return f"{name}: {goes}, led by {led}"


def _unknown(seen: dict[str, Any]) -> list[str]:
    return [f"  unknown: {words}" for words in seen["unknown"]]


def _frozen_lines(seen: dict[str, Any], rollout: dict[str, Any]) -> list[str]:
    place = f"{seen['service']} --env {seen['environment']}"
    return [
        f"  frozen: {rollout['version']}: {rollout['reason']}",
        f"  decide: dafnck approve {place} (go on), or dafnck abort {place} --even-unsafe --reason",
    ]


def said(rollout: RolloutRecord) -> list[str]:
    """What people took on themselves."""
    lines = []
    if rollout.freeze_override:
        lines.append(
            f"freeze overridden by {rollout.freeze_override_by}: {rollout.freeze_override}"
        )
    if rollout.unsafe_reason:
        lines.append(f"past a contract migration by {rollout.unsafe_by}: {rollout.unsafe_reason}")
    return lines


def history_text(rollouts: list[RolloutRecord]) -> str:
    if not rollouts:
        return "nothing was released yet"
    lines = []
    for r in rollouts:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r.started_at))
        took = in_words(round(r.finished_at - r.started_at)) if r.finished_at else "…"
        what = f"{r.service} {r.version} → {r.environment}"
        release = r.release_id or "-"
        phase = "taken down" if r.kind == "down" and r.phase is Phase.PROMOTED else r.phase
        reason = r.reason.splitlines()[0] if r.reason else ""
        lines.append(f"{r.id:4} {began} {took:>7} {r.kind:8} {what:30} {release:24} {phase}")
        lines += [f"     {reason}"] if reason else []
        lines += [f"     {words}" for words in said(r)]
    return "\n".join(lines)


def logs(stack: Stack, ledger: Ledger, release_id: str, lines: int, follow: bool) -> None:
    if (there := _release(ledger, release_id)) and there.kubernetes:
        api, place = cluster_of(there.kubernetes), there.kubernetes.namespace
        # Polled: a long answer would end with each pod, and new pods would be missed.
        _print_logs(partial(logged_by_pods, api, place), release_id, lines, follow)
        return
    if (containers := DockerHost(stack)).knows(release_id):
        _print_logs(containers.log, release_id, lines, follow)
        return
    files = sorted((stack.logs / release_id).glob("*.log"))
    if not files:
        raise Refused(f"there are no logs of {release_id}")
    at = {}
    for file in files:
        for line in tail(file, lines):
            print(f"{release_id}.{file.stem} | {line}")
        at[file] = file.stat().st_size
    while follow:
        time.sleep(0.3)
        for file in files:
            size = file.stat().st_size
            if size < at[file]:
                at[file] = 0  # rotated
            with file.open("rb") as text:
                text.seek(at[file])
                for raw in text.read(size - at[file]).splitlines():
                    print(f"{release_id}.{file.stem} | {raw.decode(errors='replace')}", flush=True)
            at[file] = size


def _release(ledger: Ledger, release_id: str) -> Release | None:
    try:
        return ledger.release(release_id)
    except Refused:
        return None


def _print_logs(
    log: Callable[..., Iterator[Logged]], release_id: str, lines: int, follow: bool
) -> None:
    last = ""
    for one in log(release_id, lines):
        print(f"{one.name} | {one.text}")
        last = max(last, one.at)
    if not last and not follow:
        raise Refused(f"there are no logs of {release_id}")
    while follow:
        time.sleep(0.3)
        for one in log(release_id, lines, last):
            print(f"{one.name} | {one.text}", flush=True)
            last = max(last, one.at)
