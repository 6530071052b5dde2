"""How the releases and rollbacks of a change are run: by workers, through Prefect's API."""

import os
from typing import Any, Protocol

from policy.errors import NotAllowed, Refused
from policy.release import TERMINAL
from tasks.reconcile import FlowRuns


def deployment_name() -> str:
    """Of our flows in Prefect: in a cluster they are others than on one machine."""
    return os.environ.get("DAFNCK_DEPLOYMENT") or "local"


class Runs(Protocol):
    def begin(self, flow: str, parameters: dict[str, Any], name: str, key: str) -> str:
        """-> id of the flow run; a second time with the same key it is the same."""
        ...

    def find(self, key: str) -> str | None:
        """The flow run that was begun with this key."""
        ...

    def ended(self, run_id: str) -> str | None:
        """Its last words; None while it may still act."""
        ...

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        """`force`: it is shown as cancelled, whether anybody heard of that or not."""
        ...


class RunsApi(FlowRuns, Protocol):
    """What is needed of Prefect's API."""

    def start(
        self,
        flow: str,
        deployment: str,
        parameters: dict[str, Any],
        name: str,
        key: str | None = None,
    ) -> str: ...
    def run_of_key(self, key: str) -> str | None: ...


class WorkerRuns:
    """Flow runs of the deployments, which workers take up. Raises Unreachable without the API."""

    def __init__(self, api: RunsApi) -> None:
        self._api = api

    def begin(self, flow: str, parameters: dict[str, Any], name: str, key: str) -> str:
        return self._api.start(flow, deployment_name(), parameters, name, key)

    def find(self, key: str) -> str | None:
        return self._api.run_of_key(key)

    def ended(self, run_id: str) -> str | None:
        try:
            state = self._api.state(run_id)
        except NotAllowed:
            raise
        except Refused:
            return "its run was removed from Prefect"
        if state.get("type") not in TERMINAL:
            return None
        return str(state.get("message") or state.get("name"))

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        """One that nobody took up yet never begins."""
        if self.ended(run_id) is not None:
            return
        waits = self._api.state(run_id).get("type") == "SCHEDULED"
        kind = "CANCELLED" if waits or force else "CANCELLING"
        self._api.set_state(run_id, kind, "its change is taken back", force=force)
