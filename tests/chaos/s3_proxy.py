"""A proxy in front of S3 that fails at chosen requests, in the ways that leave a client in doubt.

A request is passed on or not, and its answer is passed on or not; that makes four outcomes, of which a client can tell
apart only two.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from contract.clock import SystemClock

#: `refuse`: 503, not carried out. `conflict`: 409, not carried out. `lose`: carried out, and the connection cut in
#: place of an answer. `deny`: carried out, and answered with 503 all the same.
Outcome = Literal["refuse", "conflict", "lose", "deny"]
_CODES = {"refuse": (503, "SlowDown"), "deny": (503, "InternalError"), "conflict": (409, "ConditionalRequestConflict")}
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """What a rule sees of a request."""

    method: str
    path: str
    conditional: bool
    """Whether it carries If-None-Match or If-Match."""

    def writes(self, part: str) -> bool:
        """Whether it is a conditional write of a key that contains `part`."""
        return self.method == "PUT" and self.conditional and part in self.path


@dataclass
class Rule:
    """The next `times` requests that `matches` accepts have this outcome."""

    matches: Callable[[Request], bool]
    outcome: Outcome
    times: int
    met: int = 0


@dataclass
class Outage:
    """503 to everything for `seconds`, from the first request on that `begins` accepts."""

    begins: Callable[[Request], bool]
    seconds: float
    until: float | None = None
    refused: int = 0


@dataclass
class _State:
    rules: list[Rule] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class S3Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to the S3 at `endpoint_url`; a context manager."""

    def __init__(self, endpoint_url: str) -> None:
        parts = urlsplit(endpoint_url)
        self._state = _State()
        self.counts: Counter[str] = Counter()
        """Requests by outcome; `pass` for those that went through."""
        handler = type("Handler", (_Handler,), {"target": (parts.hostname, parts.port), "proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        """What clients are given in place of the real one."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def fail(self, matches: Callable[[Request], bool], outcome: Outcome, times: int = 1) -> Rule:
        """From now on; the rule says how often it was met."""
        rule = Rule(matches, outcome, times)
        with self._state.lock:
            self._state.rules.append(rule)
        return rule

    def fail_for(self, seconds: float, begins: Callable[[Request], bool] = lambda _: True) -> Outage:
        """503 to everybody for so long."""
        outage = Outage(begins, seconds)
        with self._state.lock:
            self._state.outages.append(outage)
        return outage

    def judge(self, request: Request) -> Outcome | None:
        """What a request meets; None lets it through."""
        now = SystemClock().monotonic()
        with self._state.lock:
            outcome = self._judge(request, now)
            self.counts[outcome or "pass"] += 1
        return outcome

    def _judge(self, request: Request, now: float) -> Outcome | None:
        for outage in self._state.outages:
            if outage.until is None and outage.begins(request):
                outage.until = now + outage.seconds
            if outage.until is not None and now < outage.until:
                outage.refused += 1
                return "refuse"
        for rule in self._state.rules:
            if rule.met < rule.times and rule.matches(request):
                rule.met += 1
                return rule.outcome
        return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that keeps its connection would hold the end up
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that died in the middle is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """One client's connection, with one of its own to S3."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    target: tuple[str, int]
    proxy: S3Proxy

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection(*self.target, timeout=_ANSWER_SECONDS)

    def finish(self) -> None:
        self._behind.close()
        super().finish()

    def _handle(self) -> None:
        body = self._body()
        conditional = bool(self.headers.get("If-None-Match") or self.headers.get("If-Match"))
        outcome = self.proxy.judge(Request(self.command, self.path, conditional))
        if outcome in ("refuse", "conflict"):
            self._answer_error(outcome)
            return
        status, headers, answer = self._pass_on(body)
        if outcome == "deny":
            self._answer_error(outcome)
        elif outcome == "lose":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer(status, headers, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts: list[bytes] = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        unforwarded = ("transfer-encoding", "connection", "expect", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in unforwarded}
        self._behind.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = self._behind.getresponse()
        data = answer.read()
        return answer.status, answer.getheaders(), data

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value  # of what GET would give
            elif name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer_error(self, outcome: Outcome) -> None:
        status, code = _CODES[outcome]
        body = f"<Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have nothing to read here."""
