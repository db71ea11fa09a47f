"""Starting the local Lambda service."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from contract.errors import LocalStackError
from infra.local import detached
from infra.local.lambda_client import LambdaService
from infra.local.processes import Child, Starting, wait_until_ready

NAME = "Lambda service"
_READY_SECONDS = 60.0
_GRACE_SECONDS = 10.0


def start(folder: Path, starting: Starting) -> tuple[Child, int]:
    """The service's process and port; its functions and their workers are in its memory alone."""
    port_file = folder / "lambda" / "port.json"
    port_file.parent.mkdir(parents=True, exist_ok=True)
    port_file.unlink(missing_ok=True)
    child = Child.start(
        NAME,
        [sys.executable, "-m", "infra.local.lambda_service", "--port-file", port_file, "--log-dir", folder / "logs"],
        env=detached.with_root(without_aws(os.environ)),
        log_path=folder / "logs" / "lambda.log",
        grace_seconds=_GRACE_SECONDS,
        afterwards=["rm", "-rf", str(port_file.parent)],
    )
    try:
        wait_until_ready(child, port_file.exists, starting=starting, timeout_seconds=_READY_SECONDS)
        return child, int(LambdaService.from_port_file(port_file).url.rpartition(":")[2])
    except BaseException:
        child.kill()
        raise


def answers(url: str) -> bool:
    """Whether the service at `url` answers now."""
    try:
        LambdaService(int(url.rpartition(":")[2]), timeout_seconds=5.0).functions()
    except LocalStackError:
        return False
    return True


def without_aws(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the user's AWS settings."""
    return {name: value for name, value in environ.items() if not name.startswith("AWS_")}


def no_code() -> bytes:
    """Code for MiniStack to hold; what runs is the Lambda service's."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("README", "The code of this function runs in the local Lambda service.\n")
    return buffer.getvalue()
