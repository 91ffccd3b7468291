"""A small web server of a test's own, whose paths open sessions, misbehave or answer oddly."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

View = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each method by the view of its path."""

    server: WebServer

    def answer(self, status: int = 200, body: bytes = b"ok", **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.asked[self.command, self.path] += 1
        self.server.heads.append(dict(self.headers))
        self.server.bodies.append(self.rfile.read(length))
        self.server.views[self.path](self)

    do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class WebServer(ThreadingHTTPServer):
    """A running server with its *views* by path, and what it was asked."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, views: dict[str, View]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.views = views
        self.asked: Counter[tuple[str, str]] = Counter()
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.scheme = "http"

    def url(self, path: str) -> str:
        """The address of *path* on this server."""
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def web_server(views: dict[str, View]) -> Iterator[WebServer]:
    """Run a server with *views*."""
    with WebServer(views) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
