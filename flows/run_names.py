"""What the runs of a flow are called in Prefect."""

from collections.abc import Callable

from prefect.runtime import flow_run


def called(words: str, parameter: str) -> Callable[[], str]:
    """'backup of shop'; 'backup of all' where nothing is named."""

    def name() -> str:
        return f"{words} {flow_run.parameters.get(parameter) or 'all'}"

    return name
