"""Prefect's REST API, the few calls that we make; loads no Prefect: commands start fast."""

import os
from typing import Any, Self
from uuid import uuid4

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from blocks.stack import Stack
from policy.errors import NotAllowed, Refused, Unreachable


class Busy(Unreachable):
    """It is there, and may answer when it is asked again."""


patiently = retry(
    retry=retry_if_exception_type(Busy),
    wait=wait_random_exponential(0.2, max=4),
    stop=stop_after_delay(30),
    reraise=True,
)


class PrefectApi:
    """Short time limits. Looking is not retried: callers look again when it is time to. Starting
    is, because a server on SQLite under load answers 503 now and then."""

    # What a person can do about it.
    away_hint = "start it: dafnck up"
    login_hint = "set PREFECT_API_AUTH_STRING, or see secrets/prefect-auth in DAFNCK_HOME"
    unknown_hint = "dafnck up registers the deployments"

    def __init__(
        self,
        url: str,
        auth: str | None,
        timeout_seconds: float = 5.0,
        *,
        key: str | None = None,
        trust_env: bool = False,
    ) -> None:
        """`auth`: user:password of the server's basic authentication. `key`: of Prefect Cloud,
        instead of it. `trust_env`: go through the proxies that the environment names."""
        user, _, password = (auth or "").partition(":")
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            auth=httpx.BasicAuth(user, password) if auth and not key else None,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=timeout_seconds,
            trust_env=trust_env,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def answers(self) -> bool:
        try:
            self._call("GET", "/admin/version")
        except (Unreachable, Refused):
            return False
        return True

    def start(
        self,
        flow: str,
        deployment: str,
        parameters: dict[str, Any],
        name: str,
        key: str | None = None,
    ) -> str:
        """-> id of a new flow run of this deployment, or of the one that has this `key` already."""
        found = self._patiently("GET", f"/deployments/name/{flow}/{deployment}")
        # The key makes a second try find the run that a first one made unseen.
        once = {"idempotency_key": key or uuid4().hex}
        body = {"parameters": parameters, "name": name, "state": {"type": "SCHEDULED"}}
        path = f"/deployments/{found['id']}/create_flow_run"
        return str(self._patiently("POST", path, body | once)["id"])

    def run_of_key(self, key: str) -> str | None:
        """The flow run that was started with this key."""
        wanted = {"flow_runs": {"idempotency_key": {"any_": [key]}}, "limit": 1}
        found = self._call("POST", "/flow_runs/filter", wanted)
        return str(found[0]["id"]) if found else None

    def knows(self, flow: str, deployment: str) -> bool:
        try:
            self._call("GET", f"/deployments/name/{flow}/{deployment}")
        except Refused:
            return False
        return True

    def have_work_pool(self, name: str) -> None:
        try:
            self._patiently("GET", f"/work_pools/{name}")
        except Refused:
            self._patiently("POST", "/work_pools/", {"name": name, "type": "process"})

    def have_pool_of(self, name: str, kind: str, template: dict[str, Any]) -> None:
        """A work pool whose runs are made by this base job template, whatever it was before."""
        try:
            self._patiently("GET", f"/work_pools/{name}")
        except Refused:
            pool = {"name": name, "type": kind, "base_job_template": template}
            self._patiently("POST", "/work_pools/", pool)
        else:
            self._patiently("PATCH", f"/work_pools/{name}", {"base_job_template": template})

    def secret(self, name: str) -> Any:
        """The value of the Secret block of this name; None when there is none."""
        path = f"/block_types/slug/secret/block_documents/name/{name}?include_secrets=true"
        try:
            return self._patiently("GET", path)["data"].get("value")
        except Refused:
            return None

    def state(self, flow_run_id: str) -> dict[str, Any]:
        """type (SCHEDULED, RUNNING, PAUSED, COMPLETED …), name and message."""
        return dict(self._call("GET", f"/flow_runs/{flow_run_id}")["state"] or {})

    def set_state(
        self, flow_run_id: str, kind: str, message: str = "", *, force: bool = False, **details: Any
    ) -> None:
        state = {"type": kind, "name": kind.capitalize(), "state_details": details}
        if message:
            state["message"] = message
        body = {"state": state, "force": force}
        self._call("POST", f"/flow_runs/{flow_run_id}/set_state", body)

    @patiently
    def _patiently(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, path, body)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._asked(method, path, body)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise self._no_api() from None

    def _asked(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            away = isinstance(error, httpx.ConnectError)
            raise (Unreachable if away else Busy)(
                f"Prefect's API at {self.url} does not answer ({error}); {self.away_hint}"
            ) from None
        if answer.status_code in (401, 403):
            raise NotAllowed(
                f"Prefect's API at {self.url} refuses our credentials; {self.login_hint}"
            )
        if answer.status_code == 404:
            raise Refused(f"Prefect's API knows no {path}; {self.unknown_hint}")
        if answer.is_redirect:
            raise self._no_api()
        if answer.is_error:
            busy = answer.status_code == 429 or answer.is_server_error
            raise (Busy if busy else Unreachable)(
                f"Prefect's API answers {answer.status_code}: {answer.text[:300]}"
            )
        return answer

    def _no_api(self) -> Unreachable:
        return Unreachable(
            f"{self.url} answers, but not as Prefect's API does; is that its URL? It ends in /api"
        )


def own_api() -> PrefectApi | None:
    """As the environment says, for code that runs inside a flow; None without a server."""
    url = os.environ.get("PREFECT_API_URL")
    return PrefectApi(url, os.environ.get("PREFECT_API_AUTH_STRING"), 2.0) if url else None


def stack_api(stack: Stack) -> PrefectApi:
    """The server of the local stack, or the one that PREFECT_API_URL names."""
    if named := own_api():
        return named
    auth = None
    if stack.prefect_auth_file.exists():
        auth = stack.prefect_auth_file.read_text().strip()
    return PrefectApi(stack.prefect_api_url, auth)
