"""What lies between a CI job and its Prefect server: it can lose answers, be busy and be cut."""

import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Wire:
    """Forwards to `upstream`. `busy`: answers 503. `lose`: forwards requests whose path holds this
    text and closes the connection instead of answering."""

    def __init__(self, upstream: str) -> None:
        self.busy = False
        self.lose = ""
        self.lost = 0
        self.asked = 0  # times
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                wire.asked += 1
                if wire.busy:
                    self.answer(503, b"busy")
                    return
                not_ours = ("host", "accept-encoding")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in not_ours}
                request = urllib.request.Request(
                    upstream + self.path, body or None, headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(request, timeout=20) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                if wire.lose and wire.lose in self.path:
                    wire.lose, wire.lost = "", wire.lost + 1
                    self.close_connection = True
                    return
                self.answer(status, content)

            do_POST = do_GET

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Tests read what jobs say, not this."""

        self._handler = Handler
        self._port = 0
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def mend(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        self._server.shutdown()
        self._server.server_close()
