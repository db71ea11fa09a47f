"""Mixed precision: float32 everywhere, or bfloat16 where torch's autocast takes it, on processors that have it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from contract.errors import ConfigError


@cache
def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them torch emulates it, slower than float32."""
    return any(found for name, found in torch.cpu.get_capabilities().items() if "bf16" in name)


def autocast(precision: str) -> AbstractContextManager[object]:
    """The forward pass in `precision`: `float32` or `bfloat16`. Raises ConfigError where this processor cannot."""
    if precision == "float32":
        return nullcontext()
    if precision != "bfloat16":
        raise ConfigError(f"precision {precision!r} is neither float32 nor bfloat16")
    if not has_bfloat16():
        raise ConfigError("this processor has no instructions for bfloat16; set compute.precision = 'float32'")
    return torch.autocast("cpu", dtype=torch.bfloat16)
