"""Where the local stack lives and listens: one folder and a few loopback ports."""

import os
import socket
from pathlib import Path
from zlib import crc32

from pydantic import BaseModel, Field

from blocks.files import write_atomically
from policy.errors import BadInput, Unreachable

LEDGER_URL = "secrets/ledger-url"


class Ports(BaseModel):
    web: int = 8080
    router_api: int = 8081
    prefect: int = 4200
    services: list[int] = []  # of the router, each for one service alone


class Stack(BaseModel):
    """The stack of one home folder."""

    home: Path
    ports: Ports
    ledger_url: str = Field(repr=False)

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
    def prefect_api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.prefect}/api"

    @property
    def router_api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.router_api}"

    def save(self) -> None:
        write_atomically(self.home / "stack.json", self.ports.model_dump_json(indent=2) + "\n")
        # May hold a password.
        write_atomically(self.home / LEDGER_URL, self.ledger_url + "\n", 0o600)


def stack_home() -> Path:
    """$DAFNCK_HOME, or ~/.dafnck."""
    return Path(os.environ.get("DAFNCK_HOME") or "~/.dafnck").expanduser().absolute()


def stack_at(home: Path, ports: Ports) -> Stack:
    """The ledger: $DAFNCK_LEDGER_URL, or what `up` was last told, or a SQLite file in the home."""
    remembered = home / LEDGER_URL
    url = os.environ.get("DAFNCK_LEDGER_URL")
    if not url:
        url = remembered.read_text().strip() if remembered.exists() else str(home / "ledger.db")
    return Stack(home=home, ports=ports, ledger_url=url)


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
