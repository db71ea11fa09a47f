"""A model's weights as a safetensors file: what a user brings to a run, and takes home from it.

Shapes: n parameters (`Layout.elements`) as one flat vector (n,), float32; see contract/tensors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from contract.errors import ModelError
from contract.tensors import Buffers, Entry, Layout, check_values, dtype_name, not_finite


def to_safetensors(layout: Layout, flat: NDArray[np.float32], buffers: Buffers) -> bytes:
    """Parameters and buffers by name as a safetensors file; tied parameters once, under their first name.

    Raises WeightsMismatch if the values do not fit the layout.
    """
    check_values(layout, flat, buffers)
    tensors: dict[str, NDArray[Any]] = {entry.name: view for entry, view in layout.views(flat)}
    tensors.update({name: np.ascontiguousarray(value).reshape(value.shape) for name, value in buffers.items()})
    blob: bytes = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    return blob


def from_safetensors(layout: Layout, blob: bytes) -> tuple[NDArray[np.float32], Buffers]:
    """Read parameters (as a new flat vector (n,)) and buffers from a safetensors file.

    Floating-point values of another width are converted; a tied parameter may go by any of its names. Raises
    ModelError that names the first tensor that is missing, has the wrong shape or kind, isn't finite, or is unknown to
    the model.
    """
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(blob)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"the initial weights are not a readable safetensors file ({error})") from error

    flat = np.empty(layout.elements, np.float32)
    for entry, view in layout.views(flat):
        np.copyto(view, _stored_tensor(entry, tensors))
    buffers: Buffers = {entry.name: _stored_tensor(entry, tensors) for entry in layout.buffers}
    known = {name for entry in (*layout.parameters, *layout.buffers) for name in (entry.name, *entry.aliases)}
    if (name := not_finite(layout, flat)) is not None:
        raise ModelError(f"{name} of the initial weights holds NaN or infinity")
    if unknown := sorted(tensors.keys() - known):
        raise ModelError(f"the initial weights hold {unknown[0]}, which the model does not have")
    return flat, buffers


def _stored_tensor(entry: Entry, tensors: Mapping[str, torch.Tensor]) -> NDArray[Any]:
    """A new array with the entry's shape and dtype. Raises ModelError."""
    name = next((name for name in (entry.name, *entry.aliases) if name in tensors), None)
    if name is None:
        raise ModelError(f"the initial weights lack {entry.name}")
    tensor = tensors[name]
    if tuple(tensor.shape) != entry.shape:
        raise ModelError(
            f"{name} of the initial weights has shape {list(tensor.shape)}, but the model has {list(entry.shape)}"
        )
    dtype: torch.dtype = getattr(torch, entry.dtype)
    if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
        raise ModelError(f"{name} of the initial weights is {dtype_name(tensor)}, but the model has {entry.dtype}")
    array: NDArray[Any] = tensor.to(dtype).numpy().copy()
    return array
