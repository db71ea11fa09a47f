"""CloudFormation's side of a custom resource, and a broker's management API: two small servers on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from contract.clock import Clock, SystemClock


@dataclass(frozen=True)
class Request:
    """What a server was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """Answers every request with what `reply` makes of it, and keeps them. A context manager."""

    def __init__(self, reply: Callable[[Request], int] = lambda request: 200) -> None:
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Request(self.command, self.path, dict(self.headers), body)
                outer.requests.append(asked)
                self.send_response(reply(asked))
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_DELETE = _any

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def asked(self) -> list[tuple[str, str]]:
        """Methods and paths."""
        return [(request.method, request.path) for request in self.requests]


@dataclass
class Context:
    """Lambda's context of an invocation that may last `seconds`."""

    seconds: float = 300.0
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self._ends = self.clock.monotonic() + self.seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends - self.clock.monotonic()) * 1_000)


def event(kind: str, response_url: str, properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What CloudFormation sends."""
    return {
        "RequestType": kind,
        "ResponseURL": f"{response_url}/answers/one?X-Amz-Signature=abc",
        "StackId": "arn:aws:cloudformation:eu-west-1:123456789012:stack/Peerless-test-Broker/guid",
        "RequestId": "request-1",
        "ResourceType": "Custom::BrokerUsers",
        "LogicalResourceId": "Users",
        "ResourceProperties": dict(properties),
        **more,
    }
