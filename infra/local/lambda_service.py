"""The local Lambda service: AWS's Invoke API in front of warm worker processes.

    python -m infra.local.lambda_service --port-file PATH [--log-dir DIR]

writes `{"port": ..., "pid": ...}` to PATH once it listens on 127.0.0.1, and ends all workers on SIGTERM. Workers share
what they fetch in a folder `shared` beside PATH.

    POST   /2015-03-31/functions/NAME/invocations   AWS's Invoke: for boto3, and for moto's Step Functions
    POST   /peerless/proxy/NAME                     for MiniStack's Lambda proxy, which knows a failure by its status
    PUT    /peerless/functions/NAME                 register: handler, workers, timeout_seconds, memory_mb, env
    DELETE /peerless/functions/NAME                 remove
    GET    /peerless/functions[/NAME[?wait=S]]      specification and counters; `wait` until the workers are ready
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from contract.clock import Clock, SystemClock
from infra.local.lambda_function import PAYLOAD_LIMIT_BYTES, Function, FunctionSpec, Outcome, failure
from infra.local.lambda_http import Handler, Server
from infra.local.lambda_worker import WorkerProcess

#: MiniStack passes on so many bytes of a failed proxy's answer.
PROXY_ERROR_BYTES = 512


class Functions:
    """The registered functions by name."""

    def __init__(self, log_dir: Path, clock: Clock, shared_dir: Path | None = None) -> None:
        self._log_dir, self._shared_dir = log_dir, shared_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._functions: dict[str, Function] = {}
        self._started = 0
        self._closed = False

    def register(self, spec: FunctionSpec) -> Function:
        """Add a function, or replace the one of that name, and start its workers; none any more after `close`."""
        function = Function(spec, self._worker, self._clock)
        with self._lock:
            old = self._functions.get(spec.name)
            self._functions[spec.name] = function
            if self._closed:  # a request that came in while the service ends must not leave workers behind
                function.close()
        if old is not None:
            old.close()
        function.prewarm()
        return function

    def find(self, name: str) -> Function | None:
        """The function of that name, partial ARN or ARN; a qualifier is ignored."""
        parts = name.split(":")
        plain = parts[parts.index("function") + 1] if "function" in parts[:-1] else parts[0]
        with self._lock:
            return self._functions.get(plain)

    def all(self) -> list[Function]:
        with self._lock:
            return list(self._functions.values())

    def remove(self, name: str) -> bool:
        """Whether there was one; its workers have ended."""
        with self._lock:
            function = self._functions.pop(name, None)
        if function is not None:
            function.close()
        return function is not None

    def close(self) -> None:
        """End all workers, for good."""
        with self._lock:
            self._closed = True
        for function in self.all():
            function.close()

    def _worker(self, function: Function) -> WorkerProcess:
        self._started += 1
        log_path = self._log_dir / f"{function.spec.name}-{self._started}.log"
        return WorkerProcess(function, log_path, self._clock, self._shared_dir)


def front(functions: Functions) -> type[Handler]:
    """The request handler of the service."""

    class Front(Handler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path).path.strip("/").split("/")
            match parts:
                case ["2015-03-31", "functions", name, "invocations"]:
                    self._invoke(unquote(name))
                case ["peerless", "proxy", name]:
                    self._proxy(unquote(name))
                case _:
                    self._unknown()

        def do_PUT(self) -> None:
            match urlsplit(self.path).path.strip("/").split("/"):
                case ["peerless", "functions", name]:
                    try:
                        spec = _spec(unquote(name), json.loads(self.body()))
                    except (KeyError, TypeError, ValueError) as error:
                        self.answer_json(400, {"message": f"not a function's specification: {error!r}"})
                        return
                    self.answer_json(201, functions.register(spec).describe())
                case _:
                    self._unknown()

        def do_DELETE(self) -> None:
            match urlsplit(self.path).path.strip("/").split("/"):
                case ["peerless", "functions", name] if functions.remove(unquote(name)):
                    self.answer_json(200, {})
                case ["peerless", "functions", name]:
                    self._missing(unquote(name))
                case _:
                    self._unknown()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            match url.path.strip("/").split("/"):
                case ["peerless", "functions"]:
                    self.answer_json(200, [function.describe() for function in functions.all()])
                case ["peerless", "functions", name]:
                    function = functions.find(unquote(name))
                    if function is None:
                        self._missing(unquote(name))
                        return
                    wait = parse_qs(url.query).get("wait")
                    if wait:
                        function.wait_ready(float(wait[0]))
                    self.answer_json(200, function.describe())
                case _:
                    self._unknown()

        def _invoke(self, name: str) -> None:
            payload = self.body() or b"{}"
            function = functions.find(name)
            if function is None:
                self._missing(name)
                return
            if len(payload) > PAYLOAD_LIMIT_BYTES:
                message = f"Request must be smaller than {PAYLOAD_LIMIT_BYTES} bytes for the InvokeFunction operation"
                self._refuse(413, "RequestTooLargeException", message)
                return
            match self.headers.get("X-Amz-Invocation-Type", "RequestResponse"):
                case "DryRun":
                    self.answer(204)
                case "Event":
                    threading.Thread(target=function.invoke, args=(payload,), daemon=True).start()
                    self.answer(202)
                case _:
                    outcome = function.invoke(payload)
                    headers = {"X-Amz-Executed-Version": "$LATEST"}
                    if outcome.error is not None:
                        headers["X-Amz-Function-Error"] = "Unhandled"
                    if self.headers.get("X-Amz-Log-Type") == "Tail":
                        headers["X-Amz-Log-Result"] = base64.b64encode(outcome.log).decode()
                    self.answer(200, outcome.body, headers)

        def _proxy(self, name: str) -> None:
            payload = self.body() or b"{}"
            function = functions.find(name)
            if function is None:
                outcome = failure("Lambda.ResourceNotFoundException", f"Function not found: {name}")
            else:
                outcome = function.invoke(payload)
            if outcome.error is None:
                self.answer(200, outcome.body)
            else:
                self.answer(502, short_error(outcome))

        def _missing(self, name: str) -> None:
            self._refuse(404, "ResourceNotFoundException", f"Function not found: {name}")

        def _refuse(self, status: int, error: str, message: str) -> None:
            self.answer_json(status, {"Type": "User", "Message": message}, {"x-amzn-ErrorType": error})

        def _unknown(self) -> None:
            self.body()
            self.answer_json(404, {"message": f"no such path: {self.path}"})

    return Front


def short_error(outcome: Outcome) -> bytes:
    """The error object, cut so that MiniStack passes on all of it: name, message, and in place of a stack trace the log
    file that has it."""
    try:
        message = str(json.loads(outcome.body).get("errorMessage", ""))
    except (ValueError, AttributeError):
        message = outcome.body.decode(errors="replace")
    # A message tells more than the way to the log, so a path that would crowd it out is left away.
    log = {"log": outcome.log_path} if 0 < len(outcome.log_path.encode()) <= PROXY_ERROR_BYTES // 2 else {}
    while True:
        error = {"errorType": outcome.error, "errorMessage": message, **log}
        short = json.dumps(error, ensure_ascii=False).encode()
        if len(short) <= PROXY_ERROR_BYTES or not message:
            return short
        over = len(short) - PROXY_ERROR_BYTES
        message = message[: -max(1, over // 6)]  # no character takes more than six bytes


def _spec(name: str, values: dict[str, Any]) -> FunctionSpec:
    spec = FunctionSpec(
        name=name,
        handler=str(values["handler"]),
        workers=int(values["workers"]),
        timeout_seconds=float(values["timeout_seconds"]),
        memory_mb=int(values["memory_mb"]),
        env={str(key): str(value) for key, value in values.get("env", {}).items()},
    )
    if spec.workers < 1 or spec.timeout_seconds <= 0:
        raise ValueError("workers and timeout_seconds must be positive")
    return spec


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.lambda_service", description="A local Lambda service.")
    parser.add_argument("--port-file", type=Path, required=True, help="written once the service listens")
    parser.add_argument("--log-dir", type=Path, help="for the workers' output; beside the port file when not given")
    arguments = parser.parse_args()
    log_dir = arguments.log_dir or arguments.port_file.parent
    log_dir.mkdir(parents=True, exist_ok=True)
    shared_dir = arguments.port_file.parent / "shared"
    shared_dir.mkdir(mode=0o700, exist_ok=True)

    functions = Functions(log_dir, SystemClock(), shared_dir)
    server = Server(front(functions))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    _announce(arguments.port_file, server.server_port)
    stopped.wait()
    functions.close()


def _announce(path: Path, port: int) -> None:
    """Write the port in one step, so that whoever waits for the file never reads half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"port": port, "pid": os.getpid()}), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
