"""Where the local stack lives and listens: one folder and a few loopback ports."""

import os
import socket
from pathlib import Path
from zlib import crc32

from pydantic import BaseModel, Field

from blocks.files import write_atomically
from policy.errors import BadInput, Unreachable

LEDGER_URL = "secrets/ledger-url"
STORE_URL = "secrets/object-store-url"


class Ports(BaseModel):
    web: int = 8080
    router_api: int = 8081
    prefect: int = 4200
    services: list[int] = []  # of the router, each for one service alone
    object_store: int = 8333  # S3
    store_parts: list[int] = []  # between the parts of the object store; chosen by `up`


class Stack(BaseModel):
    """The stack of one home folder."""

    home: Path
    ports: Ports
    ledger_url: str = Field(repr=False)
    store_url: str | None = None  # of an object store; default: the stack's own

    @property
    def dynamic(self) -> Path:
        return self.home / "traefik" / "dynamic"

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def scratch(self) -> Path:
        """Beside the artifacts, for what lives no longer than its use."""
        return self.home / "scratch"

    @property
    def evidence(self) -> Path:
        return self.home / "evidence"

    @property
    def scan_cache(self) -> Path:
        """Where Trivy's database lies."""
        return self.home / "trivy"

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def supervisor(self) -> Path:
        return self.home / "supervisor"

    @property
    def supervisor_socket(self) -> Path:
        """Unix sockets have short names (108 bytes): a deep home gets one under /tmp, by that name:
        every process must find it, whatever its TMPDIR."""
        inside = self.supervisor / "rpc.sock"
        if len(str(inside)) < 90:
            return inside
        name = f"dafnck-{os.getuid()}-{crc32(str(self.home).encode())}"
        return Path("/tmp") / name / "rpc.sock"  # noqa: S108

    @property
    def prefect_auth_file(self) -> Path:
        return self.home / "secrets" / "prefect-auth"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def values(self) -> Path:
        """Secrets of services, sealed; the keys that open them are in `secrets`."""
        return self.home / "values"

    @property
    def keys(self) -> Path:
        """Public keys whose signatures count."""
        return self.home / "keys"

    @property
    def checkouts(self) -> Path:
        return self.home / "checkouts"

    @property
    def store_credentials(self) -> Path:
        """Of the stack's own object store, in the form that SeaweedFS reads."""
        return self.secrets / "object-store.json"

    @property
    def prefect_api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.prefect}/api"

    @property
    def router_api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.router_api}"

    def save(self) -> None:
        write_atomically(self.home / "stack.json", self.ports.model_dump_json(indent=2) + "\n")
        # May hold a password.
        write_atomically(self.home / LEDGER_URL, self.ledger_url + "\n", 0o600)
        write_atomically(self.home / STORE_URL, (self.store_url or "") + "\n", 0o600)


def stack_home() -> Path:
    """$DAFNCK_HOME, or ~/.dafnck."""
    return Path(os.environ.get("DAFNCK_HOME") or "~/.dafnck").expanduser().absolute()


def stack_at(home: Path, ports: Ports) -> Stack:
    """The ledger: $DAFNCK_LEDGER_URL, or what `up` was last told, or a SQLite file in the home.
    The object store likewise: $DAFNCK_OBJECT_STORE_URL, where `own` is the stack's own."""
    ledger = _told("DAFNCK_LEDGER_URL", home / LEDGER_URL) or str(home / "ledger.db")
    store = _told("DAFNCK_OBJECT_STORE_URL", home / STORE_URL)
    named = None if store in ("", "own") else store
    return Stack(home=home, ports=ports, ledger_url=ledger, store_url=named)


def _told(name: str, remembered: Path) -> str:
    if url := os.environ.get(name):
        return url
    return remembered.read_text().strip() if remembered.exists() else ""


def open_stack(home: Path | None = None) -> Stack:
    """The stack that was brought up in this home."""
    home = home or stack_home()
    try:
        ports = Ports.model_validate_json((home / "stack.json").read_text())
    except FileNotFoundError:
        raise Unreachable(f"there is no local stack in {home}; start one: dafnck up") from None
    except ValueError as error:
        raise BadInput(f"{home}/stack.json cannot be read ({error}); run dafnck up") from None
    return stack_at(home, ports)


def listens(port: int) -> bool:
    """Does anything accept connections on this loopback port?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
