"""A Prefect server somewhere else, as a CI job sees it: start a run once, follow it, cancel it.

Address and credentials come from the environment alone, and no message holds a credential."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from blocks.prefect_api import PrefectApi, patiently
from policy.errors import BadInput, Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RemotePrefect(PrefectApi):
    away_hint = "is PREFECT_API_URL right, and does this machine reach it?"
    login_hint = "set PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) to what this server asks for"
    unknown_hint = "see the deployments in Prefect's UI"

    def link(self, flow_run_id: str) -> str:
        """Where people see this run."""
        if ui := os.environ.get("PREFECT_UI_URL"):
            return f"{ui.rstrip('/')}/runs/flow-run/{flow_run_id}"
        page = self.url.removesuffix("/api")
        if "/accounts/" in page:  # Prefect Cloud
            page = page.replace("://api.", "://app.").replace("/api/accounts/", "/account/")
            page = page.replace("/workspaces/", "/workspace/")
        return f"{page}/runs/flow-run/{flow_run_id}"

    def deployment(self, flow: str, name: str) -> dict[str, Any]:
        """Raises BadInput, naming those that are there."""
        try:
            return dict(self._patiently("GET", f"/deployments/name/{flow}/{name}"))
        except Refused as error:
            if type(error) is not Refused:
                raise  # our credentials
        same = {"flows": {"name": {"any_": [flow]}}}
        try:
            found = self._patiently("POST", "/deployments/filter", same)
        except Refused:
            raise self._no_api() from None
        there = [f"{flow}/{deployment['name']}" for deployment in found]
        raise BadInput(
            f"Prefect's API at {self.url} has no deployment {flow}/{name}; "
            + (f"there is {', '.join(sorted(there))}" if there else f"none of a flow {flow}")
            + "; nothing was started"
        )

    def runs(self, deployment_id: str, tags: list[str]) -> list[dict[str, Any]]:
        """The newest runs of this deployment that have all these tags, newest first."""
        wanted = {
            "flow_runs": {"tags": {"all_": tags}, "deployment_id": {"any_": [deployment_id]}},
            "sort": "EXPECTED_START_TIME_DESC",
        }
        return list(self._patiently("POST", "/flow_runs/filter", wanted))

    def completed_since(self, flows: list[str], words: str, since: str) -> list[dict[str, Any]]:
        """Runs of these flows whose names hold these words, newest first."""
        wanted = {
            "flows": {"name": {"any_": flows}},
            "flow_runs": {
                "name": {"like_": words},
                "state": {"type": {"any_": ["COMPLETED"]}},
                "start_time": {"after_": since},
            },
            "sort": "START_TIME_DESC",
        }
        return list(self._patiently("POST", "/flow_runs/filter", wanted))

    @patiently
    def create_run(self, deployment_id: str, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """-> (the run, is it new). One with this `idempotency_key` is found, not made again: so a
        second try after a lost answer finds what the first one made."""
        answer = self._asked("POST", f"/deployments/{deployment_id}/create_flow_run", body)
        return dict(answer.json()), answer.status_code == 201

    def run(self, flow_run_id: str) -> dict[str, Any]:
        return dict(self._call("GET", f"/flow_runs/{flow_run_id}"))

    def states(self, flow_run_id: str) -> list[dict[str, Any]]:
        """All that it was in, by their time."""
        found = self._call("GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
        return sorted(found, key=lambda state: str(state["timestamp"]))

    def logs(self, flow_run_id: str, after: str | None, offset: int) -> list[dict[str, Any]]:
        """One page of its lines by their time, from the time `after` on, that included."""
        wanted: dict[str, Any] = {"flow_run_id": {"any_": [flow_run_id]}}
        if after is not None:
            wanted["timestamp"] = {"after_": after}
        body = {"logs": wanted, "sort": "TIMESTAMP_ASC", "offset": offset}
        return list(self._call("POST", "/logs/filter", body))

    def task_names(self, task_run_ids: list[str]) -> dict[str, str]:
        """Those of them that the server knows by now."""
        found = self._call(
            "POST", "/task_runs/filter", {"task_runs": {"id": {"any_": task_run_ids}}}
        )
        return {str(run["id"]): str(run["name"]) for run in found}

    def waits_for(self, pool: str | None) -> str:
        """Why nobody takes a run up, as far as the work pool tells."""
        if pool is None:
            return "its deployment has no work pool: does the process that serves it run?"
        if self._call("GET", f"/work_pools/{pool}").get("is_paused"):
            return f"the work pool {pool} is paused: resume it in Prefect's UI"
        workers = self._call("POST", f"/work_pools/{pool}/workers/filter", {})
        online = sum(worker.get("status") == "ONLINE" for worker in workers)
        if not online:
            return f"no worker polls the work pool {pool}: start one where dafnck is installed"
        return (
            f"{online} worker(s) poll the work pool {pool}: its limit or that of its queue or "
            "deployment may be reached, or the worker cannot start processes: see its log"
        )


def remote_prefect(environment: Mapping[str, str]) -> RemotePrefect:
    """As PREFECT_API_URL, PREFECT_API_AUTH_STRING and PREFECT_API_KEY say. Raises BadInput."""
    url = environment.get("PREFECT_API_URL", "").strip()
    if not url:
        raise BadInput(
            "PREFECT_API_URL is not set: which Prefect server? https://prefect.example.com/api"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise BadInput("PREFECT_API_URL is no http or https URL")
    if "@" in parts.netloc:
        raise BadInput(
            "PREFECT_API_URL holds credentials, which messages and links would show; "
            "put them into PREFECT_API_AUTH_STRING"
        )
    auth, key = (_secret(environment, f"PREFECT_API_{n}") for n in ("AUTH_STRING", "KEY"))
    # A proxy of the CI cannot reach what listens on this machine alone.
    outside = host not in LOOPBACK
    try:
        return RemotePrefect(url, auth, 15.0, key=key if not auth else None, trust_env=outside)
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(
            f"the connection cannot be set up ({type(error).__name__}): see HTTPS_PROXY, "
            "HTTP_PROXY, NO_PROXY and SSL_CERT_FILE"
        ) from None


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    value = environment.get(name, "").strip()
    if not value.isprintable():
        raise BadInput(f"{name} holds characters that no credential has; it is not shown here")
    if name.endswith("KEY") and not value.isascii():
        raise BadInput(f"{name} holds characters that no key has; it is not shown here")
    return value or None
