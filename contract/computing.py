"""The section of the configuration that says how gradients are computed, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from contract.section import Positive, Section

#: Memory in MB for which a Lambda function gets one vCPU
#: (https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html).
MB_PER_VCPU = 1_769


class ComputeConfig(Section):
    """How gradients are computed."""

    service: Literal["lambda", "local"] = "lambda"
    """`lambda`: Step Functions and Lambda workers. `local`: in the peer's own process (the instance-based baseline)."""
    state_machine: Literal["auto", "inline_map", "distributed_map", "parallel"] = "auto"
    """Form of the generated definition; `auto` takes `inline_map` where no more than 40 may run at once (there are no
    more in a round, or `concurrency` says so), up to 900 a round, else `distributed_map`."""
    concurrency: Annotated[int, Field(ge=0)] = 0
    """Gradient workers at once per peer's map; 0 leaves it to the service."""
    batches_per_worker: Positive | Literal["auto"] = 1
    """Batches per invocation, averaged where they are computed; `auto` makes invocations of about a second (of more,
    where batches wait for workers and gradients are above 3 MB) from what earlier rounds took, so that runs with the
    same seed need not end with the same bits. One that takes steps of its own (`local_sgd`, `diloco`) takes all batches
    of its peer's round, whatever stands here."""
    memory_mb: Annotated[int, Field(ge=128, le=10_240)] = 1_769
    """Memory of a Lambda worker in MB; 1,769 MB is one vCPU."""
    timeout_seconds: Annotated[int, Field(ge=1, le=900)] = 120
    """Time limit of one invocation."""
    tolerated_failures: int | float = 0
    """So many failed batches do not fail a peer's round, which then goes on with the others: a count, or a share of the
    round's batches (0.05: one in twenty). 0 tolerates none. At least one batch must succeed. Lambda workers only."""
    local_workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes of the local Lambda service; 0 means as many as have `threads` cores each."""
    threads: Positive = 1
    """torch threads per worker and per peer; pinned, because the thread count changes the bits of a sum. 0 is replaced
    by one per vCPU that `memory_mb` buys on Lambda (1,769 MB each)."""
    channels_last: bool = False
    """Images with their channels last in memory where gradients are computed: faster for some convolutional models, and
    other last bits."""
    gradient_codec: Literal["none", "fp16", "qsgd8", "qsgd4"] = "none"
    """Codec of the gradient between worker and peer. Each gradient of a round is rounded on its own, without bias, and
    once more as part of the peer's mean (`exchange.codec`)."""
    reduce: Literal["auto", "never", "always"] = "auto"
    """Whether further functions (`lambdas/gradient_reducer`) add a round's gradients up, so that the peer downloads one
    mean: `auto` where their number and size make that faster (contract/tree.py). Sums in another order have other last
    bits. Peers' own processes add up in the same order."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: workers compute what torch's autocast lets them with 8 bits of precision, on processors that can;
    weights, gradients and sums stay float32."""

    @field_validator("tolerated_failures", mode="before")
    @classmethod
    def _count_or_share(cls, value: Any) -> Any:
        if (type(value) is int and value >= 0) or (type(value) is float and 0 < value < 1):
            return value
        raise ValueError("must be a whole number of batches, or a share between 0.0 and 1.0")

    @model_validator(mode="before")
    @classmethod
    def _threads_of_memory(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or type(values.get("threads")) is not int or values["threads"]:
            return values
        memory_mb = values.get("memory_mb", MB_PER_VCPU)
        return {**values, "threads": max(1, memory_mb // MB_PER_VCPU) if isinstance(memory_mb, int) else 1}

    @field_validator("batches_per_worker", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value >= 1):
            raise ValueError("must be a whole number from 1, or auto")
        return value

    @model_validator(mode="after")
    def _branches_are_known(self) -> ComputeConfig:
        if self.state_machine == "parallel" and self.batches_per_worker == "auto":
            raise ValueError("state_machine = 'parallel' needs a number for batches_per_worker")
        return self


def local_workers(compute: ComputeConfig, cores: int) -> int:
    """Worker processes of a local Lambda service on a machine of so many cores."""
    return compute.local_workers or max(1, cores // compute.threads)
