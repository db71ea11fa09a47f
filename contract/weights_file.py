"""A model's weights as a safetensors file: what a user brings to a run, and takes home from it.

A file that a run saves carries its layout in its metadata, so that whoever has it can check its hash, and find a tied
tensor under all of its names, without the code of the model.

Shapes: n parameters (`Layout.elements`) as one flat vector (n,), float32; see contract/tensors.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from contract.errors import CorruptObject, ModelError
from contract.tensors import Buffers, Entry, Layout, check_values, dtype_name, not_finite, weights_hash

#: Metadata of a saved file: the canonical header that its hash begins with, and further names of tied tensors (JSON).
_LAYOUT, _TIED = "peerless_layout", "peerless_tied"


def to_safetensors(layout: Layout, flat: NDArray[np.float32], buffers: Buffers) -> bytes:
    """Parameters and buffers by name as a safetensors file; tied parameters once, under their first name.

    The same values give the same bytes. Raises WeightsMismatch if the values do not fit the layout.
    """
    check_values(layout, flat, buffers)
    tensors: dict[str, NDArray[Any]] = {entry.name: view for entry, view in layout.views(flat)}
    tensors.update({name: np.ascontiguousarray(value).reshape(value.shape) for name, value in buffers.items()})
    tied = {entry.name: entry.aliases for entry in (*layout.parameters, *layout.buffers) if entry.aliases}
    metadata = {"format": "pt", _LAYOUT: layout.header.decode("ascii")}
    return _with_metadata(safetensors.numpy.save(tensors), metadata | ({_TIED: json.dumps(tied)} if tied else {}))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file holds that a run has saved."""

    tensors: dict[str, torch.Tensor]
    """Parameters and buffers by name; tied ones under each of their names, sharing their memory."""
    sha256: str | None
    """The hash of its weights (contract/tensors.py); None for a file that does not carry its layout."""
    parameters: int | None
    """Elements of all parameters, tied ones once; None likewise."""


def read_saved(blob: bytes) -> Saved:
    """Read a saved file without the model's code. Raises CorruptObject for one that is damaged."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(blob)
        metadata = _header(blob).get("__metadata__", {})
        if _LAYOUT not in metadata:
            return Saved(tensors=tensors, sha256=None, parameters=None)
        layout, tied = _layout(metadata[_LAYOUT]), json.loads(metadata.get(_TIED, "{}"))
        sha256 = weights_hash(layout, *from_safetensors(layout, blob))
        shared = {alias: tensors[name] for name, aliases in tied.items() for alias in aliases}
    except (safetensors.SafetensorError, ModelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptObject(f"it is no safetensors file as a run saves it ({error})") from error
    return Saved(tensors=tensors | shared, sha256=sha256, parameters=layout.elements)


def _layout(header: str) -> Layout:
    """The layout whose canonical header this is; who is tied or trainable is no part of it."""
    value = json.loads(header)
    entries = (
        tuple(Entry(name, tuple(shape), dtype) for name, shape, dtype in value[kind])
        for kind in ("parameters", "buffers")
    )
    return Layout(*entries)


def _header(blob: bytes) -> dict[str, Any]:
    """The JSON that a safetensors file begins with, after its length (8 bytes, little-endian)."""
    header: dict[str, Any] = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return header


def _with_metadata(blob: bytes, metadata: Mapping[str, str]) -> bytes:
    """The file with this metadata, in this order: safetensors itself writes several entries in a random one."""
    text = json.dumps({"__metadata__": metadata, **_header(blob)}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + blob[8 + int.from_bytes(blob[:8], "little") :]


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
