"""Control of a running local Lambda service."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contract.errors import LocalStackError


class LambdaService:
    """Registers functions with the service at `http://127.0.0.1:<port>`. Every method raises LocalStackError when the
    service doesn't answer."""

    def __init__(self, port: int, *, timeout_seconds: float = 30.0) -> None:
        self._port = port
        self._timeout_seconds = timeout_seconds

    @classmethod
    def from_port_file(cls, path: Path) -> LambdaService:
        """The service that wrote this file."""
        return cls(int(json.loads(path.read_text(encoding="utf-8"))["port"]))

    @property
    def url(self) -> str:
        """Endpoint for boto3's Lambda client (`AWS_ENDPOINT_URL_LAMBDA`)."""
        return f"http://127.0.0.1:{self._port}"

    def invoke_url(self, name: str) -> str:
        """For MiniStack's `MINISTACK_LAMBDA_PROXY_URL`: there a failed invocation has a status other than 2xx."""
        return f"{self.url}/peerless/proxy/{quote(name)}"

    def register(
        self,
        name: str,
        *,
        handler: str,
        workers: int,
        timeout_seconds: float,
        memory_mb: int,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Add or replace a function; gives its ARN. Returns at once, while `workers` processes load the handler;
        invocations wait for them."""
        values = {
            "handler": handler,
            "workers": workers,
            "timeout_seconds": timeout_seconds,
            "memory_mb": memory_mb,
            "env": dict(env or {}),
        }
        return str(self._call("PUT", f"/peerless/functions/{quote(name)}", values)["arn"])

    def wait_ready(self, name: str, timeout_seconds: float) -> bool:
        """Whether all workers have loaded the handler within the time; False at once when one couldn't."""
        path = f"/peerless/functions/{quote(name)}?wait={timeout_seconds}"
        found = self._call("GET", path, timeout_seconds=timeout_seconds + self._timeout_seconds)
        return bool(found["workers_ready"] == found["workers"])

    def remove(self, name: str) -> None:
        """Remove a function and end its workers; nothing happens when there is none."""
        self._call("DELETE", f"/peerless/functions/{quote(name)}", missing_ok=True)

    def functions(self) -> list[dict[str, Any]]:
        """All functions: specification, workers ready and busy, invocations waiting, counters."""
        return list(self._call("GET", "/peerless/functions"))

    def counters(self, name: str) -> dict[str, Any]:
        """invocations, errors, errors_by_name, billed_ms, init_ms, cold_starts, workers_started."""
        return dict(self._call("GET", f"/peerless/functions/{quote(name)}")["counters"])

    def _call(
        self,
        method: str,
        path: str,
        values: Mapping[str, Any] | None = None,
        *,
        missing_ok: bool = False,
        timeout_seconds: float | None = None,
    ) -> Any:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._port, timeout=timeout_seconds or self._timeout_seconds
        )
        try:
            connection.request(method, path, None if values is None else json.dumps(values))
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LocalStackError(
                f"the local Lambda service at {self.url} did not answer {method} {path}: {error}"
            ) from error
        finally:
            connection.close()
        if response.status >= 400 and not (missing_ok and response.status == 404):
            raise LocalStackError(f"the local Lambda service at {self.url} refused {method} {path}: {answer}")
        return answer
