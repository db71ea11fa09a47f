"""The part of a weights object that training changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contract import trained_part
from contract.errors import CorruptObject, WeightsMismatch
from contract.tensors import Layout, encode_weights, flatten, read_buffers, weights_hash
from contract.trained_part import TrainedPart

RUN = "some-run"


def model(widths: Sequence[int], frozen: Sequence[bool], norm: bool) -> nn.Module:
    """Layers without bias, of which some are frozen, with BatchNorm behind the last one if wanted."""
    layers: list[nn.Module] = []
    for inputs, outputs, still in zip(widths[:-1], widths[1:], frozen, strict=True):
        layers.append(nn.Linear(inputs, outputs, bias=False).requires_grad_(not still))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1])] if norm else []))


def after(made: nn.Module, layout: Layout) -> tuple[str, bytes]:
    """The name and the object of weights in which all that may change has changed."""
    flat, buffers = flatten(made, layout), read_buffers(made, layout)
    before = flat.copy()
    flat += 1
    for part in layout.frozen:
        flat[part] = before[part]
    buffers = {name: value + 1 for name, value in buffers.items()}
    frame = encode_weights(layout, flat, buffers, run=RUN, round=4, rank=1, incarnation=2)
    return weights_hash(layout, flat, buffers), frame


@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=7),
    data=st.data(),
    norm=st.booleans(),
    gap=st.sampled_from([0, 40, 10_000]),
)
def test_earlier_weights_and_the_part_are_the_later_weights(
    widths: list[int], data: st.DataObject, norm: bool, gap: int
) -> None:
    count = len(widths) - 1
    frozen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda each: not all(each)))
    made = model(widths, frozen, norm)
    layout = Layout.of(made)
    name, frame = after(made, layout)
    read: list[tuple[int, int]] = []

    def fetch(offset: int, length: int) -> bytes:
        read.append((offset, length))
        return frame[offset : offset + length]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_part, "GAP_BYTES", gap)
        patch.setattr(trained_part, "MOST", 1.0)
        part = TrainedPart.of(layout, RUN)
        assert part is not None
        flat, buffers = part.applied(flatten(made, layout), part.read(fetch), name)
    assert weights_hash(layout, flat, buffers) == name
    assert sum(length for _, length in read) == part.nbytes
    assert all(one[0] + one[1] + gap <= other[0] for one, other in pairwise(read))
    if gap == 0:
        still = sum(4 * (part.stop - part.start) for part in layout.frozen)
        assert part.nbytes == 4 * layout.elements + layout.buffers_bytes - still


def test_there_is_none_where_most_changes() -> None:
    assert TrainedPart.of(Layout.of(model([8, 8, 8], [False, False], True)), RUN) is None
    assert TrainedPart.of(Layout.of(model([8, 8, 8], [True, False], True)), RUN) is None, "half, and more"
    assert TrainedPart.of(Layout.of(model([600, 600, 8], [True, False], True)), RUN) is not None


def test_what_does_not_fit_is_refused() -> None:
    made = model([600, 600, 8], [True, False], True)
    layout = Layout.of(made)
    part = TrainedPart.of(layout, RUN)
    assert part is not None
    name, frame = after(made, layout)
    right = part.read(lambda offset, length: frame[offset : offset + length])
    with pytest.raises(CorruptObject, match=r"has \d+ bytes, expected \d+"):
        part.applied(flatten(made, layout), right[:-1], name)
    other = flatten(made, layout)
    other[0] += 1  # weights of another run
    with pytest.raises(WeightsMismatch, match="were asked for"):
        part.applied(other, right, name)
