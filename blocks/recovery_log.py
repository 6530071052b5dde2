"""What the log of a server that did not recover says, in words of what to do next."""

import re

from policy.errors import BadInput, DafnckError, Damaged, NotApplied, Refused

_LAST = re.compile(r"last completed transaction was at log time (.+)")
_LEVEL = re.compile(r".*?\b(?:FATAL|PANIC|ERROR):\s+(.*)")


def why(log: str, trouble: DafnckError | None, target: str) -> DafnckError:
    """`trouble`: why a file of the log could not be given to it; `target`: what it was to reach."""
    if trouble is not None:
        return trouble
    if "recovery ended before configured recovery target was reached" in log:
        last = _LAST.findall(log)
        reached = f"; the last transaction in it was at {last[-1]}" if last else ""
        return Refused(
            f"the log in the archive ends before {target}{reached}. Nothing was recovered. Name an "
            "earlier target, or none to recover all that was archived"
        )
    if "before consistent recovery point" in log:
        return BadInput(
            f"{target} is before the end of the backup, which cannot be opened then; nothing was "
            "recovered. Take an older backup, or name a later target"
        )
    if "WAL ends before" in log:
        return Damaged(
            "the log in the archive ends before the end of the backup: the copy cannot be opened. "
            "Take another backup"
        )
    said = [match[1] for line in log.splitlines() if (match := _LEVEL.fullmatch(line))]
    return NotApplied(
        f"the restored server did not recover to {target}; it said: "
        + (" / ".join(said[-3:])[-600:] or "nothing")
    )
