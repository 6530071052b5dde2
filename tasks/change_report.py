"""What a change of several services did, for people: a row a service, and what is true now."""

from typing import Any

from blocks.ledger import Ledger
from policy.change import ChangeRecord, ChangeVerdict, MemberRecord
from policy.release import Phase, RolloutRecord
from policy.waves import waves


def rows(ledger: Ledger, change: ChangeRecord) -> list[dict[str, Any]]:
    """Of a table, in the order of the waves."""
    members = {member.service: member for member in ledger.members(change.id)}
    rollouts = ledger.rollouts_of_change(change.id)
    serving = {s: r for s, e, r, _ in ledger.stables() if e == change.environment}
    table = []
    order = waves({name: member.after for name, member in members.items()})
    for number, wave in enumerate(order, 1):
        for service in wave:
            release = _newest(rollouts, service, "release")
            back = _newest(rollouts, service, "rollback")
            table.append(
                {
                    "wave": number,
                    "service": service,
                    "after": ", ".join(members[service].after),
                    "release": (release and release.release_id) or "",
                    "result": _result(members[service], release),
                    "taken back": _taken_back(members[service], back),
                    "serves now": serving.get(service, "nothing"),
                }
            )
    return table


def _newest(rollouts: list[RolloutRecord], service: str, kind: str) -> RolloutRecord | None:
    return next((r for r in rollouts if (r.service, r.kind) == (service, kind)), None)


def _result(member: MemberRecord, release: RolloutRecord | None) -> str:
    if release is None:
        return "not begun" if member.asked_at is None else "asked for"
    return f"{release.phase}: {release.reason}" if release.reason else str(release.phase)


def _taken_back(member: MemberRecord, back: RolloutRecord | None) -> str:
    if member.kept:
        return f"no: {member.kept}"
    if back is None:
        return ""
    return f"to {back.release_id}" if back.phase is Phase.PROMOTED else f"{back.phase}"


def what_is_true(ledger: Ledger, change: ChangeRecord) -> str:
    """Its verdict, and where that is not one for all which service serves what and what to do."""
    head = f"{change.stack} {change.version} {change.verdict}: {change.reason}"
    table = rows(ledger, change)
    if change.verdict == ChangeVerdict.PROMOTED:
        return head
    if change.verdict == ChangeVerdict.ROLLED_BACK:
        kept = [f"{row['service']} stays, {row['taken back'][4:]}" for row in table if _kept(row)]
        return "\n".join([head, *kept])
    lines = [f"  {row['service']} serves {row['serves now']}" for row in table]
    return "\n".join([head, *lines, "To put it right, in this order:", *_commands(ledger, change)])


def _kept(row: dict[str, Any]) -> bool:
    return str(row["taken back"]).startswith("no: ")


def _commands(ledger: Ledger, change: ChangeRecord) -> list[str]:
    """Last one first, as the change itself would have done it."""
    members = {member.service: member for member in ledger.members(change.id)}
    rollouts = ledger.rollouts_of_change(change.id)
    serving = {s: r for s, e, r, _ in ledger.stables() if e == change.environment}
    order = waves({name: member.after for name, member in members.items()})
    lines = []
    for service in reversed([service for wave in order for service in wave]):
        release = _newest(rollouts, service, "release")
        place = f"{service} --env {change.environment}"
        if release is None or release.stable_id is None:
            continue
        if release.phase is Phase.FROZEN:
            lines.append(
                f"  dafnck approve {place}, or dafnck abort {place} --even-unsafe --reason … "
                f"(frozen: {release.reason})"
            )
        elif release.phase is Phase.PROMOTED and serving.get(service) == release.release_id:
            assert release.release_id
            unsafe = ledger.release(release.release_id).migration == "contract"
            flags = " --even-unsafe --reason …" if unsafe else ""
            why = members[service].kept or ""
            lines.append(f"  dafnck rollback {place} --to {release.stable_id}{flags} ({why})")
    return lines
