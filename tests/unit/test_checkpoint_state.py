"""The state in a checkpoint: going on from it gives the bits of never having stopped, and nothing damaged is taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.codec import codec
from contract.config import EarlyStoppingConfig, OptimizerConfig, SchedulerConfig
from contract.errors import CorruptObject, WeightsMismatch
from contract.feedback import ErrorFeedback
from contract.records import Checkpoint, MemberRef
from contract.tensors import Entry, Layout
from contract.training import OPTIMIZERS
from contract.wire import Frame, FrameHeader, Kind, decode, encode
from peer_agent.checkpoint import bytes_max, capture_common, capture_own, restore_common, restore_own
from peer_agent.convergence import Convergence
from peer_agent.update import Update

N, FROZEN = 23, 3
LAYOUT = Layout(
    (Entry("frozen", (FROZEN,), trainable=False), Entry("w", (N - FROZEN,))),
    (Entry("mean", (2,)), Entry("seen", (), "int64")),
)
ME = MemberRef(rank=1, incarnation=3)
ADAM = OptimizerConfig(name="adam", lr=0.05, weight_decay=0.01)
CONFIGS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd without momentum": OptimizerConfig(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.01),
    "sgd with nesterov": OptimizerConfig(name="sgd", lr=0.05, nesterov=True),
    "adam with amsgrad": OptimizerConfig(name="adam", lr=0.05, options={"amsgrad": True, "beta2": 0.95}),
    "rmsprop": OptimizerConfig(name="rmsprop", lr=0.05),
    "rmsprop with all": OptimizerConfig(name="rmsprop", lr=0.05, options={"momentum": 0.5, "centered": True}),
    "rprop": OptimizerConfig(name="rprop", lr=0.05, options={"step_max": 0.5}),
    "clipped": OptimizerConfig(name="nadam", lr=0.05, clip_norm=1.0, clip_value=0.5),
    **{
        name: OptimizerConfig(name=name, lr=0.05, weight_decay=0.01)
        for name in OPTIMIZERS.keys() - {"sgd", "rmsprop", "rprop"}
    },
}
NAMES = sorted(CONFIGS)
SCHEDULES = ("plateau", "constant", "cosine", "linear", "step")
ROUNDS = 12


class Peer:
    """The state of one peer, driven by rounds whose gradients and losses depend on their number alone."""

    def __init__(self, config: OptimizerConfig, weights: Update | None = None, schedule: Any = "plateau") -> None:
        flat = np.linspace(-1, 1, N, dtype=np.float32) if weights is None else weights.flat
        buffers = {"mean": np.zeros(2, np.float32), "seen": np.array(0)} if weights is None else weights.buffers
        self.update = Update(LAYOUT, flat, buffers, config)
        scheduler = SchedulerConfig(name=schedule, warmup_rounds=2, step_rounds=3, patience=1, factor=0.5)
        self.schedule = schedule
        self.convergence = Convergence(self.update.optimizer, scheduler, EarlyStoppingConfig(patience=3), ROUNDS)
        self.told: list[Any] = []
        self.rounds = 0

    def round(self, round: int) -> None:
        loss = float(np.random.default_rng(round + 500).uniform(0.5, 1.5))
        self.told.append(self.convergence.observe(self.update.weights_sha256, loss))
        frames = [frame(round, rank, self.update) for rank in range(2)]
        self.convergence.pace(round)
        self.told.append(self.update.step([f.header for f in frames], frames))
        self.rounds += 1

    def capture(self, round: int) -> bytes:
        return capture_common(self.update, self.convergence, run="run", round=round, rounds_applied=self.rounds)


def frame(round: int, rank: int, update: Update) -> Frame:
    gradient = np.random.default_rng(10 * round + rank).standard_normal(N).astype(np.float32)
    buffers = (update.buffers["mean"] + np.float32(rank)).tobytes() + (update.buffers["seen"] + 1).tobytes()
    header = FrameHeader(
        kind=Kind.UPDATE, run="run", round=round, base_round=round, base_weights=update.weights_sha256, rank=rank,
        incarnation=1, samples=rank + 1, codec="none", seed=0, elements=N,
    )  # fmt: skip
    blob = encode(header, codec("none").encode(gradient, 0), buffers)
    return decode(blob, expected_elements=N, expected_buffers_bytes=LAYOUT.buffers_bytes)


def record(blob: bytes, round: int, weights: str) -> Checkpoint:
    return Checkpoint(
        run="run", round=round, weights_sha256=weights, key="key", digest=hashlib.sha256(blob).hexdigest(),
        members=(MemberRef(rank=0, incarnation=1), ME), writer=ME, nonce="n",
    )  # fmt: skip


def restored(peer: Peer, config: OptimizerConfig, round: int) -> Peer:
    """Another process that has the weights and the checkpoint's object."""
    blob, found = peer.capture(round), Peer(config, peer.update, peer.schedule)
    found.rounds = restore_common(
        blob, record(blob, round, peer.update.weights_sha256), found.update, found.convergence
    )
    return found


@pytest.mark.parametrize("name", NAMES)
@given(interruptions=st.sets(st.integers(0, ROUNDS - 1)), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=12, deadline=None)
def test_going_on_gives_the_bits_of_never_having_stopped(name: str, interruptions: set[int], schedule: str) -> None:
    config = CONFIGS[name]
    whole = Peer(config, schedule=schedule)
    for round in range(ROUNDS):
        whole.round(round)
    told, peer = [], Peer(config, schedule=schedule)
    for round in range(ROUNDS):
        if round in interruptions:
            told += peer.told
            peer = restored(peer, config, round)
        peer.round(round)
    assert told + peer.told == whole.told
    assert peer.capture(ROUNDS) == whole.capture(ROUNDS)
    assert peer.rounds == ROUNDS


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_one_that_safetensors_reads(name: str) -> None:
    peer = Peer(CONFIGS[name])
    begins_with = {"sum", "step"} if name == "adagrad" else set()
    assert safetensors.numpy.load(peer.capture(0)).keys() == begins_with
    for round in range(3):
        peer.round(round)
    found = safetensors.numpy.load(peer.capture(3))
    (parameter,) = peer.update.optimizer.param_groups[0]["params"]
    kept = peer.update.optimizer.state[parameter]
    assert found.keys() == kept.keys()
    for key, value in found.items():
        np.testing.assert_array_equal(value, kept[key].numpy())
    assert len(peer.capture(3)) <= bytes_max(N)


def test_a_captured_state_is_a_copy() -> None:
    """The optimizer goes on in place while the object is on its way."""
    config = ADAM
    peer = Peer(config)
    peer.round(0)
    blob = capture_common(peer.update, peer.convergence, run="run", round=1, rounds_applied=1)
    digest = hashlib.sha256(blob).hexdigest()
    other = restored(peer, config, 1)
    peer.round(1)
    assert hashlib.sha256(blob).hexdigest() == digest
    other.round(1)
    assert other.capture(2) == peer.capture(2)
    (parameter,) = other.update.optimizer.param_groups[0]["params"]
    assert all(isinstance(value, torch.Tensor) for value in other.update.optimizer.state[parameter].values())


def edit(blob: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object], data: bytes | None = None) -> bytes:
    """The same file with another header; canonical, so that its content alone is wrong."""
    size = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8 : 8 + size])
    state = json.loads(head["__metadata__"]["state"])
    change(head, state)
    if "__metadata__" in head:
        head["__metadata__"]["state"] = json.dumps(state, sort_keys=True, separators=(",", ":"))
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + (blob[8 + size :] if data is None else data)


def change(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda head, state: state.update(fields)


DAMAGED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("cut off", lambda blob: blob[:-1]),
    ("empty", lambda blob: b""),
    ("seven bytes", lambda blob: blob[:7]),
    ("header only", lambda blob: blob[: 8 + int.from_bytes(blob[:8], "little")]),
    ("longer", lambda blob: blob + b"\0" * 4),
    ("a header of 2^60 bytes", lambda blob: (2**60).to_bytes(8, "little") + blob[8:]),
    ("no JSON", lambda blob: blob[:8] + b"x" + blob[9:]),
    ("not canonical", lambda blob: blob.replace(b'":{"', b'": {"', 1)),
    ("no metadata", lambda blob: edit(blob, lambda head, state: head.pop("__metadata__"))),
    ("more metadata", lambda blob: edit(blob, lambda head, state: head["__metadata__"].update(more="x"))),
    ("version 2", lambda blob: edit(blob, change(version=2))),
    ("version true", lambda blob: edit(blob, change(version=True))),
    ("another kind", lambda blob: edit(blob, change(kind="own"))),
    ("another run", lambda blob: edit(blob, change(run="other"))),
    ("another round", lambda blob: edit(blob, change(round=4))),
    ("other weights", lambda blob: edit(blob, change(weights_sha256="0" * 64))),
    ("rounds below zero", lambda blob: edit(blob, change(rounds_applied=-1))),
    ("another optimizer", lambda blob: edit(blob, change(optimizer="adamw"))),
    ("an unknown field", lambda blob: edit(blob, change(more=1))),
    ("a missing field", lambda blob: edit(blob, lambda head, state: state.pop("round"))),
    ("a negative count", lambda blob: edit(blob, lambda head, state: state["convergence"].update(validations=-1))),
    ("a negative rate", lambda blob: edit(blob, lambda head, state: state["convergence"].update(lr=-0.1))),
    ("best without loss", lambda blob: edit(blob, lambda head, state: state["convergence"].update(best_loss=None))),
    ("one moment", lambda blob: edit(blob, lambda head, state: head.pop("exp_avg_sq"))),
    ("no moments but bytes", lambda blob: edit(blob, lambda head, state: [head.pop(n) for n in list(head)[1:]])),
    ("another dtype", lambda blob: edit(blob, lambda head, state: head["step"].update(dtype="I32"))),
    ("another name", lambda blob: edit(blob, lambda head, state: head.update(stepp=head.pop("step")))),
    ("a vector of 2^60", lambda blob: edit(blob, lambda head, state: head["exp_avg"].update(shape=[2**60]))),
    ("a negative shape", lambda blob: edit(blob, lambda head, state: head["exp_avg"].update(shape=[-N]))),
    ("no place", lambda blob: edit(blob, lambda head, state: head["exp_avg"].pop("data_offsets"))),
    ("no shape", lambda blob: edit(blob, lambda head, state: head["exp_avg"].pop("shape"))),
    ("a tensor that is none", lambda blob: edit(blob, lambda head, state: head.update(exp_avg=1))),
    ("a count that is none", lambda blob: blob[:-4] + np.float32(np.nan).tobytes()),
    ("a count below zero", lambda blob: blob[:-4] + np.float32(-1).tobytes()),
]


@pytest.mark.parametrize(("what", "damage"), DAMAGED, ids=[what for what, _ in DAMAGED])
def test_a_damaged_common_state_is_refused_and_changes_nothing(what: str, damage: Callable[[bytes], bytes]) -> None:
    config = ADAM
    peer = Peer(config)
    for round in range(3):
        peer.round(round)
    blob = damage(peer.capture(3))
    assert blob != peer.capture(3)
    fresh = Peer(config, peer.update)
    before = fresh.capture(3)
    with pytest.raises(CorruptObject):
        restore_common(blob, record(blob, 3, peer.update.weights_sha256), fresh.update, fresh.convergence)
    assert fresh.capture(3) == before


def test_every_bit_counts() -> None:
    peer = Peer(CONFIGS["nadam"])
    peer.round(0)
    blob = peer.capture(1)
    checkpoint = record(blob, 1, peer.update.weights_sha256)
    for at in range(0, len(blob), 7):
        damaged = blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :]
        with pytest.raises(CorruptObject, match="digest"):
            restore_common(damaged, checkpoint, peer.update, peer.convergence)


def test_other_weights_another_model_or_optimizer_are_told() -> None:
    config = CONFIGS["sgd"]
    peer = Peer(config)
    peer.round(0)
    blob = peer.capture(1)
    checkpoint = record(blob, 1, peer.update.weights_sha256)
    other = Peer(config)
    with pytest.raises(WeightsMismatch, match="belongs to weights"):
        restore_common(blob, checkpoint, other.update, other.convergence)
    for changed, sentence in ((ADAM, "configured for adam"), (CONFIGS["sgd without momentum"], "moments of sgd")):
        other = Peer(changed, peer.update)
        with pytest.raises(CorruptObject, match=sentence):
            restore_common(blob, checkpoint, other.update, other.convergence)


# --------------------------------------------------------------------------------------------------- the own state


def feedback() -> ErrorFeedback:
    return ErrorFeedback(codec("qsgd4"), N)


def gradient(round: int) -> np.ndarray:
    return np.random.default_rng(round).standard_normal(N).astype(np.float32)


@given(interruptions=st.sets(st.integers(0, 9)), made=st.sets(st.integers(0, 9)), left_out=st.sets(st.integers(0, 9)))
@settings(max_examples=50, deadline=None)
def test_error_feedback_goes_on_bit_for_bit(interruptions: set[int], made: set[int], left_out: set[int]) -> None:
    """A process stops at the start of a round, or (`made`) with its contribution to that round sent in vain; the next
    one computes the round again."""

    def go(stops: set[int]) -> tuple[list[bytes], np.ndarray]:
        sent, own = [], feedback()
        for round in range(10):
            if round in stops:
                if round in made:
                    own.encode(gradient(round), seed=round)
                blob = capture_own(own, ME, run="run", round=round, includes_next=round in made)
                own = feedback()
                restore_own(blob, record(blob, round, "0" * 64), ME.rank, own)
            sent.append(own.encode(gradient(round), seed=round))
            if round not in left_out:
                own.taken(sent[-1])
        return sent, own.state

    whole, expected = go(set())
    sent, state = go(interruptions)
    assert sent == whole
    np.testing.assert_array_equal(state, expected)


def test_a_residual_of_zero_takes_no_room() -> None:
    assert len(capture_own(feedback(), ME, run="run", round=4)) < 500


OWN_DAMAGED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("cut off", lambda blob: blob[:-1]),
    ("a flipped bit", lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])),
    ("another's rank", lambda blob: edit(blob, change(rank=0))),
    ("another round", lambda blob: edit(blob, change(round=5))),
    ("another run", lambda blob: edit(blob, change(run="other"))),
    ("another kind", lambda blob: edit(blob, change(kind="common"))),
    ("another version", lambda blob: edit(blob, change(version=0))),
    ("another tensor", lambda blob: edit(blob, lambda head, state: head.update(more=head.pop("residual")))),
    ("another shape", lambda blob: edit(blob, lambda head, state: head["residual"].update(shape=[1, N]))),
    ("no tensor", lambda blob: edit(blob, lambda head, state: head.pop("residual"), data=b"")),
]


@pytest.mark.parametrize(("what", "damage"), OWN_DAMAGED, ids=[what for what, _ in OWN_DAMAGED])
def test_a_damaged_own_state_is_refused_and_changes_nothing(what: str, damage: Callable[[bytes], bytes]) -> None:
    own = feedback()
    own.encode(gradient(0), seed=0)
    blob = damage(capture_own(own, ME, run="run", round=4))
    other = feedback()
    other.encode(gradient(1), seed=1)
    before = other.state
    with pytest.raises(CorruptObject):
        restore_own(blob, record(blob, 4, "0" * 64), ME.rank, other)
    np.testing.assert_array_equal(other.state, before)


def test_infinity_in_a_residual_is_refused() -> None:
    own = feedback()
    own.encode(gradient(0), seed=0)
    whole = capture_own(own, ME, run="run", round=4)
    data = np.full(N, np.inf, "<f4").tobytes()
    blob = edit(whole, change(sha256=hashlib.sha256(data).hexdigest()), data=data)
    with pytest.raises(CorruptObject, match="finite"):
        restore_own(blob, record(blob, 4, "0" * 64), ME.rank, feedback())
