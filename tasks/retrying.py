"""Which failures of a task are worth another try: a part that does not answer may be back in a
second; an answer is an answer."""

from typing import Any

from policy.errors import Unreachable


def when_unreachable(_task: Any, _task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`: the task failed with Unreachable."""
    try:
        state.result()
    except Unreachable:
        return True
    except BaseException:  # any other end, a signal among them, stands
        return False
    return False
