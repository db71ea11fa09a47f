"""The header of a gradient that goes to S3, and whether a frame there is the one that was asked for: the same for
workers, reducers and peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from contract import wire
from contract.errors import CorruptObject, WeightsMismatch
from contract.extensions import Extension
from contract.keys import Place
from contract.wire import FrameHeader


class Asked(Protocol):
    """What all gradients of one peer's round have in common."""

    @property
    def run(self) -> str: ...

    @property
    def round(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def codec(self) -> str: ...


def header(
    asked: Asked,
    *,
    samples: int,
    loss: float,
    codec: str,
    seed: int,
    elements: int,
    extensions: tuple[Extension, ...],
) -> FrameHeader:
    """Of the frame that answers `asked`: a gradient over `samples` samples, with the mean of their loss, encoded by
    `codec` with `seed`."""
    return FrameHeader(
        kind=wire.Kind.GRADIENT,
        run=asked.run,
        round=asked.round,
        base_round=asked.round,
        base_weights=asked.weights_sha256,
        rank=asked.rank,
        incarnation=asked.incarnation,
        samples=samples,
        loss=loss,
        codec=codec,
        seed=seed,
        elements=elements,
        extensions=extensions,
    )


def differences(header: FrameHeader, asked: Asked, samples: int) -> Mapping[str, tuple[object, object]]:
    """What a frame is (found, asked for) that a gradient over so many samples would not be.

    An earlier incarnation of the rank may have computed it.
    """
    found = {
        "weights": (header.base_weights, asked.weights_sha256),
        "kind": (header.kind, wire.Kind.GRADIENT),
        "run": (header.run, asked.run),
        "round": (header.round, asked.round),
        "rank": (header.rank, asked.rank),
        "incarnation": (header.incarnation, min(header.incarnation, asked.incarnation)),
        "codec": (header.codec, asked.codec),
        "samples": (header.samples, samples),
    }
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def checked(
    blob: bytes, place: Place, asked: Asked, samples: int | None, *, elements: int, buffers_bytes: int
) -> wire.Frame:
    """The frame that was read from `place`, if it is that gradient; `samples` None where any number will do.

    Raises CorruptObject, WeightsMismatch.
    """
    frame = wire.decode(blob, expected_elements=elements, expected_buffers_bytes=buffers_bytes)
    wrong = differences(frame.header, asked, frame.header.samples if samples is None else samples)
    if "weights" in wrong:
        raise WeightsMismatch(
            f"the gradient was computed at weights {frame.header.base_weights[:12]}…, not {asked.weights_sha256[:12]}…"
        )
    for name, (found, wanted) in wrong.items():
        raise CorruptObject(f"{place} holds a frame whose {name} is {found}, asked was for {wanted}")
    return frame
