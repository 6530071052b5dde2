"""What can go wrong, by what the person can do about it.

Every message says what happened, what is true now and what to do next.
The exit code is the one that the `dafnck` command ends with.
"""


class DafnckError(Exception):
    exit_code = 3


class BadInput(DafnckError):
    """Something that a person wrote cannot be meant: nothing was changed."""

    exit_code = 2


class Refused(DafnckError):
    """The request is understood and declined; what served before still serves."""

    exit_code = 1


class NotAllowed(Refused):
    """A part refuses our credentials: what it knows cannot be told."""


class RolledBack(DafnckError):
    """The new release did not stay; the stable one has all traffic again."""

    exit_code = 1


class Frozen(DafnckError):
    """The rollout stands still at its share; a person decides which way it goes on."""

    exit_code = 1


class Inconsistent(DafnckError):
    """Of a change of several services some serve the new release and some the old one."""


class NotApplied(DafnckError):
    """A write to the outside world did not read back as it was written."""


class Damaged(DafnckError):
    """What was read from a store is not what was written there, or the key does not open it."""

    exit_code = 1


class Unreachable(DafnckError):
    """A part that is needed (router, supervisor, ledger, Prefect's API) does not answer."""


class LeaseLost(DafnckError):
    """Another process took over this rollout: this one must not act any more."""


def state_name(error: DafnckError) -> str:
    """Name of the Prefect state that a flow ends in by this error; `exit_code_of` reads it."""
    if isinstance(error, RolledBack):
        return "RolledBack"
    return {1: "Refused", 2: "BadInput"}.get(error.exit_code, "Failed")


def exit_code_of(kind: str, name: str) -> int:
    """Exit code for a flow run that ended in a state of this type and name."""
    if kind == "COMPLETED":
        return 0
    if kind == "CANCELLED":
        return 1
    named = {"Refused": 1, "RolledBack": 1, "Cancelled": 1, "BadInput": 2}
    return named.get(name, 3) if kind == "FAILED" else 3
