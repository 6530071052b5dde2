"""The end of a flow as Prefect shows it; whoever waits for it reads the exit code from its name."""

from typing import Any

from prefect import State
from prefect.states import Failed

from policy.errors import DafnckError, Refused, RolledBack, state_name
from policy.release import Phase, RolloutRecord


def failed(error: DafnckError) -> State[Any]:
    return Failed(message=str(error), name=state_name(error))


def not_promoted(rollout: RolloutRecord) -> State[Any]:
    words = f"{rollout.phase}: {rollout.reason}"
    back = rollout.phase is Phase.ROLLED_BACK
    return failed(RolledBack(words) if back else Refused(words))
