"""Layout, flat vectors, buffers, the hash of weights, and their stored forms."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from contract import wire
from contract.errors import CorruptObject, ModelError, NonFiniteGradient, WeightsMismatch
from contract.tensors import (
    Buffers,
    Entry,
    Layout,
    decode_weights,
    encode_weights,
    flat_gradient,
    flatten,
    load,
    pack_buffers,
    read_buffers,
    unpack_buffers,
    weights_hash,
)
from tests.fakes.mixed_model import Mixed, Weights, mixed, values


def encoded(weights: Weights, **changes: object) -> bytes:
    layout, flat, buffers = weights
    places: dict[str, object] = {"run": "run-1", "round": 3, "rank": 1, "incarnation": 0, **changes}
    return encode_weights(layout, flat, buffers, **places)  # type: ignore[arg-type]


def test_frozen_parameters_are_parts_of_the_flat_vector() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert Layout.of(model).frozen == ()
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    layout = Layout.of(model)
    assert layout.frozen == (slice(0, 6), slice(9, 12), slice(12, 13))
    assert layout.header == Layout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))).header, "the same weights"
    with pytest.raises(ModelError, match="all parameters of the model are frozen"):
        Layout.of(model.requires_grad_(False))


def test_the_layout_lists_every_tensor_once_in_order_of_registration() -> None:
    layout = Layout.of(mixed())
    assert [(e.name, e.shape, e.dtype) for e in layout.parameters] == [
        ("scale", (), "float32"),
        ("embedding.weight", (5, 3), "float32"),
        ("norm.weight", (3,), "float32"),
        ("norm.bias", (3,), "float32"),
    ]
    assert [(e.name, e.shape, e.dtype) for e in layout.buffers] == [
        ("mask", (3,), "bool"),
        ("table", (4,), "float64"),
        ("norm.running_mean", (3,), "float32"),
        ("norm.running_var", (3,), "float32"),
        ("norm.num_batches_tracked", (), "int64"),
    ]
    assert layout.elements == 1 + 15 + 3 + 3
    assert layout.buffers_bytes == 3 + 4 * 8 + 3 * 4 + 3 * 4 + 8
    assert layout.parameters[1].aliases == ("decoder.weight",)


def test_flatten_keeps_the_order_and_reads_other_memory_formats_by_index() -> None:
    model = nn.Conv2d(2, 3, 2)
    layout = Layout.of(model)
    expected = np.concatenate([model.weight.detach().numpy().ravel(), model.bias.detach().numpy()])  # type: ignore[union-attr]
    assert np.array_equal(flatten(model, layout), expected)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not model.weight.is_contiguous()
    assert np.array_equal(flatten(model, layout), expected)
    load(model, layout, expected[::-1].copy(), {})
    assert np.array_equal(flatten(model, layout), expected[::-1])


def test_load_fills_another_model_in_place() -> None:
    layout, flat, buffers = values(mixed(1))
    target = mixed(2)
    assert not np.array_equal(flatten(target, layout), flat)
    addresses = [tensor.data_ptr() for tensor in target.state_dict().values()]
    flat.flags.writeable = False  # as it comes out of a frame
    load(target, layout, flat, buffers)
    assert [tensor.data_ptr() for tensor in target.state_dict().values()] == addresses
    assert target.decoder.weight is target.embedding.weight
    assert np.array_equal(flatten(target, layout), flat)
    for name, value in read_buffers(target, layout).items():
        assert np.array_equal(value, buffers[name])
        assert value.dtype == buffers[name].dtype


def test_what_was_read_is_a_copy() -> None:
    model = mixed()
    _, flat, buffers = values(model)
    before = flat.copy(), buffers["norm.running_mean"].copy()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.add_(1)
    assert np.array_equal(flat, before[0])
    assert np.array_equal(buffers["norm.running_mean"], before[1])


def test_a_missing_gradient_is_zero() -> None:
    model = mixed()
    layout = Layout.of(model)
    (model.scale * 3 + model.norm.bias.sum() * 2).backward()
    expected = np.zeros(layout.elements, np.float32)
    expected[0], expected[-3:] = 3, 2
    assert np.array_equal(flat_gradient(model, layout), expected)


def test_a_sparse_gradient_is_filled_up() -> None:
    model = nn.Embedding(3, 2, sparse=True)
    model(torch.tensor([1, 1])).sum().backward()
    assert flat_gradient(model, Layout.of(model)).tolist() == [0, 0, 2, 2, 0, 0]


def _half(model: Mixed) -> None:
    model.norm.half()


def _complex_buffer(model: Mixed) -> None:
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))


def _lazy(model: Mixed) -> None:
    model.later = nn.LazyLinear(2)


def _nothing_left(model: Mixed) -> None:
    for module in (model.embedding, model.norm, model.decoder):
        module._parameters.clear()
    model._parameters.clear()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_half, "parameter norm.weight of the model is float16, but must be float32"),
        (_complex_buffer, "buffer phase of the model is complex64"),
        (_lazy, "parameter later.weight of the model has no shape yet"),
        (_nothing_left, "the model has no parameters"),
    ],
)
def test_a_model_that_does_not_fit_the_contract_is_named(change: Callable[[Mixed], None], sentence: str) -> None:
    model = mixed()
    change(model)
    with pytest.raises(ModelError, match=sentence):
        Layout.of(model)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda flat, buffers: (flat[:-1], buffers),
        lambda flat, buffers: (flat.astype(np.float64), buffers),
        lambda flat, buffers: (flat, {name: b for name, b in buffers.items() if name != "mask"}),
        lambda flat, buffers: (flat, {**buffers, "other": np.zeros(1)}),
        lambda flat, buffers: (flat, {**buffers, "table": np.zeros(5)}),
        lambda flat, buffers: (flat, {**buffers, "table": np.zeros(4, np.float32)}),
    ],
    ids=["short", "dtype", "missing buffer", "unknown buffer", "buffer shape", "buffer dtype"],
)
def test_values_of_another_layout_are_refused_before_anything_changes(
    spoil: Callable[[NDArray[np.float32], Buffers], tuple[NDArray[np.float32], Buffers]],
) -> None:
    layout, flat, buffers = values(mixed(1))
    target = mixed(2)
    before = flatten(target, layout)
    wrong = spoil(flat, buffers)
    with pytest.raises(WeightsMismatch):
        load(target, layout, *wrong)
    with pytest.raises(WeightsMismatch):
        weights_hash(layout, *wrong)
    assert np.array_equal(flatten(target, layout), before)


def test_a_model_of_another_layout_is_refused() -> None:
    layout, flat, buffers = values(mixed())
    for other in (nn.Linear(3, 3), nn.Sequential(mixed())):
        with pytest.raises(WeightsMismatch, match="the model has no parameter scale"):
            flatten(other, layout)
        with pytest.raises(WeightsMismatch):
            load(other, layout, flat, buffers)
    larger = mixed()
    larger.extra = nn.Linear(1, 1)
    with pytest.raises(WeightsMismatch, match="6 parameters, but its layout has 4"):
        flatten(larger, layout)


def test_packed_buffers_come_back_bit_for_bit() -> None:
    layout, _, buffers = values(mixed())
    buffers["table"] = np.array([np.nan, -np.inf, -0.0, 5e-324])
    blob = pack_buffers(layout, buffers)
    assert len(blob) == layout.buffers_bytes
    back = unpack_buffers(layout, memoryview(blob))
    assert list(back) == [entry.name for entry in layout.buffers]
    for name, value in buffers.items():
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape)
        assert back[name].tobytes() == value.tobytes()
        back[name][...] = 0  # one's own memory, not the frame's


def test_packed_buffers_are_checked() -> None:
    layout, _, buffers = values(mixed())
    blob = pack_buffers(layout, buffers)
    for wrong in (blob[:-1], blob + b"\0", b""):
        with pytest.raises(CorruptObject, match=f"{len(wrong)} bytes, but the model's take {len(blob)}"):
            unpack_buffers(layout, wrong)
    with pytest.raises(CorruptObject, match="buffer mask holds bytes that are no booleans"):
        unpack_buffers(layout, b"\x02" + blob[1:])


def test_the_hash_is_sha256_over_header_vector_and_buffers() -> None:
    layout = Layout((Entry("w", (2, 1)), Entry("b", ())), (Entry("seen", (), "int64"), Entry("on", (2,), "bool")))
    flat = np.array([1.0, -2.5, 0.25], np.float32)
    buffers: Buffers = {"seen": np.array(7), "on": np.array([True, False])}
    header = (
        b'{"buffers":[["seen",[],"int64"],["on",[2],"bool"]],"format":"peerless-weights-1",'
        b'"parameters":[["w",[2,1],"float32"],["b",[],"float32"]]}'
    )
    expected = hashlib.sha256(header + struct.pack("<3fq2?", 1.0, -2.5, 0.25, 7, True, False)).hexdigest()
    assert weights_hash(layout, flat, buffers) == expected


def test_the_hash_sees_every_bit_and_every_name_shape_and_dtype() -> None:
    flat = np.array([0.0, 1.0], np.float32)
    tick = np.array(4, np.int64)
    counter = Entry("n", (), "int64")
    two = (Entry("a", (1,)), Entry("b", (1,)))

    def hashed(
        parameters: tuple[Entry, ...] = two,
        buffer: Entry = counter,
        flat: NDArray[np.float32] = flat,
        value: NDArray[np.generic] = tick,
    ) -> str:
        return weights_hash(Layout(parameters, (buffer,)), flat, {buffer.name: value})

    variants = [
        hashed(),
        hashed(parameters=(Entry("b", (1,)), Entry("a", (1,)))),
        hashed(parameters=(Entry("a", (2,)),)),
        hashed(parameters=(Entry("a", (1, 1)), Entry("b", (1,)))),
        hashed(flat=np.array([-0.0, 1.0], np.float32)),
        hashed(flat=np.array([0.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)),
        hashed(flat=flat[::-1].copy()),
        hashed(buffer=Entry("m", (), "int64")),
        hashed(value=np.array(5, np.int64)),
        hashed(buffer=Entry("n", (), "float64"), value=tick.view(np.float64)),  # the same bytes
        hashed(buffer=Entry("n", (1,), "int64"), value=tick.reshape(1)),
    ]
    assert len(set(variants)) == len(variants)
    assert hashed(parameters=(Entry("a", (1,), aliases=("tied",)), Entry("b", (1,)))) == variants[0]
    assert hashed(flat=np.repeat(flat, 2)[::2]) == variants[0]  # another stride, the same values


def test_weights_travel_as_a_frame() -> None:
    weights = layout, flat, buffers = values(mixed())
    name = weights_hash(*weights)
    blob = encoded(weights)
    header = wire.decode_header(blob)
    assert (header.kind, header.codec, header.base_weights) == (wire.Kind.WEIGHTS, "none", name)
    assert (header.run, header.round, header.base_round, header.rank) == ("run-1", 3, 3, 1)
    got_flat, got_buffers = decode_weights(layout, blob, name)
    assert got_flat.dtype == np.float32
    assert np.array_equal(got_flat, flat)
    assert pack_buffers(layout, got_buffers) == pack_buffers(layout, buffers)


def test_other_weights_than_those_asked_for_are_refused() -> None:
    weights = layout, flat, buffers = values(mixed())
    name = weights_hash(*weights)
    for other in (values(mixed(1)), (layout, flat, {**buffers, "norm.num_batches_tracked": np.array(9)})):
        with pytest.raises(WeightsMismatch, match=f"{name[:12]}… were asked for"):
            decode_weights(layout, encoded(other), name)
    with pytest.raises(WeightsMismatch, match="but the model has 22 and 67"):
        decode_weights(layout, encoded(values(nn.Linear(2, 2))), name)


def test_a_damaged_frame_or_one_of_another_kind_is_refused() -> None:
    weights = layout, flat, _ = values(mixed())
    name = weights_hash(*weights)
    blob = bytearray(encoded(weights))
    blob[-1] ^= 1
    with pytest.raises(CorruptObject):
        decode_weights(layout, bytes(blob), name)
    with pytest.raises(CorruptObject):
        decode_weights(layout, encoded(weights)[:-1], name)
    header = wire.decode_header(encoded(weights))
    gradient = wire.FrameHeader(
        kind=wire.Kind.GRADIENT,
        run=header.run,
        round=0,
        base_round=0,
        base_weights=name,
        rank=0,
        incarnation=0,
        samples=1,
        codec="none",
        seed=0,
        elements=layout.elements,
    )
    with pytest.raises(WeightsMismatch, match="a frame of kind GRADIENT"):
        decode_weights(layout, wire.encode(gradient, flat.tobytes(), pack_buffers(layout, weights[2])), name)


def test_weights_that_are_not_finite_are_not_sent() -> None:
    layout, flat, buffers = values(mixed())
    flat[-1] = np.inf
    flat[-2] = -np.inf
    with pytest.raises(NonFiniteGradient, match=r"the weights of norm\.bias hold NaN or infinity"):
        encoded((layout, flat, buffers))
