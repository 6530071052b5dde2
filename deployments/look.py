"""What `status`, `history` and `logs` show."""

import time
from typing import Any

from blocks.docker_host import DockerHost
from blocks.ledger import Ledger
from blocks.local_processes import tail
from blocks.platforms import local_platform
from blocks.stack import Stack
from policy.errors import NotApplied, Refused, Unreachable
from policy.quantities import in_words
from policy.release import Phase, RolloutRecord


def status(stack: Stack, ledger: Ledger) -> list[dict[str, Any]]:
    """One mapping a service and environment; parts that do not answer are named in `unknown`."""
    services = []
    led = [*ledger.frozen(), *ledger.unfinished()]
    unfinished = {(r.service, r.environment): r for r in reversed(led)}  # the newest of each
    stables = {(s, e): (release, since) for s, e, release, since in ledger.stables()}
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


def _live(stack: Stack, ledger: Ledger, ids: list[str], unknown: list[str]) -> dict[str, Any]:
    release = ledger.release(ids[0])
    platform = local_platform(stack, release.service, release.environment)
    seen: dict[str, Any] = {"url": platform.url_of(release), "host": release.host}
    try:
        seen["shares"] = platform.router.shares()
    except (Unreachable, NotApplied) as error:
        unknown.append(str(error))
    replicas = {}
    for release_id in ids:
        try:
            endpoints = platform.workloads.endpoints(release_id)
        except Unreachable as error:
            unknown.append(str(error))
            break
        replicas[release_id] = {
            "ready": len(endpoints.ready),
            "wanted": endpoints.wanted,
            "trouble": endpoints.trouble,
        }
    return {**seen, "replicas": replicas}


def status_text(services: list[dict[str, Any]]) -> str:
    if not services:
        return "nothing was released yet; release something: dafnck release dafnck.yaml"
    blocks = []
    for seen in services:
        since = in_words(round(time.time() - seen["since"])) if seen["since"] else ""
        serves = f"{seen['version']} ({seen['release']}) since {since}" if since else "nothing"
        lines = [f"{seen['service']} in {seen['environment']}: {serves}"]
        if "host" in seen:
            lines.append(f"  http://{seen['host']}{seen['url'][len('http://127.0.0.1') :]}")
        for release_id, replicas in seen.get("replicas", {}).items():
            share = seen.get("shares", {}).get(release_id, 0)
            trouble = f"  {replicas['trouble']}" if replicas["trouble"] else ""
            ready = f"{replicas['ready']}/{replicas['wanted']} ready"
            lines.append(f"  {share:3d}%  {release_id:30} {ready}{trouble}")
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
        reason = r.reason.splitlines()[0] if r.reason else ""
        lines.append(f"{r.id:4} {began} {took:>7} {r.kind:8} {what:30} {release:24} {r.phase}")
        lines += [f"     {reason}"] if reason else []
        lines += [f"     {words}" for words in said(r)]
    return "\n".join(lines)


def logs(stack: Stack, release_id: str, lines: int, follow: bool) -> None:
    if (containers := DockerHost(stack)).knows(release_id):
        _container_logs(containers, release_id, lines, follow)
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


def _container_logs(containers: DockerHost, release_id: str, lines: int, follow: bool) -> None:
    last = ""
    for one in containers.log(release_id, lines):
        print(f"{one.name} | {one.text}")
        last = max(last, one.at)
    if not last and not follow:
        raise Refused(f"there are no logs of {release_id}")
    while follow:
        time.sleep(0.3)
        for one in containers.log(release_id, lines, last):
            print(f"{one.name} | {one.text}", flush=True)
            last = max(last, one.at)
