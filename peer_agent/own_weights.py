"""Asynchronous mode: each peer's own weights in S3, for whoever comes back, and their average against drift.

Shapes: n parameters (`Layout.elements`). Of P peers that are averaged, peer k's weights are w_k (n,), float32, and s_k
are the samples of its partition, as the run's configuration has them; with the mean, and S the sum of all s_k:

    weights = sum over k of (s_k / S) * w_k          accumulated in float32, in rank order

Float buffers are averaged likewise, in float64. Integers stay the peer's own: they count its own rounds. So whoever
averages the same weights gets the same bits, but for what counts. `aggregation.name` holds for weights as it does for
gradients; clipping does not. Everything travels as float32, 4 n bytes a peer, uncompressed: what a codec loses of a
gradient is made up for by the next one, what it lost of weights would stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract import wire
from contract.averaging import is_float
from contract.codec import codec
from contract.config import AggregationConfig
from contract.errors import CorruptObject, ObjectMissing, WeightsMismatch
from contract.header import header_length
from contract.keys import Place, Places
from contract.records import MemberRef
from contract.robust import aggregation
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout, decode_weights, encode_weights, unpack_buffers
from contract.wire import FrameHeader
from peer_agent.contributions import UnusableContent
from peer_agent.spool import Spool

#: So many of its latest a peer leaves in S3: whoever was told of one may still be fetching it when the next one comes.
KEPT = 2


class OwnWeights:
    """One peer's dealings with weights that are peers' own. Everything may raise StoreUnavailable."""

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        layout: Layout,
        me: MemberRef,
        folder: Path | None,
        sign: Callable[[bytes], bytes],
        doubt: Callable[[FrameHeader], str | None],
    ) -> None:
        """Others' weights wait for the average on disk, in `folder`. `sign` puts this process's signature on a frame;
        `doubt` says why a frame is not by whom it says, or None."""
        self._store, self._places, self._layout, self._me = store, places, layout, me
        self._sign, self._doubt = sign, doubt
        self._spool = Spool(folder)
        self._header_bytes = header_length(places.run, "none", ())
        self._left: list[Place] | None = None  # in S3, of this rank, oldest first; None until it has been looked up

    # ------------------------------------------------------------------------------------------------ the own ones

    def put(self, round: int, flat: NDArray[np.float32], buffers: Buffers) -> bytes:
        """Create the own weights, from which `round` starts, in S3, and return the signed frame; safe beside the loop.

        Raises NonFiniteGradient for weights that training has driven to NaN or infinity.
        """
        me = self._me
        frame = self._sign(
            encode_weights(
                self._layout,
                flat,
                buffers,
                run=self._places.run,
                round=round,
                rank=me.rank,
                incarnation=me.incarnation,
            )
        )
        self._store.create(self._place(round, me), frame)  # a lost answer leaves the very same bytes there
        return frame

    def clear(self, round: int) -> None:
        """Those of `round` lie in S3; what they have made superfluous goes."""
        before = self._predecessors() if self._left is None else self._left
        self._left = [*before, self._place(round, self._me)]
        self._clear(self._left[:-KEPT])

    def retire(self) -> None:
        """Nobody needs this rank's any more: the run has ended."""
        if self._left:
            self._clear(self._left)

    def _predecessors(self) -> list[Place]:
        """What earlier processes of this rank have left."""
        found = (self._places.parse_own_weights(key) for key in self._keys())
        return [
            self._place(round, MemberRef(rank=rank, incarnation=incarnation))
            for round, rank, incarnation in sorted(found)
            if rank == self._me.rank and incarnation < self._me.incarnation
        ]

    def _clear(self, places: Sequence[Place]) -> None:
        self._store.delete(places)
        self._left = [place for place in self._left or () if place not in places]

    # ---------------------------------------------------------------------------------------------- those of others

    def find(self, known: Iterable[tuple[MemberRef, int]] | None) -> Iterator[FrameHeader | MemberRef]:
        """Headers of the latest weights that these members have put after the given rounds, or of everyone's newest.

        In place of a header the member, where what it has put is damaged, or not its own.
        """
        wanted = None if known is None else dict(known)
        latest: dict[int, tuple[int, int]] = {}  # by rank: round and incarnation
        for key in self._keys():
            round, rank, incarnation = self._places.parse_own_weights(key)
            if wanted is None or wanted.get(MemberRef(rank=rank, incarnation=incarnation), round) < round:
                latest[rank] = max((round, incarnation), latest.get(rank, (-1, -1)))
        for rank, (round, incarnation) in sorted(latest.items()):
            member = MemberRef(rank=rank, incarnation=incarnation)
            try:
                header = wire.decode_header(self._store.get_range(self._place(round, member), 0, self._header_bytes))
            except ObjectMissing:
                continue  # newer ones have taken its place since
            except CorruptObject:
                yield member
                continue
            named = header.round, header.rank, header.incarnation
            yield member if named != (round, rank, incarnation) or self._doubt(header) else header

    def get(self, header: FrameHeader) -> tuple[NDArray[np.float32], Buffers]:
        """The weights that a header announces: flat (n,) float32 and buffers.

        Raises ObjectMissing, CorruptObject when S3 does not hold what was announced, and UnusableContent when it does
        and no weights can be made of it.
        """
        member = MemberRef(rank=header.rank, incarnation=header.incarnation)
        return self._open(header, self._store.get(self._place(header.round, member)))

    def hold(self, header: FrameHeader, body: bytes) -> int:
        """Keep others' weights for the next average, and fetch them where `body` is empty; their bytes. Raises as
        `get`."""
        member = MemberRef(rank=header.rank, incarnation=header.incarnation)
        frame = body or self._store.get(self._place(header.round, member))
        self._open(header, frame)
        self._spool.keep(header, frame)
        return len(frame)

    def forget_all_but(self, headers: Iterable[FrameHeader]) -> None:
        """Only these may still be averaged."""
        self._spool.retain({header.digest for header in headers})

    def mean(
        self,
        flat: NDArray[np.float32],
        buffers: Buffers,
        others: Sequence[FrameHeader],
        samples: Mapping[int, int],
        config: AggregationConfig,
        scratch: Path | None = None,
    ) -> tuple[NDArray[np.float32], Buffers]:
        """The average of the own weights, `flat` (n,) and `buffers`, with those that are held of others.

        `samples` by rank. Beside the own weights this takes the memory of one vector and one frame (invariant 12).
        """
        headers = {header.rank: header for header in others}
        ranks = sorted({self._me.rank, *headers})
        total = sum(samples[rank] for rank in ranks)
        plain = config.model_copy(update={"clip_norm": 0.0})  # what is far from zero is no outlier here
        raw = codec("none")
        with aggregation(plain, self._layout, total, scratch) as aggregator:
            for rank in ranks:
                if rank == self._me.rank:
                    aggregator.add(raw.encode(flat, 0), raw, buffers, samples[rank])
                    continue
                frame = self._decode(headers[rank], self._spool.read(headers[rank]))
                aggregator.add(frame.payload, raw, unpack_buffers(self._layout, frame.buffers), samples[rank])
                del frame  # before the next one is read
            mean, averaged = aggregator.result(buffers)
        for part in self._layout.frozen:  # bit for bit, which a mean of equal values need not be
            mean[part] = flat[part]
        return mean, {name: averaged[name] if is_float(value) else value for name, value in buffers.items()}

    def close(self) -> None:
        """Remove what is on disk."""
        self._spool.close()

    def _open(self, header: FrameHeader, frame: bytes) -> tuple[NDArray[np.float32], Buffers]:
        decoded = self._decode(header, frame)
        if decoded.header != header:
            raise CorruptObject(f"the weights of rank {header.rank} are not those that were announced")
        try:
            flat, buffers = decode_weights(self._layout, frame, header.base_weights)
        except (CorruptObject, WeightsMismatch) as error:
            raise UnusableContent(str(error)) from error
        floats = [value for value in buffers.values() if is_float(value)]
        if not all(np.isfinite(value).all() for value in floats):
            raise UnusableContent("a buffer holds NaN or infinity")
        return flat, buffers

    def _decode(self, header: FrameHeader, frame: bytes) -> wire.Frame:
        return wire.decode(
            frame,
            expected_elements=self._layout.elements,
            expected_buffers_bytes=self._layout.buffers_bytes,
            digest=header.digest,
        )

    def _place(self, round: int, member: MemberRef) -> Place:
        return self._places.own_weights(round, member.rank, member.incarnation)

    def _keys(self) -> list[str]:
        prefix = self._places.all_own_weights()
        return self._store.list(prefix.bucket, prefix.key, prefix.owner)
