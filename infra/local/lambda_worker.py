"""A worker process of the local Lambda service, and the Runtime API that AWS's own runtime client talks to.

The process is `python -m awslambdaric <handler>`, as in AWS's base image. It asks its own endpoint for invocations
(https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html) and keeps its modules, caches and connections warm
between them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from contract.clock import Clock
from contract.env import ALLOCATOR
from infra.local.lambda_function import Function
from infra.local.lambda_http import Handler, Server
from infra.local.memory_limit import MemoryLimit

#: How long a worker may take to load its handler. AWS gives 10 s and then starts over; torch on a busy machine needs
#: more.
INIT_SECONDS = 180.0
LOG_TAIL_BYTES = 4096
ROOT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """One process with its own Runtime API endpoint; it is in the service's process group, so it dies with it."""

    def __init__(self, function: Function, log_path: Path, clock: Clock, shared_dir: Path | None = None) -> None:
        """`shared_dir` is a folder of all workers of this machine, where they share what they fetch."""
        self._function = function
        self.log_path = log_path
        self._shared_dir = shared_dir
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._memory = MemoryLimit(function.spec.memory_mb)
        self._lock = threading.Lock()
        self._mark = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=log_path.stem, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def join(self) -> None:
        self._ended.wait()

    def mark(self) -> None:
        self._mark = self.log_path.stat().st_size

    def tail(self) -> bytes:
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._mark, end - LOG_TAIL_BYTES))
            return log.read(LOG_TAIL_BYTES)

    def _run(self) -> None:
        server = Server(_runtime_api(self._function, self, self._clock))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with self.log_path.open("ab") as log:
                reason = self._wait(server.address, log)
        except OSError as error:
            reason = f"the process could not be started ({error})"
        self._function.exited(self, reason, self._memory.exceeded_mb)
        self._ended.set()
        server.shutdown()
        server.server_close()

    def _wait(self, runtime_api: str, log: IO[bytes]) -> str:
        """Start the process and wait for its end; gives the reason in AWS's words."""
        with self._lock:
            if self._killed:
                return "signal: killed"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "awslambdaric", self._function.spec.handler],
                env=self._environment(runtime_api),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        limit = threading.Timer(INIT_SECONDS, self._function.init_expired, (self, INIT_SECONDS))
        limit.daemon = True
        limit.start()
        self._memory.watch(self._process.pid)
        code = self._process.wait()
        self._memory.stop()
        limit.cancel()
        if code < 0:
            return "signal: " + str(signal.strsignal(-code)).partition(":")[0].lower()
        return f"exit status {code}"

    def _environment(self, runtime_api: str) -> dict[str, str]:
        spec = self._function.spec
        path = os.pathsep.join(
            part for part in (str(ROOT), spec.env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))) if part
        )
        return {
            **os.environ,
            **ALLOCATOR,
            **({} if self._shared_dir is None else {"PEERLESS_SHARED_DIR": str(self._shared_dir)}),
            **spec.env,
            "PYTHONPATH": path,
            "AWS_LAMBDA_RUNTIME_API": runtime_api,
            "AWS_LAMBDA_FUNCTION_NAME": spec.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_mb),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{spec.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": self.log_path.stem,
            "LAMBDA_TASK_ROOT": str(ROOT),
            "_HANDLER": spec.handler,
        }


def _runtime_api(function: Function, worker: WorkerProcess, clock: Clock) -> type[Handler]:
    """The request handler of one worker's endpoint."""

    class RuntimeApi(Handler):
        def do_GET(self) -> None:
            if self.path != "/2018-06-01/runtime/invocation/next":
                self.answer_json(404, {"errorMessage": f"no such path: {self.path}", "errorType": "InvalidPath"})
                return
            invocation = function.next(worker)
            if invocation is None:
                self.close_connection = True
                return
            deadline = clock.now() + function.spec.timeout_seconds
            self.answer(
                200,
                invocation.payload,
                {
                    "Lambda-Runtime-Aws-Request-Id": invocation.id,
                    "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": function.spec.arn,
                },
            )

        def do_POST(self) -> None:
            body = self.body()
            *_, where, last = self.path.rsplit("/", 2)
            if (where, last) == ("init", "error"):
                function.init_failed(worker, body, _error_type(body))
                accepted = True
            elif last in ("response", "error"):
                accepted = function.answer(worker, where, body, _error_type(body) if last == "error" else None)
            else:
                accepted = False
            if accepted:
                self.answer_json(202, {"status": "OK"})
            else:
                self.answer_json(400, {"errorMessage": "no such invocation", "errorType": "InvalidRequestID"})

    return RuntimeApi


def _error_type(body: bytes) -> str:
    """The error's name in a worker's report."""
    try:
        return str(json.loads(body)["errorType"])
    except (ValueError, KeyError, TypeError):
        return "Runtime.Unknown"
