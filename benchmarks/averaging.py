"""A peer's memory while it averages the gradients of its workers: `python -m benchmarks.averaging ELEMENTS COUNT`.

The process is a peer's gradient service and nothing else. Replaced are Step Functions, whose execution has ended as
soon as it is started, and S3, whose COUNT gradients of ELEMENTS float32 values are one file, read anew each time. It
prints the bytes that were resident at most while it averaged, beyond those before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.aggregation import resident
from benchmarks.vectors import MODEL, gradient, relative_error
from contract import wire
from contract.batches import BatchRef
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.errors import RunFailed
from contract.keys import Place
from contract.modelspec import ModelSpec
from contract.runspec import RunSpec, ValidationSet
from contract.store import ObjectStore
from peer_agent.compute import StepFunctionsGradientService
from peerless.launch.resources import places_for

_WEIGHTS, _SAMPLES = "ab" * 32, 8
_LIMIT_SECONDS = 600.0


class OneFile:
    """What an object store must do here: give the same gradient for every key, and forget what it is told to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, place: Place) -> bytes:
        """The file's bytes, in memory of their own."""
        return self._path.read_bytes()

    def put(self, place: Place, data: object) -> None:
        """The items of the map, which nobody reads."""

    def delete(self, places: object) -> None:
        """Nothing: there is one file for all."""


class Ended:
    """Step Functions whose executions, of so many items, have succeeded when they begin."""

    def __init__(self, items: int) -> None:
        self._output = json.dumps({"retries": [0] * items})

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        """The execution's ARN."""
        return {"executionArn": f"{stateMachineArn.replace(':stateMachine:', ':execution:', 1)}:{name}"}

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
        """It succeeded."""
        return {"executionArn": executionArn, "status": "SUCCEEDED", "output": self._output}


def models_of_memory(elements: int, count: int) -> float:
    """Model sizes that averaging takes, in a process of its own. Raises RunFailed."""
    command = [sys.executable, "-m", "benchmarks.averaging", str(elements), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_LIMIT_SECONDS, check=False)
    if done.returncode != 0:
        raise RunFailed(f"averaging {count} gradients ended with status {done.returncode}")
    return float(int(done.stdout)) / (4 * elements)


def measure(elements: int, count: int, folder: Path) -> int:
    """Bytes resident at most while `count` gradients are averaged, beyond those before. Raises RunFailed."""
    spec = _spec(elements, count)
    _write(spec, folder / "gradient")
    service = StepFunctionsGradientService(
        spec,
        0,
        store=cast(ObjectStore, OneFile(folder / "gradient")),
        endpoint_url="http://127.0.0.1:1",
        clock=SystemClock(),
        client=Ended(count),
    )
    batches = [BatchRef(index=index, key="k", samples=_SAMPLES, sha256="0" * 64) for index in range(count)]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    found = service.compute(
        round=0, incarnation=0, weights_sha256=_WEIGHTS, flat=np.zeros(1, np.float32), buffers={}, batches=batches,
        seed=0,
    )  # fmt: skip
    peak = resident("VmHWM")
    if found.samples != count * _SAMPLES or not relative_error(found.gradient, gradient(0, elements)) < 1e-5:
        raise RunFailed("the mean of equal gradients is another one")
    return peak - before


def _spec(elements: int, count: int) -> RunSpec:
    places = places_for("averaging", 1, "us-east-1")
    config = RunConfig.model_validate(
        {"peers": 1, "batches_per_round": 0, "compute": {"state_machine": "distributed_map", "reduce": "never"}}
    )
    return RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=ModelSpec(name=MODEL, classes=2, channels=1, image_size=1, options={"elements": elements}),
        samples=(count * _SAMPLES,),
        batches=(count,),
        rounds_per_epoch=1,
        initial_weights=_WEIGHTS,
        validation=ValidationSet(sha256="", samples=0),
        state_machines=("arn:aws:states:us-east-1:000000000000:stateMachine:averaging",),
    )


def _write(spec: RunSpec, path: Path) -> None:
    """The frame of a worker's gradient."""
    values = gradient(0, int(spec.model.options["elements"]))
    header = wire.FrameHeader(
        kind=wire.Kind.GRADIENT,
        run=spec.run,
        round=0,
        base_round=0,
        base_weights=_WEIGHTS,
        rank=0,
        incarnation=0,
        samples=_SAMPLES,
        loss=0.0,
        codec="none",
        seed=0,
        elements=values.size,
    )
    path.write_bytes(wire.encode(header, values.data.cast("B")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        print(measure(int(sys.argv[1]), int(sys.argv[2]), Path(name)))
