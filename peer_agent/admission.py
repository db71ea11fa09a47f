"""What a frame must satisfy before this peer keeps it. Pure: headers in, a reason for rejection (or None) out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from contract.records import Contributor, MemberRef
from contract.wire import FrameHeader, Kind


@dataclass(frozen=True, kw_only=True)
class FrameRules:
    """The sizes and names that all contributions of a run share."""

    run: str
    codec: str
    elements: int
    """Length of the flat gradient."""
    buffers_bytes: int
    samples_max: int = 2**63 - 1
    """More samples than any peer has; whoever claims more wants to own the mean."""
    joined: Mapping[int, int] = field(default_factory=dict, compare=False)
    """The same of ranks that joined after the start, each its own; whoever holds these rules adds to it."""
    sharded: bool = False
    """Whether contributions are cut into shards."""
    payload_max: int = 2**63 - 1
    """Bytes of the longest payload, so that nothing larger is fetched."""

    def misfit(self, header: FrameHeader) -> str | None:
        """Why `header` cannot be a contribution to this run at all, or None."""
        if header.run != self.run:
            return "run"
        if (header.table is not None) != self.sharded:
            return "shards"
        if header.kind is not Kind.UPDATE or header.shards != 1 or header.shard != 0 or header.group != 0:
            return "kind"
        if header.codec != self.codec:
            return "codec"
        if header.elements != self.elements or header.buffers_bytes != self.buffers_bytes:
            return "shape"
        if not 0 < header.samples <= self.joined.get(header.rank, self.samples_max):
            return "samples"
        if header.payload_bytes > self.payload_max:
            return "oversized"
        if header.round != header.base_round:
            return "base_round"
        return None


def weights_misfit(rules: FrameRules, header: FrameHeader) -> str | None:
    """Why `header` cannot be a peer's own weights in this run, or None.

    They say nothing of samples: how many a rank has is written in the run's configuration.
    """
    if header.run != rules.run:
        return "run"
    if header.kind is not Kind.WEIGHTS or header.shards != 1 or header.shard != 0 or header.group != 0:
        return "kind"
    if header.table is not None:
        return "shards"
    if header.codec != "none":
        return "codec"
    if (header.elements, header.buffers_bytes) != (rules.elements, rules.buffers_bytes):
        return "shape"
    if header.payload_bytes != 4 * rules.elements:
        return "oversized"
    if header.samples != 0:
        return "samples"
    if header.round != header.base_round:
        return "base_round"
    return None


def not_a_member(header: FrameHeader, members: Iterable[MemberRef]) -> str | None:
    """Why `header` is from none of `members`: `member` for a foreign rank, `incarnation` for a fenced process."""
    for member in members:
        if member.rank == header.rank:
            return None if member.incarnation == header.incarnation else "incarnation"
    return "member"


def listed(header: FrameHeader, key: Callable[[int, int, int], str]) -> Contributor:
    """A contribution as a commit lists it; `key` gives the S3 key of (round, rank, incarnation)."""
    return Contributor(
        rank=header.rank,
        incarnation=header.incarnation,
        key=key(header.round, header.rank, header.incarnation),
        digest=header.digest,
        samples=header.samples,
        loss=header.loss,
    )
