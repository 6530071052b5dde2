"""Whether a change of several services may begin at all: all of it is looked at, before any of it
begins. Refusals only: nothing here changes anything."""

from typing import Any

from blocks.ledger import Ledger
from blocks.stack import Stack
from policy.errors import Refused
from tasks.frozen import none_frozen, outside_freeze
from tasks.read_stack import WantedStack
from tasks.site import site_of_file


def may_begin(
    stack: Stack, ledger: Ledger, wanted: WantedStack, now: float, parameters: dict[str, Any]
) -> None:
    """Raises BadInput for a host or port that one of them cannot have; Refused in a freeze window
    of one, while a rollout of one waits frozen, and while somebody else changes one."""
    environment = wanted.environment
    taken = {
        member.service: change
        for change in ledger.unfinished_changes()
        if change.environment == environment and change.stack != wanted.stack.stack
        for member in ledger.members(change.id)
    }
    for name, (file, service) in wanted.services.items():
        site = site_of_file(stack, ledger, service, environment, file)
        outside_freeze(service.rollout, str(site), now, parameters["freeze_override"])
        none_frozen(site)
        if lease := ledger.lease(name, environment):
            raise Refused(
                f"{name} in {environment} is being changed by {lease.holder}; nothing was touched. "
                f"Wait for it, or end it: dafnck abort {name} --env {environment}"
            )
        if other := taken.get(name):
            raise Refused(
                f"{name} in {environment} is part of the change {other.stack} {other.version}, "
                "which is not over; nothing was touched"
            )
