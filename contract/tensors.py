"""A model as one flat float32 vector in a fixed order, plus its buffers; and the hash by which weights are named.

Shapes: n parameters in total (`Layout.elements`), each at a fixed place of a vector (n,), float32. The order is that
of `model.named_parameters()`: of registration. A parameter that a model uses in several places counts once, under its
first name. Buffers (BatchNorm statistics, counters) are NumPy arrays by name in the order of `model.named_buffers()`;
non-persistent ones belong to the code of the model and stay out.

Everything that is stored or sent is little-endian and without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract import wire
from contract.codec import codec, raw
from contract.errors import CorruptObject, ModelError, NonFiniteGradient, WeightsMismatch

#: Buffer values by name, in the order of the layout. Each has its entry's shape and dtype.
Buffers = dict[str, NDArray[Any]]

#: The dtypes that buffers may have, by their name in torch and NumPy alike.
BUFFER_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Entry:
    """One parameter or buffer: its name, shape and dtype (a NumPy name)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    aliases: tuple[str, ...] = ()
    """Further names of the same tensor, where a model ties them; like `trainable` no part of the weights' identity."""
    trainable: bool = True

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The little-endian dtype in which this entry is stored and sent."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a model's parameters and buffers, in the order in which their values are kept."""

    parameters: tuple[Entry, ...]
    buffers: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of `model`; reads no values, so a model on the meta device will do.

        Raises ModelError for a model without parameters or with frozen ones only, a parameter that isn't float32 or
        has no shape yet (lazy modules), or a buffer of a dtype outside BUFFER_DTYPES.
        """
        names: dict[int, list[str]] = {}
        for name, tensor in _all_tensors(model):
            names.setdefault(id(tensor), []).append(name)

        parameters = []
        for name, parameter in model.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ModelError(f"parameter {name} of the model has no shape yet; run lazy modules once before use")
            if parameter.dtype != torch.float32:
                raise ModelError(f"parameter {name} of the model is {dtype_name(parameter)}, but must be float32")
            parameters.append(_entry(name, parameter, names))
        if not parameters:
            raise ModelError("the model has no parameters, so there is nothing to train")
        if not any(entry.trainable for entry in parameters):
            raise ModelError("all parameters of the model are frozen (requires_grad), so there is nothing to train")

        buffers = []
        for name, buffer in _persistent_buffers(model).items():
            if dtype_name(buffer) not in BUFFER_DTYPES:
                known = ", ".join(BUFFER_DTYPES)
                raise ModelError(f"buffer {name} of the model is {dtype_name(buffer)}, which is none of {known}")
            buffers.append(_entry(name, buffer, names))
        return cls(tuple(parameters), tuple(buffers))

    @cached_property
    def elements(self) -> int:
        """Length n of the flat vector: the number of parameters."""
        return sum(entry.elements for entry in self.parameters)

    @cached_property
    def buffers_bytes(self) -> int:
        """Bytes of all buffers, packed."""
        return sum(entry.bytes for entry in self.buffers)

    @cached_property
    def frozen(self) -> tuple[slice, ...]:
        """The parts of the flat vector that training must not change: parameters without `requires_grad`."""
        parts, start = [], 0
        for entry in self.parameters:
            if not entry.trainable:
                parts.append(slice(start, start + entry.elements))
            start += entry.elements
        return tuple(parts)

    @cached_property
    def header(self) -> bytes:
        """The canonical header that the hash of weights begins with: JSON in ASCII, keys sorted, no spaces."""
        value = {
            "buffers": [[entry.name, list(entry.shape), entry.dtype] for entry in self.buffers],
            "format": "peerless-weights-1",
            "parameters": [[entry.name, list(entry.shape), entry.dtype] for entry in self.parameters],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def views(self, flat: NDArray[np.float32]) -> Iterable[tuple[Entry, NDArray[np.float32]]]:
        """Each parameter with its part of `flat` (n,), in the parameter's shape; the parts share `flat`'s memory."""
        start = 0
        for entry in self.parameters:
            yield entry, flat[start : start + entry.elements].reshape(entry.shape)
            start += entry.elements


def flatten(model: nn.Module, layout: Layout) -> NDArray[np.float32]:
    """The parameters as one new vector (n,), float32. Raises WeightsMismatch if the model has another layout."""
    flat = np.empty(layout.elements, np.float32)
    parameters = parameters_of(model, layout)
    for entry, view in layout.views(flat):
        np.copyto(view, parameters[entry.name].detach().numpy())
    return flat


def flat_gradient(model: nn.Module, layout: Layout) -> NDArray[np.float32]:
    """The gradients as one new vector (n,), float32; zeros where a parameter has none (frozen or unused).

    Raises WeightsMismatch if the model has another layout.
    """
    flat = np.empty(layout.elements, np.float32)
    parameters = parameters_of(model, layout)
    for entry, view in layout.views(flat):
        gradient = parameters[entry.name].grad
        if gradient is None:
            view.fill(0)
        else:
            np.copyto(view, (gradient.to_dense() if gradient.is_sparse else gradient).numpy())
    return flat


def read_buffers(model: nn.Module, layout: Layout) -> Buffers:
    """Copies of the buffers, in layout order. Raises WeightsMismatch if the model has another layout."""
    tensors = _buffers(model, layout)
    return {entry.name: tensors[entry.name].detach().numpy().copy() for entry in layout.buffers}


def load(model: nn.Module, layout: Layout, flat: NDArray[np.float32] | None, buffers: Buffers) -> None:
    """Copy `flat` (n,) float32, where it is given, and `buffers` into the model's own tensors; nothing is reallocated,
    so optimizers and tied parameters keep pointing at them.

    Raises WeightsMismatch, before anything is changed, if the values or the model have another layout.
    """
    check_values(layout, flat, buffers)
    parameters, tensors = parameters_of(model, layout), _buffers(model, layout)
    for entry, view in () if flat is None else layout.views(flat):
        np.copyto(parameters[entry.name].detach().numpy(), view)
    for entry in layout.buffers:
        np.copyto(tensors[entry.name].detach().numpy(), buffers[entry.name])


def not_finite(layout: Layout, flat: NDArray[np.float32]) -> str | None:
    """The name of the first parameter for which `flat` (n,) holds NaN or infinity, or None."""
    # NaN and infinity always show in a sum, which takes no memory. Finite values can overflow one in float32, and none
    # in float64, which takes longer.
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(flat.sum()) or np.isfinite(flat.sum(dtype=np.float64)):
            return None
    return next((entry.name for entry, view in layout.views(flat) if not np.isfinite(view).all()), None)


def check_values(layout: Layout, flat: NDArray[np.float32] | None, buffers: Buffers) -> None:
    """Raise WeightsMismatch unless `flat` (where given) and `buffers` have the sizes and dtypes of the layout."""
    if flat is not None and (flat.shape != (layout.elements,) or flat.dtype != np.float32):
        raise WeightsMismatch(
            f"weights of {flat.dtype} {list(flat.shape)} do not fit a model of {layout.elements} float32 parameters"
        )
    expected = {entry.name for entry in layout.buffers}
    if buffers.keys() != expected:
        name = min(buffers.keys() ^ expected)
        what = "lack" if name in expected else "hold an unknown"
        raise WeightsMismatch(f"the buffers {what} {name}, so they do not fit the model")
    for entry in layout.buffers:
        value = buffers[entry.name]
        if value.shape != entry.shape or value.dtype != np.dtype(entry.dtype):
            raise WeightsMismatch(
                f"buffer {entry.name} is {value.dtype} {list(value.shape)}, "
                f"but the model has {entry.dtype} {list(entry.shape)}"
            )


def pack_buffers(layout: Layout, buffers: Buffers) -> bytes:
    """All buffers' bytes in layout order. Raises WeightsMismatch if they do not fit the layout."""
    check_values(layout, None, buffers)
    return b"".join(buffers[entry.name].astype(entry.stored_dtype, copy=False).tobytes() for entry in layout.buffers)


def unpack_buffers(layout: Layout, blob: bytes | memoryview) -> Buffers:
    """What `pack_buffers` packed, as new arrays. Raises CorruptObject if `blob` has another size or a boolean in it
    is neither 0 nor 1."""
    if len(blob) != layout.buffers_bytes:
        raise CorruptObject(f"the buffers take {len(blob)} bytes, but the model's take {layout.buffers_bytes}")
    buffers: Buffers = {}
    start = 0
    for entry in layout.buffers:
        part = blob[start : start + entry.bytes]
        if entry.dtype == "bool" and np.frombuffer(part, np.uint8).max(initial=0) > 1:
            raise CorruptObject(f"buffer {entry.name} holds bytes that are no booleans")
        buffers[entry.name] = np.frombuffer(part, entry.stored_dtype).reshape(entry.shape).astype(entry.dtype)
        start += entry.bytes
    return buffers


def weights_hash(layout: Layout, flat: NDArray[np.float32], buffers: Buffers) -> str:
    """The name of these weights: SHA-256 (64 hex digits) over header, flat vector and packed buffers.

    The header ends where its JSON does, and it fixes the sizes of what follows, so no two sets of weights have the
    same bytes. Raises WeightsMismatch if the values do not fit the layout.
    """
    check_values(layout, flat, buffers)
    digest = hashlib.sha256(layout.header)
    digest.update(np.ascontiguousarray(flat, "<f4").data)
    digest.update(pack_buffers(layout, buffers))
    return digest.hexdigest()


def encode_weights(
    layout: Layout,
    flat: NDArray[np.float32],
    buffers: Buffers,
    *,
    run: str,
    round: int,
    rank: int,
    incarnation: int,
    sha256: str | None = None,
) -> bytes:
    """The weights as a frame of kind WEIGHTS, codec none, whose `base_weights` is their own hash: `sha256`, where the
    caller knows it.

    Raises NonFiniteGradient for weights that training has driven to NaN or infinity.
    """
    if (name := not_finite(layout, flat)) is not None:
        raise NonFiniteGradient(f"the weights of {name} hold NaN or infinity; a smaller optimizer.lr may help")
    payload = raw(flat)
    packed = pack_buffers(layout, buffers)
    header = wire.FrameHeader(
        kind=wire.Kind.WEIGHTS,
        run=run,
        round=round,
        base_round=round,
        base_weights=sha256 or weights_hash(layout, flat, buffers),
        rank=rank,
        incarnation=incarnation,
        samples=0,
        codec="none",
        seed=0,
        elements=layout.elements,
        payload_bytes=len(payload),
        buffers_bytes=len(packed),
    )
    return wire.encode(header, payload, packed)


def decode_weights(
    layout: Layout, blob: bytes | memoryview, expected_hash: str, *, copy: bool = True
) -> tuple[NDArray[np.float32], Buffers]:
    """The flat vector (n,) and the buffers of a weights frame; without `copy` the vector is a view of `blob`.

    Raises CorruptObject when the frame is damaged, WeightsMismatch when it holds other weights than those named
    `expected_hash`, or weights of another model.
    """
    header = wire.decode_header(blob)
    if header.kind != wire.Kind.WEIGHTS or header.codec != "none":
        raise WeightsMismatch(f"a frame of kind {header.kind.name} (codec {header.codec}) came instead of weights")
    if header.elements != layout.elements or header.buffers_bytes != layout.buffers_bytes:
        raise WeightsMismatch(
            f"the weights have {header.elements} parameters and {header.buffers_bytes} bytes of buffers, "
            f"but the model has {layout.elements} and {layout.buffers_bytes}"
        )
    # The name that they must have says more than the frame's digest, which is as long to compute.
    frame = wire.decode(
        blob, expected_elements=layout.elements, expected_buffers_bytes=layout.buffers_bytes, checked=True
    )
    codec("none").check(frame.payload, layout.elements)
    flat = np.frombuffer(frame.payload, "<f4")
    buffers = unpack_buffers(layout, frame.buffers)
    found = weights_hash(layout, flat, buffers)
    if found != expected_hash:
        wire.decode(blob, expected_elements=None, expected_buffers_bytes=None)  # raises for a damaged frame
        raise WeightsMismatch(f"the weights are {found[:12]}…, but {expected_hash[:12]}… were asked for")
    return flat.astype(np.float32, copy=copy), buffers


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _entry(name: str, tensor: torch.Tensor, names: Mapping[int, list[str]]) -> Entry:
    aliases = tuple(other for other in names[id(tensor)] if other != name)
    trainable = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    return Entry(name, tuple(tensor.shape), dtype_name(tensor), aliases, trainable)


def _all_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    buffers = dict(model.named_buffers())
    kept = model.state_dict(keep_vars=True).keys() if buffers else ()
    return {name: buffer for name, buffer in buffers.items() if name in kept}


def parameters_of(model: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    _check_model(layout.parameters, found, "parameter")
    return found


def _buffers(model: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    found = _persistent_buffers(model)
    _check_model(layout.buffers, found, "buffer")
    return found


def _check_model(entries: tuple[Entry, ...], found: Mapping[str, torch.Tensor], what: str) -> None:
    for entry in entries:
        tensor = found.get(entry.name)
        if tensor is None or tuple(tensor.shape) != entry.shape or dtype_name(tensor) != entry.dtype:
            raise WeightsMismatch(f"the model has no {what} {entry.name} of {entry.dtype} {list(entry.shape)}")
    if len(found) != len(entries):
        raise WeightsMismatch(f"the model has {len(found)} {what}s, but its layout has {len(entries)}")
