"""Tasks try again when a part does not answer, and only then."""

import asyncio

import pytest
from prefect.states import Completed, exception_to_failed_state

from policy.errors import BadInput, NotApplied, Unreachable
from tasks.retrying import when_unreachable


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Unreachable("the router is being restarted"), True),
        (NotApplied("it did not take"), False),
        (BadInput("no"), False),
        (KeyError("a bug"), False),
    ],
)
def test_only_silence_is_tried_again(error: Exception, again: bool) -> None:
    state = asyncio.run(exception_to_failed_state(error))
    assert when_unreachable(None, None, state) is again


def test_success_is_not_tried_again() -> None:
    assert when_unreachable(None, None, Completed(data=1)) is False
