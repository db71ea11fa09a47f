"""Checkpoints: what a peer must know, beside the weights, to go on as if it had never stopped.

The *common* state is the same on all members: the optimizer's moments, its learning rate, what the validation losses
have led to, and the hash of the weights. Its *own* state is what a peer alone has: the residual of error feedback.
Weights and buffers are named by their hash and not repeated. There is no random state: whatever is random in a run
follows from (seed, rank, round, batch).

Both are safetensors files in one canonical form: the header is compact JSON with sorted keys, padded with spaces to a
multiple of 8 bytes, its `__metadata__` holds one string `state` (canonical JSON, `CommonHeader` or `OwnHeader`), and
tensors are little-endian float32 without gaps, in the order named here. n is the number of parameters.

    common   what the peers' optimizer keeps                   contract/optimizers.py has the names, in this order
             nothing                                           before the first step of most, and where nothing is kept
    own      residual (n,), or nothing where it is zero
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract import jsonform
from contract.errors import CorruptObject, ObjectMissing, WeightsMismatch
from contract.feedback import ErrorFeedback
from contract.history import newest_checkpoint, own_states, read_checkpoint
from contract.keys import Place, Places
from contract.optimizers import VECTORS_MAX, check_moments, moments, name_of, set_moments
from contract.records import Checkpoint, MemberRef
from contract.store import Data, ObjectStore
from peer_agent.convergence import Convergence, ConvergenceState
from peer_agent.records import new_nonce
from peer_agent.update import Update

VERSION = 1
#: More than any header takes.
HEADER_BYTES_MAX = 65_536
Array = NDArray[np.float32]
H = TypeVar("H")


@dataclass(frozen=True, kw_only=True)
class CommonHeader:
    """What the common state holds beside tensors."""

    version: int = VERSION
    kind: str = "common"
    run: str
    round: int
    """The round that starts from this state."""
    weights_sha256: str
    rounds_applied: int
    optimizer: str
    convergence: ConvergenceState


@dataclass(frozen=True, kw_only=True)
class OwnHeader:
    """What a peer's own state holds beside the residual."""

    version: int = VERSION
    kind: str = "own"
    run: str
    round: int
    rank: int
    incarnation: int
    includes_next: bool
    """The residual includes the gradient of `round` already (contract/feedback.py)."""
    sha256: str
    """Of the residual's bytes; no record names this object's digest."""


def bytes_max(elements: int) -> int:
    """More bytes than the state of a model of so many parameters takes."""
    return 8 + HEADER_BYTES_MAX + 4 * VECTORS_MAX * elements


def capture_common(
    update: Update, convergence: Convergence | ConvergenceState, *, run: str, round: int, rounds_applied: int
) -> bytes:
    """The common state from which `round` starts, which must be where `update` and `convergence` stand.

    At an orderly end a closing commit may have told the loss of the very weights that `round` starts from. The run that
    goes on tells it again, so it takes the convergence's state from before.
    """
    header = CommonHeader(
        run=run,
        round=round,
        weights_sha256=update.weights_sha256,
        rounds_applied=rounds_applied,
        optimizer=name_of(update.optimizer),
        convergence=convergence.state() if isinstance(convergence, Convergence) else convergence,
    )
    return _pack(header, moments(update.optimizer))


def restore_common(blob: bytes, checkpoint: Checkpoint, update: Update, convergence: Convergence) -> int:
    """Bring `update`, which holds the checkpoint's weights, and its `convergence` to the state of `blob`.

    Returns the rounds applied so far. Raises CorruptObject for what is not this checkpoint's state or not one of this
    optimizer, WeightsMismatch where `update` holds other weights; nothing has changed then.
    """
    what = f"the common state of round {checkpoint.round}"
    if hashlib.sha256(blob).hexdigest() != checkpoint.digest:
        raise CorruptObject(f"{what} does not have the digest that its record names")
    header, found = _unpack(blob, CommonHeader, what)
    told = header.kind, header.run, header.round, header.weights_sha256
    if told != ("common", checkpoint.run, checkpoint.round, checkpoint.weights_sha256):
        raise CorruptObject(f"{what} belongs to another checkpoint")
    if header.rounds_applied < 0:
        raise CorruptObject(f"{what} counts {header.rounds_applied} rounds")
    name = name_of(update.optimizer)
    if header.optimizer != name:
        raise CorruptObject(f"{what} is of the optimizer {header.optimizer}, but the run is configured for {name}")
    if update.weights_sha256 != checkpoint.weights_sha256:
        raise WeightsMismatch(
            f"{what} belongs to weights {checkpoint.weights_sha256[:12]}…, not {update.weights_sha256[:12]}…"
        )
    check_moments(update.optimizer, found, update.flat.size, what)
    set_moments(update.optimizer, found)
    convergence.load(header.convergence)
    return header.rounds_applied


def capture_own(feedback: ErrorFeedback, me: MemberRef, *, run: str, round: int, includes_next: bool = False) -> bytes:
    """This peer's own state from which `round` starts.

    `includes_next`: a contribution to `round` has been made already, and the round is to be computed again (an orderly
    end in the middle of it).
    """
    residual = feedback.state
    tensors = {"residual": residual} if residual.any() else {}
    header = OwnHeader(
        run=run,
        round=round,
        rank=me.rank,
        incarnation=me.incarnation,
        includes_next=includes_next or feedback.includes_next,
        sha256=_digest(tensors),
    )
    return _pack(header, tensors)


def restore_own(blob: bytes, checkpoint: Checkpoint, rank: int, feedback: ErrorFeedback) -> None:
    """Bring `feedback` to the state of `blob`. Raises CorruptObject for what is not this peer's; nothing has changed
    then."""
    what = f"the own state of peer {rank} for round {checkpoint.round}"
    header, found = _unpack(blob, OwnHeader, what)
    if (header.kind, header.run, header.round, header.rank) != ("own", checkpoint.run, checkpoint.round, rank):
        raise CorruptObject(f"{what} is another peer's, or of another checkpoint")
    empty = np.zeros_like(feedback.state)
    if found and (found.keys() != {"residual"} or found["residual"].shape != empty.shape):
        raise CorruptObject(f"{what} is no residual of {empty.size} values")
    if _digest(found) != header.sha256:
        raise CorruptObject(f"{what} does not have the digest that it names")
    feedback.load(found["residual"].astype(np.float32) if found else empty, header.includes_next)


def common_header(blob: bytes, what: str) -> CommonHeader:
    """What a common state says of itself. Raises CorruptObject."""
    return _unpack(blob, CommonHeader, what)[0]


# ---------------------------------------------------------------------------------------------- objects and records


class Checkpoints:
    """The checkpoints of one run, for one peer. Everything may raise StoreUnavailable and CorruptObject.

    `elements` is n. `own_states`: whether peers have a state of their own at all, which is where error feedback is on.
    `fence` raises Superseded where this process must write nothing any more. `sign` completes a record that has
    everything but its signature.
    """

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        me: MemberRef,
        *,
        elements: int,
        own_states: bool,
        nonce: Callable[[], str] = new_nonce,
        fence: Callable[[], None] = lambda: None,
        sign: Callable[[Checkpoint], Checkpoint] = lambda record: record,
    ) -> None:
        self._store, self._places, self._me = store, places, me
        self._bytes_max, self._own_states = bytes_max(elements), own_states
        self._nonce, self._fence, self._sign = nonce, fence, sign

    def write_own(self, round: int, blob: Data) -> int:
        """Store this peer's own state before `round`, over what an earlier try has left; returns its bytes."""
        self._fence()
        return self._store.put(self._places.checkpoint_own(round, self._me.rank, self._me.incarnation), blob).size

    def write_common(self, round: int, weights_sha256: str, members: Sequence[MemberRef], blob: Data) -> Checkpoint:
        """Store the common state before `round` and record it; the record that counts, whoever wrote it.

        The weights must lie in S3. The object is created once, too: a record names the digest of what lies there, so a
        second writer with other bits (another processor) records the first one's.
        """
        if (there := read_checkpoint(self._store, self._places, round)) is not None:
            return there
        self._fence()
        place = self._places.checkpoint_common(round)
        if self._store.create(place, blob) is None:
            blob = self._read(place)
            header = common_header(blob, str(place))
            if (header.run, header.round, header.weights_sha256) != (self._places.run, round, weights_sha256):
                raise CorruptObject(f"{place} holds the state of other weights than those of round {round}")
        mine = self._sign(
            Checkpoint(
                run=self._places.run,
                round=round,
                weights_sha256=weights_sha256,
                key=place.key,
                digest=hashlib.sha256(blob).hexdigest(),
                members=tuple(members),
                writer=self._me,
                nonce=self._nonce(),
            )
        )
        self._fence()
        if self._store.create(self._places.checkpoint(round), mine.to_json()) is not None:
            return mine
        there = read_checkpoint(self._store, self._places, round)
        if there is None:
            raise ObjectMissing(f"{self._places.checkpoint(round)} exists, says S3, and then does not")
        return there

    def latest(self, before: int | None = None) -> Checkpoint | None:
        """The newest one (of a round below `before`) whose objects are there and whose members all left their own
        state, or None. Where there are no own states this is `latest_common`."""
        return newest_checkpoint(self._store, self._places, before=before, with_own=self._own_states)

    def latest_common(self, before: int | None = None) -> Checkpoint | None:
        """The newest one (of a round below `before`) whose weights and common state are there, or None.

        Members whose own state is missing lose what their error feedback held.
        """
        return newest_checkpoint(self._store, self._places, before=before)

    def read_common(self, checkpoint: Checkpoint) -> bytes:
        """The common state, of this run or an earlier one, for `restore_common`, which checks its digest. Raises
        ObjectMissing."""
        return self._read(self._places.of_run(checkpoint.run).checkpoint_common(checkpoint.round))

    def read_own(self, checkpoint: Checkpoint, rank: int) -> bytes | None:
        """The own state of `rank` in its latest incarnation, likewise for `restore_own`; None where it left none."""
        places = self._places.of_run(checkpoint.run)
        incarnation = own_states(self._store, places, checkpoint.round).get(rank)
        if incarnation is None:
            return None
        return self._read(places.checkpoint_own(checkpoint.round, rank, incarnation))

    def _read(self, place: Place) -> bytes:
        """The bytes, once their number is known to be one that such a state can have."""
        found = self._store.head(place)
        if found is not None and found.size > self._bytes_max:
            raise CorruptObject(f"{place} has {found.size} bytes, more than the state of this model takes")
        return self._store.get(place)


# --------------------------------------------------------------------------------------------------------- the file


def _pack(header: CommonHeader | OwnHeader, tensors: Mapping[str, Array]) -> bytes:
    """One allocation of the file's size, into which the tensors are copied: they may be as large as the model."""
    shapes = {name: array.shape for name, array in tensors.items()}
    head = _head(jsonform.dumps(jsonform.to_dict(header)).decode(), shapes)
    parts = (np.ascontiguousarray(array, "<f4").data for array in tensors.values())
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def _unpack(blob: bytes, cls: type[H], what: str) -> tuple[H, dict[str, Array]]:
    """Header and tensors, which are views of `blob`. Raises CorruptObject unless `_pack` would have written this."""
    size = int.from_bytes(blob[:8], "little")
    if not 0 < size <= min(HEADER_BYTES_MAX, len(blob) - 8):
        raise CorruptObject(f"{what} is cut off, or no state of a checkpoint")
    head = bytes(blob[8 : 8 + size])
    value = jsonform.loads(head, what)
    metadata = value.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("state"), str):
        raise CorruptObject(f"{what} lacks its metadata")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in sorted(value.items(), key=lambda item: _offset(item[1], what)):
        shapes[name] = _shape(entry, what)
    if head != _head(metadata["state"], shapes):
        raise CorruptObject(f"{what} is not in the canonical form")
    if len(blob) != 8 + size + sum(4 * prod(shape) for shape in shapes.values()):
        raise CorruptObject(f"{what} has {len(blob)} bytes, which is not what its header says")
    fields = jsonform.loads(metadata["state"], what)
    if type(fields.get("version")) is not int or fields["version"] != VERSION:
        raise CorruptObject(f"{what} has version {fields.get('version')!r}; this build reads version {VERSION}")
    header = jsonform.from_dict(cls, fields, what)
    tensors, start = {}, 8 + size
    for name, shape in shapes.items():
        tensors[name] = np.frombuffer(blob, "<f4", prod(shape), start).reshape(shape)
        start += 4 * prod(shape)
    return header, tensors


def _head(state: str, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    value: dict[str, Any] = {"__metadata__": {"state": state}}
    start = 0
    for name, shape in shapes.items():
        end = start + 4 * prod(shape)
        value[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    head = jsonform.dumps(value)
    return head + b" " * (-len(head) % 8)


def _offset(entry: Any, what: str) -> tuple[int, int]:
    """Where a tensor begins and ends, for sorting; anything else in the header is not canonical."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(value) for value in offsets] != [int, int]:
        raise CorruptObject(f"{what} holds a tensor without a place")
    return offsets[0], offsets[1]


def _shape(entry: dict[str, Any], what: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise CorruptObject(f"{what} holds a tensor without a shape")
    return tuple(shape)


def _digest(tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for array in tensors.values():
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
