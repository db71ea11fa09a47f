"""The HTTP ground that the local Lambda service and its workers' Runtime API stand on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """One thread per connection, on a free port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 512  # a map starts its items at once, each on a connection of its own

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this machine's name, which can take seconds and is never used.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error; anything else is printed by the base class."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, answers with one write, and leaves no line per request in the log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def body(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a JSON body (or none) and headers."""
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send `value` as JSON."""
        self.answer(status, json.dumps(value).encode(), headers)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: workers have log files, invocations have counters."""
