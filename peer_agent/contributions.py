"""Contributions: making and storing the own one, keeping those of others until the commit, and reading them again.

A contribution is created in S3 first and announced afterwards (invariant 3). Whatever is kept in the spool has been
read whole and matches its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from contract import wire
from contract.codec import GradientCodec, codec
from contract.errors import CorruptObject, NonFiniteGradient, ObjectMissing, Superseded, WeightsMismatch
from contract.feedback import ErrorFeedback
from contract.header import MAX_HEADER_BYTES
from contract.keys import Place, Places
from contract.objective import Evaluation
from contract.packing import packing
from contract.records import Commit, Contributor, MemberRef
from contract.runspec import RunSpec
from contract.seeds import public_seed
from contract.sharding import Sharding
from contract.store import ObjectStore
from contract.tensors import Layout, pack_buffers, unpack_buffers
from contract.wire import Frame, FrameHeader
from peer_agent.pieces import Pieces
from peer_agent.ports import RoundGradient
from peer_agent.spool import Spool

#: Of more members than these it takes one request to see which contributions there are before any is asked for.
LOOKS = 12
#: What using a frame raises when no gradient can be made of it.
UNUSABLE = (CorruptObject, NonFiniteGradient, WeightsMismatch)


class UnusableContent(CorruptObject):
    """A contribution that is what its sender announced, and no gradient."""


class Contributions:
    """One peer's dealings with frames. `raw_bytes` and `encoded_bytes` sum up its own gradients before and after."""

    def __init__(
        self,
        spec: RunSpec,
        layout: Layout,
        me: MemberRef,
        store: ObjectStore,
        spool: Spool,
        sign: Callable[[bytes], bytes] = lambda frame: frame,
        doubt: Callable[[FrameHeader], str | None] = lambda header: None,
        pieces: Pieces | None = None,
    ) -> None:
        """`sign` puts this process's signature on a frame; `doubt` says why a frame is not by whom it says, or None;
        `pieces` puts and reads the pieces of contributions that are cut."""
        self._spec, self._layout, self._me, self._store, self._spool = spec, layout, me, store, spool
        self._sign, self._doubt = sign, doubt
        self._packing = packing(spec.config.exchange.packing)
        self._pieces = pieces or Pieces(store, spec.places, self._packing)
        self._codec = codec(spec.config.exchange.codec)
        self.feedback = ErrorFeedback(self._codec, layout.elements) if spec.config.exchange.error_feedback else None
        """This peer's residual; None where error feedback is off."""
        self.made: int | None = None
        """The latest round for which this process has made a contribution."""
        self._spoiled: set[str] = set()  # digests of what commits list and no gradient can be made of
        self.raw_bytes = 0
        self.encoded_bytes = 0

    def make(
        self,
        round: int,
        base_weights: str,
        gradient: RoundGradient,
        validation: Evaluation | None,
        sharding: Sharding | None = None,
    ) -> bytes:
        """The frame of this peer's contribution, cut as `sharding` says. Raises NonFiniteGradient.

        The seed of the rounding differs between peers and rounds, or their errors would add up instead of averaging
        out; it depends on nothing else, so the same run gives the same bytes (invariant 8).
        """
        seed = public_seed(self._spec.config.seed, "rounding", self._me.rank, round)
        used = self._codec if sharding is None else sharding.codec
        if self.feedback is None:
            payload = used.encode(gradient.gradient, seed)
        else:
            payload = self.feedback.encode(gradient.gradient, seed, used)
        self.made = round
        header = FrameHeader(
            kind=wire.Kind.UPDATE,
            run=self._spec.run,
            round=round,
            base_round=round,
            base_weights=base_weights,
            rank=self._me.rank,
            incarnation=self._me.incarnation,
            samples=gradient.samples,
            loss=gradient.loss,
            validation_loss=None if validation is None else validation.loss,
            codec=self._codec.name,
            seed=seed,
            elements=self._layout.elements,
            extensions=()
            if validation is None or validation.accuracy is None
            else (wire.accuracy_extension(validation.accuracy),),
        )
        buffers = pack_buffers(self._layout, gradient.buffers)
        encode = wire.encode if sharding is None else sharding.frame
        frame = self._sign(encode(header, payload, buffers))
        self.raw_bytes += gradient.gradient.nbytes
        self.encoded_bytes += len(frame) - self._layout.buffers_bytes
        return frame

    def store_own(self, frame: bytes, members: Sequence[MemberRef] = ()) -> tuple[FrameHeader, bytes]:
        """Create the own frame in S3, and what now is the contribution: earlier bytes that lie there already win.

        `members` are those of the round, in rank order. Raises Superseded when what lies there is not this peer's
        contribution from the same weights.
        """
        header = wire.decode_header(frame)
        place = self.place(header.round, self._me)
        if header.table is not None:
            self._pieces.put(frame, self._sharding(header), self._me, members)
        stored = self._packing.pack(frame) if header.table is None else wire.header_part(frame)
        if self._store.create(place, stored) is None:
            earlier = self._whole(place, header)
            found = self._open(earlier).header
            if (found.round, found.rank, found.base_weights) != (header.round, header.rank, header.base_weights):
                raise Superseded(f"{place} holds a contribution that this process did not make")
            header, frame = found, earlier
        if header.table is not None:
            self._pieces.look_for_others(header.round, self._me, members)
        self._note_use(self._decode(frame, checked=True))
        self._spool.keep(header, frame)
        return header, frame

    def settle(self, headers: Iterable[FrameHeader]) -> None:
        """These contributions were applied, in one round: error feedback keeps what this peer computed beyond its own.

        Whatever of this rank was applied counts, be it earlier bytes from S3 or a predecessor's: they stand for the
        same gradient. Where this process has made none for that round, it has nothing to settle.
        """
        if self.feedback is None:
            return
        for frame in self.frames(h for h in headers if h.rank == self._me.rank and h.round == self.made):
            self.feedback.taken(frame.payload, self._codec_of(frame.header))

    def announcement(self, frame: bytes) -> bytes:
        """What a message about the frame carries: all of it, or its header where that would be too large."""
        whole = len(frame) <= self._spec.config.exchange.inline_bytes and wire.decode_header(frame).table is None
        return frame if whole else wire.header_part(frame)

    def read_message(self, body: bytes) -> tuple[FrameHeader, bytes]:
        """Header and checked frame of a message; an empty frame where it carries the header alone. Raises
        CorruptObject."""
        header = wire.decode_header(body)
        if len(body) == len(wire.header_part(body)):
            return header, b""
        return self._decode(body).header, body

    def keep(self, header: FrameHeader, frame: bytes) -> int:
        """Put a frame that was checked into the spool, or fetch and check it where `frame` is empty; returns its bytes.

        Raises ObjectMissing and CorruptObject when S3 does not hold what was announced, UnusableContent when it does,
        and no gradient can be made of it.
        """
        checked = bool(frame)
        if not frame:
            member = MemberRef(rank=header.rank, incarnation=header.incarnation)
            frame = self._get(self.place(header.round, member))
        decoded = self._decode(frame, header.digest, checked)
        if decoded.header != header:
            raise CorruptObject(f"a contribution of rank {header.rank} is not the frame that was announced")
        try:
            self.use(decoded)
        except UNUSABLE as error:
            raise UnusableContent(str(error)) from error
        self._spool.keep(header, frame)
        return len(frame)

    def use(self, frame: Frame) -> None:
        """Raises CorruptObject, NonFiniteGradient or WeightsMismatch for a frame of which no gradient can be made."""
        self._codec_of(frame.header).check(frame.payload, self._layout.elements)
        buffers = unpack_buffers(self._layout, frame.buffers)
        if not all(np.isfinite(value).all() for value in buffers.values() if np.issubdtype(value.dtype, np.floating)):
            raise CorruptObject("a buffer holds NaN or infinity")

    def fetch(self, contributor: Contributor, round: int, places: Places | None = None) -> FrameHeader:
        """Put a contribution that a commit lists into the spool; of this run, or of the earlier one of `places`.

        Raises ObjectMissing, and CorruptObject when it is not what the commit says.
        """
        place = (places or self._spec.places).contribution(round, contributor.rank, contributor.incarnation)
        if place.key != contributor.key:
            raise CorruptObject(f"commit {round} lists {contributor.key}, where {place.key} belongs")
        frame = self._get(place)
        decoded = (self._open if places is None else self._decode)(frame, contributor.digest)
        header = decoded.header
        found = header.round, header.rank, header.incarnation, header.samples
        if found != (round, contributor.rank, contributor.incarnation, contributor.samples):
            raise CorruptObject(f"{place} is not the contribution that commit {round} describes")
        self._note_use(decoded)
        self._spool.keep(header, frame)
        return header

    def _note_use(self, frame: Frame) -> None:
        try:
            self.use(frame)
        except UNUSABLE:
            self._spoiled.add(frame.header.digest)

    def usable(self, headers: Sequence[FrameHeader]) -> tuple[FrameHeader, ...]:
        """Those of fetched or kept contributions of which a gradient can be made: the same at every peer."""
        return tuple(header for header in headers if header.digest not in self._spoiled)

    def there(self, round: int, members: Sequence[MemberRef]) -> list[MemberRef]:
        """Those of `members` whose contribution to `round` may be in S3: all while they are few, or else those that a
        listing names. With as many peers looking for as many, single looks would grow with their square."""
        if len(members) <= LOOKS:
            return list(members)
        keys = {self.place(round, member).key: member for member in members}
        first = self.place(round, members[0])
        prefix = first.key.rpartition("/")[0] + "/"
        return [keys[key] for key in self._store.list(first.bucket, prefix, first.owner) if key in keys]

    def find(self, round: int, member: MemberRef) -> tuple[FrameHeader, bytes] | None:
        """A member's contribution to `round` as S3 holds it, or None. Raises CorruptObject."""
        found = self._store.find(self.place(round, member), self._packing.room(self._most))
        if found is None:
            return None
        frame = self._packing.unpack(found[0], self._most)
        return self._open(frame).header, frame

    def latest(self, known: Iterable[tuple[MemberRef, int]]) -> Iterator[tuple[MemberRef, int]]:
        """Of each member the latest round after the given one for which S3 holds its contribution, if any."""
        places = self._spec.places
        prefix = places.contributions()
        latest: dict[MemberRef, int] = {}
        for key in self._store.list(prefix.bucket, prefix.key, prefix.owner):
            round, rank, incarnation = places.parse_contribution(key)
            member = MemberRef(rank=rank, incarnation=incarnation)
            latest[member] = max(round, latest.get(member, round))
        for member, after in known:
            if latest.get(member, after) > after:
                yield member, latest[member]

    def frames(self, headers: Iterable[FrameHeader]) -> Iterator[Frame]:
        """The frames of these headers, read back one by one."""
        for header in headers:
            yield self._decode(self._spool.read(header), header.digest, checked=self._spool.is_in_memory(header))

    def own(self, commit: Commit) -> FrameHeader | None:
        """The header of what a commit lists of this process's own, while it is in the spool."""
        for listed in commit.contributors:
            frame = self._spool.find(listed.digest) if listed.rank == self._me.rank else None
            if frame is not None:
                return wire.decode_header(frame)
        return None

    def delete(self, round: int, members: Iterable[MemberRef]) -> None:
        """Remove contributions that nobody needs any more from S3."""
        self._store.delete([self.place(round, member) for member in members])

    def place(self, round: int, member: MemberRef) -> Place:
        """Where a member's contribution to `round` lies."""
        return self._spec.places.contribution(round, member.rank, member.incarnation)

    def _codec_of(self, header: FrameHeader) -> GradientCodec:
        """What decodes a contribution's payload, be it cut or whole."""
        return codec(header.codec) if header.table is None else self._sharding(header).codec

    def _sharding(self, header: FrameHeader) -> Sharding:
        """How a contribution with a table is cut."""
        alone = not self._packing.in_ranges
        return Sharding(self._layout, codec(header.codec), len(header.table or ()), alone)

    def read(self, header: FrameHeader) -> bytes | None:
        """What S3 holds as the contribution that a header names, or None where it does not hold all of it."""
        place = self.place(header.round, MemberRef(rank=header.rank, incarnation=header.incarnation))
        try:
            return self._whole(place, header)
        except (ObjectMissing, CorruptObject):
            return None

    def _whole(self, place: Place, like: FrameHeader) -> bytes:
        """The whole frame of the contribution in `place`, with the pieces of one that is cut as `like` is.

        Raises ObjectMissing, CorruptObject.
        """
        if like.table is None:
            return self._get(place)
        return self._pieces.whole(self._store.get(place, MAX_HEADER_BYTES), self._sharding(like))

    def _get(self, place: Place) -> bytes:
        """A contribution that is not cut. Raises ObjectMissing, CorruptObject."""
        return self._packing.unpack(self._store.get(place, self._packing.room(self._most)), self._most)

    @property
    def _most(self) -> int:
        """Bytes of the longest frame that is not cut."""
        return MAX_HEADER_BYTES + self._codec.encoded_bytes(self._layout.elements) + self._layout.buffers_bytes

    def _open(self, frame: bytes, digest: str | None = None) -> Frame:
        """A checked frame that its sender has signed. Raises CorruptObject."""
        found = self._decode(frame, digest)
        if reason := self._doubt(found.header):
            raise CorruptObject(f"a frame of rank {found.header.rank} was not made by it: {reason}")
        return found

    def _decode(self, frame: bytes, digest: str | None = None, checked: bool = False) -> Frame:
        return wire.decode(
            frame,
            expected_elements=self._layout.elements,
            expected_buffers_bytes=self._layout.buffers_bytes,
            digest=digest,
            checked=checked,
        )
