"""Weights that come from a safetensors file, and go into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch

from contract.errors import ModelError
from contract.tensors import Layout, flatten, pack_buffers
from contract.weights_file import from_safetensors, to_safetensors
from tests.fakes.mixed_model import mixed, values


def test_safetensors_come_back_and_fit_torch() -> None:
    weights = layout, flat, buffers = values(mixed())
    blob = to_safetensors(*weights)
    assert to_safetensors(*weights) == blob
    got_flat, got_buffers = from_safetensors(layout, blob)
    assert np.array_equal(got_flat, flat)
    assert pack_buffers(layout, got_buffers) == pack_buffers(layout, buffers)
    target = mixed(9)
    missing, unexpected = target.load_state_dict(safetensors.torch.load(blob), strict=False)
    assert (missing, unexpected) == (["decoder.weight"], [])  # tied: it came with embedding.weight
    assert np.array_equal(flatten(target, layout), flat)


def test_safetensors_may_name_a_tied_parameter_otherwise_and_have_other_widths() -> None:
    layout, flat, _ = values(mixed())
    state = {name: tensor.clone() for name, tensor in mixed().state_dict().items()}
    del state["embedding.weight"]
    state["norm.bias"] = state["norm.bias"].double()
    state["norm.weight"] = torch.tensor([0.5, -0.25, 2.0], dtype=torch.bfloat16)
    got, _ = from_safetensors(layout, safetensors.torch.save(state))
    flat[-6:-3] = [0.5, -0.25, 2.0]
    assert np.array_equal(got, flat)


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.pop(name)


def _with(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without("norm.bias"), "the initial weights lack norm.bias"),
        (_without("table"), "the initial weights lack table"),
        (
            _with("norm.bias", torch.zeros(4)),
            r"norm.bias of the initial weights has shape \[4\], but the model has \[3\]",
        ),
        (_with("norm.bias", torch.zeros(3, dtype=torch.int64)), "norm.bias of the initial weights is int64"),
        (_with("mask", torch.zeros(3)), "mask of the initial weights is float32, but the model has bool"),
        (_with("norm.bias", torch.tensor([0, 0, torch.nan])), "norm.bias of the initial weights holds NaN"),
        (_with("head.weight", torch.zeros(2)), "hold head.weight, which the model does not have"),
    ],
)
def test_safetensors_that_do_not_fit_name_the_tensor(
    change: Callable[[dict[str, torch.Tensor]], object], sentence: str
) -> None:
    weights = values(mixed())
    state = safetensors.torch.load(to_safetensors(*weights))
    change(state)
    with pytest.raises(ModelError, match=sentence):
        from_safetensors(weights[0], safetensors.torch.save(state))


@pytest.mark.parametrize("blob", [b"", b"no safetensors at all", b"\xff" * 64])
def test_a_file_of_another_format_is_told(blob: bytes) -> None:
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        from_safetensors(Layout.of(mixed()), blob)
