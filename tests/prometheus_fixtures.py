"""A Prometheus of Debian's, what it scrapes, a server that answers whatever a test wants, and a
Traefik behind a Gateway."""

import base64
import datetime
import ipaddress
import json
import shutil
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from conftest import free_port, wait_for

LOGIN = "reader:open:sesame"  # and what web.yml has of it, made by crypt(3)
BCRYPT = "$2b$04$abcdefghijklmnopqrstuu2GbQLdjwBFdH8CcOE866nGziodmvO8K"


class Server:
    """Answers each request with `answer`, after `wait` seconds. Remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.answer, self.wait = 200, b"", 0.0
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                form = {name: values[0] for name, values in parse_qs(body).items()}
                server.asked.append({"path": self.path, "headers": dict(self.headers), **form})
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(server.answer)))
                self.end_headers()
                half = len(server.answer) // 2
                try:
                    self.wfile.write(server.answer[:half])
                    time.sleep(server.wait)
                    self.wfile.write(server.answer[half:])
                except OSError:
                    self.close_connection = True  # whoever asked did not wait for the rest

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                """Tests look at `asked`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(name="server")
def a_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Exporter(Server):
    """What is scraped: set series, or take them away."""

    def series(self, **values: float) -> None:
        """`{'name{label="x"}': 3}`, spelled as the exposition format has it."""
        self.answer = "".join(f"{name} {value}\n" for name, value in values.items()).encode()


@dataclass
class Prometheus:
    """Scrapes what `SCRAPED` of the test's module names: jobs, and the labels of their targets. It
    would take up to five seconds to take up a new one."""

    folder: Path
    port: int
    ca: Path
    exporters: dict[str, list[Exporter]] = field(default_factory=dict)  # by the label `of`
    free: int = field(default_factory=free_port)  # scraped as job `free`; nothing listens yet

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def configure(self, scraped: dict[str, list[dict[str, str]]]) -> None:
        interval = {"scrape_interval": "250ms", "scrape_timeout": "250ms"}
        jobs = []
        for job, targets in scraped.items():
            ports: list[int] = []
            for number, labels in enumerate(targets):
                exporters = self.exporters.setdefault(labels["of"], [])
                if job != "free" and len(exporters) <= number:
                    exporters.append(Exporter())
                ports.append(self.free if job == "free" else exporters[number].port)
            static = [
                {"targets": [f"127.0.0.1:{port}"], "labels": labels}
                for port, labels in zip(ports, targets, strict=True)
            ]
            jobs.append({"job_name": job, "static_configs": static})
        text = json.dumps({"global": interval, "scrape_configs": jobs})
        (self.folder / "prometheus.yml").write_text(text)

    def get(self, path: str) -> bytes:
        login = base64.b64encode(LOGIN.encode()).decode()
        headers = {"Authorization": f"Basic {login}"}
        asked = urllib.request.Request(self.url + path, headers=headers)
        trusted = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(asked, timeout=5, context=trusted) as answer:
            return bytes(answer.read())

    def scrapes(self) -> bool:
        try:
            answer = self.get("/api/v1/query?query=count(up==1)")
        except OSError:
            return False
        return bool(json.loads(answer)["data"]["result"])


@pytest.fixture(scope="module", name="prometheus")
def a_prometheus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed: RUNLEVEL=1 apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    prometheus = Prometheus(folder, free_port(), certificate(folder))
    prometheus.configure(request.module.SCRAPED)
    user = LOGIN.partition(":")[0]
    tls = {"cert_file": "server.pem", "key_file": "server.key"}
    (folder / "web.yml").write_text(
        json.dumps({"basic_auth_users": {user: BCRYPT}, "tls_server_config": tls})
    )
    command = [
        *("prometheus", "--config.file=prometheus.yml", "--web.config.file=web.yml"),
        *(f"--web.listen-address=127.0.0.1:{prometheus.port}", "--storage.tsdb.path=data"),
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for(prometheus.scrapes, "Prometheus")
        yield prometheus
    finally:
        process.kill()  # what it has scraped nobody needs
        process.wait()
        for exporter in chain(*prometheus.exporters.values()):
            exporter.close()


def certificate(folder: Path) -> Path:
    """Of 127.0.0.1, signed by itself. -> the file"""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    begin = datetime.datetime.fromtimestamp(time.time() - 3600, datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=2))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "server.pem"
