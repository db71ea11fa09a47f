"""What senders do wrong: counted, and told apart by whether it proves anything about them. Pure.

Garbage, forged signatures, foreign runs and old rounds prove nothing: anyone who can send could have made them, or have
sent again what an honest peer once signed. They are counted under the broker's sender and never lead to an exclusion.

*Attributable* is what only the holder of a key can have made, and no honest holder makes:

- a contribution to this run, signed, whose header alone shows that it fits no round of it (HEADER_OFFENCES);
- a contribution to this run, signed, of fitting form, whose content has the signed digest and cannot be used (CONTENT);
- two different frames, both signed, for one round, shard and group (EQUIVOCATION).

A process with `trust.rejections` of these, all different, is named in a commit record (`extensions["excluded"]`) with
the signed headers as evidence, which every peer checks alike (`proven`), whoever wrote the commit.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from contract import jsonform, wire
from contract.errors import CorruptObject, NonFiniteGradient, WeightsMismatch
from contract.header import SIGNATURE_BYTES, FrameHeader, Kind, pack_header
from contract.records import MemberRef
from contract.wire import Frame
from peer_agent.admission import FrameRules
from peer_agent.keyring import SINGLE, Keyring, slot

#: Where commit records name whom they exclude: a list of Exclusion in JSON form.
EXCLUDED = "excluded"
#: What a signed header alone can show, in the words of FrameRules.misfit.
HEADER_OFFENCES = frozenset({"kind", "codec", "shape", "samples", "base_round", "oversized"})
CONTENT = "content"
EQUIVOCATION = "equivocation"
#: Whom rejections are counted under that the broker names nobody for.
UNKNOWN = "unknown"
#: Longest header that evidence holds: room for the longest names and a table of 160 shards.
MAX_HEADER_BYTES = 8_192
#: So many offences are evidence enough, however high `trust.rejections` is: a commit record must stay small.
MAX_OFFENCES = 8
#: So many characters of evidence at most go into one commit record; other processes' turn comes with the next. Room
#: for the longest evidence against one process: every offence an equivocation, two digits a byte.
MAX_EVIDENCE = MAX_OFFENCES * 2 * 2 * MAX_HEADER_BYTES


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One thing that a process did and signed."""

    reason: str
    headers: tuple[str, ...]
    """Header parts of the frames in hexadecimal: one, or the two of an equivocation, sorted. Run, round, rank and
    incarnation in it name the place of the contribution in S3, and its digest says what must lie there."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A process that is to take no further part in the run, and what it signed."""

    rank: int
    incarnation: int
    reason: str
    """The reasons of all offences, each once, sorted, with commas between."""
    evidence: tuple[Offence, ...]

    def to_dict(self) -> dict[str, Any]:
        """The form in which a commit record holds it."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form


class Conduct:
    """What one peer has had to reject, by sender and reason, and what of it is evidence."""

    def __init__(self, keyring: Keyring, frames: FrameRules, rejections: int) -> None:
        """`rejections` is the configuration's `trust.rejections`."""
        self._keyring, self._frames, self._needed = keyring, frames, needed(rejections)
        self.counts: Counter[tuple[int | None, str]] = Counter()
        """Rejections by (rank of the sender or None, reason)."""
        self._offences: dict[MemberRef, dict[object, Offence]] = {}

    def reject(
        self,
        reason: str,
        sender: int | None,
        header: FrameHeader | None = None,
        *,
        other: FrameHeader | None = None,
    ) -> bool:
        """Count a rejection; True when it is attributable, and then it is counted as its signer's.

        `sender` is whom the broker names. `header` is that of the rejected frame, where there was one to read; `other`
        that of the frame which is held in its place (reason `conflict`). With the reason CONTENT the caller vouches
        that the content has the header's digest. Signatures are verified in here.
        """
        offence = None if header is None else self._offence(reason, header, other)
        if header is None or offence is None:
            self.counts[sender, reason] += 1
            return False
        self.counts[header.rank, offence.reason] += 1
        found = self._offences.setdefault(_signer(header), {})
        if len(found) < self._needed:
            found.setdefault(_identity(offence.reason, header), offence)
        return True

    def due(self, ranks: Collection[int]) -> tuple[Exclusion, ...]:
        """Exclusions that the next commit record should hold, in rank order; `ranks` are those not excluded yet."""
        guilty: dict[int, Exclusion] = {}
        left = MAX_EVIDENCE
        for member, found in self._offences.items():
            if member.rank in ranks and member.rank not in guilty and len(found) >= self._needed:
                size = sum(len(part) for offence in found.values() for part in offence.headers)
                if size <= left:
                    guilty[member.rank] = _exclusion(member, found.values())
                    left -= size
        return tuple(guilty[rank] for rank in sorted(guilty))

    def by_sender(self) -> dict[str, dict[str, int]]:
        """Rejections by sender (rank or `unknown`), then by reason: what a report holds."""
        table: dict[str, dict[str, int]] = {}
        for (sender, reason), count in self.counts.items():
            table.setdefault(UNKNOWN if sender is None else str(sender), {})[reason] = count
        return table

    def _offence(self, reason: str, header: FrameHeader, other: FrameHeader | None) -> Offence | None:
        """The offence that this rejection proves, or None."""
        if reason in HEADER_OFFENCES or reason == CONTENT:
            headers = [header]
        elif reason == "conflict" and other is not None:
            reason, headers = EQUIVOCATION, [header, other]
        else:
            return None
        try:
            parts = tuple(sorted(pack_header(signed).hex() for signed in headers))
        except ValueError:
            return None
        offence = Offence(reason=reason, headers=parts)
        return offence if _check(offence, _signer(header), self._keyring, self._frames, lambda _: True) else None


def needed(rejections: int) -> int:
    """How many different offences exclude a process, with `trust.rejections` as configured."""
    return min(rejections, MAX_OFFENCES)


def proven(
    exclusion: object,
    keyring: Keyring,
    frames: FrameRules,
    rejections: int,
    spoiled: Callable[[FrameHeader], bool],
) -> bool:
    """Whether an entry of a commit record's EXCLUDED proves what it says; the same answer at every peer.

    `spoiled` reads the contribution that a header names (the function of this name below decides) and must raise where
    S3 cannot be asked. The keyring must know the process's key, or have looked for it (`Keyring.lacks`).
    """
    try:
        read = jsonform.from_dict(Exclusion, exclusion, "exclusion")
    except CorruptObject:
        return False
    member = MemberRef(rank=read.rank, incarnation=read.incarnation)
    if len(read.evidence) != needed(rejections) or read != _exclusion(member, read.evidence):
        return False
    identities = {_check(offence, member, keyring, frames, spoiled) for offence in read.evidence}
    return None not in identities and len(identities) == len(read.evidence)


def proven_ranks(
    extensions: Mapping[str, Any],
    keyring: Keyring,
    frames: FrameRules,
    rejections: int,
    spoiled: Callable[[FrameHeader], bool],
) -> frozenset[int]:
    """The ranks that a commit record with these `extensions` excludes with proof; what it says without is void."""
    checks = ((read.rank, proven(entry, keyring, frames, rejections, spoiled)) for entry, read in _entries(extensions))
    return frozenset(rank for rank, sure in checks if sure)


def accused(extensions: Mapping[str, Any]) -> tuple[MemberRef, ...]:
    """The processes that a commit record names, whose keys one needs to check what it says."""
    return tuple(MemberRef(rank=read.rank, incarnation=read.incarnation) for _, read in _entries(extensions))


def spoiled(blob: bytes | None, header: FrameHeader, frames: FrameRules, use: Callable[[Frame], object]) -> bool:
    """Whether `blob`, what S3 holds as a contribution, has the digest that `header` names and is still of no use.

    `use` tries to use a frame, and raises CorruptObject, WeightsMismatch or NonFiniteGradient. Bytes with another
    digest prove nothing: whoever may write or delete there could have put them in the signer's place.
    """
    if blob is None:
        return False
    try:
        frame = wire.decode(
            blob,
            expected_elements=frames.elements,
            expected_buffers_bytes=frames.buffers_bytes,
            digest=header.digest,
        )
    except CorruptObject:
        return False
    try:
        use(frame)
    except (CorruptObject, WeightsMismatch, NonFiniteGradient):
        return True
    return False


def _entries(extensions: Mapping[str, Any]) -> Iterator[tuple[object, Exclusion]]:
    """The entries of EXCLUDED that have the form of one, as they stand and as they read; the first of each rank."""
    entries, ranks = extensions.get(EXCLUDED), set()
    for entry in entries if isinstance(entries, list) else ():
        with contextlib.suppress(CorruptObject):
            read = jsonform.from_dict(Exclusion, entry, "exclusion")
            if read.rank not in ranks:
                ranks.add(read.rank)
                yield entry, read


def _check(
    offence: Offence,
    member: MemberRef,
    keyring: Keyring,
    frames: FrameRules,
    content: Callable[[FrameHeader], bool],
) -> object | None:
    """What tells this offence from `member`'s others, or None where it proves nothing."""
    headers = [_header(part) for part in offence.headers[:2]]
    first = headers[0] if headers else None
    if first is None or len(offence.headers) != (2 if offence.reason == EQUIVOCATION else 1):
        return None
    for header in headers:
        if header is None or _signer(header) != member or keyring.check_frame(header) is not None:
            return None
    if offence.reason == EQUIVOCATION:
        second = headers[1]
        assert second is not None
        different = _unsigned(first) != _unsigned(second) and slot(first) == slot(second) and first.kind in SINGLE
        proves = different and list(offence.headers) == sorted(offence.headers)
    elif first.kind is not Kind.UPDATE:  # whoever signs a shard or weights cannot help it if others pass them off
        proves = False
    elif offence.reason == CONTENT:
        proves = frames.misfit(first) is None and content(first)
    else:
        proves = offence.reason in HEADER_OFFENCES and frames.misfit(first) == offence.reason
    return _identity(offence.reason, first) if proves else None


def _header(part: str) -> FrameHeader | None:
    """The header of evidence, from exactly the bytes that it stands for; None for anything else."""
    if len(part) > 2 * MAX_HEADER_BYTES:
        return None
    try:
        blob = bytes.fromhex(part)
        header = wire.decode_header(blob)
    except (ValueError, CorruptObject):
        return None
    return header if pack_header(header) == blob and part == blob.hex() else None


def _identity(reason: str, header: FrameHeader) -> object:
    """Equal for the same offence told twice: a bad frame is one offence however often it comes, and whoever signs five
    different frames for one round has equivocated once."""
    return (reason, slot(header)) if reason == EQUIVOCATION else _unsigned(header)


def _unsigned(header: FrameHeader) -> FrameHeader:
    return replace(header, signature=bytes(SIGNATURE_BYTES))


def _signer(header: FrameHeader) -> MemberRef:
    return MemberRef(rank=header.rank, incarnation=header.incarnation)


def _exclusion(member: MemberRef, offences: Iterable[Offence]) -> Exclusion:
    evidence = tuple(sorted(offences, key=lambda offence: (offence.reason, offence.headers)))
    reason = ", ".join(sorted({offence.reason for offence in evidence}))
    return Exclusion(rank=member.rank, incarnation=member.incarnation, reason=reason, evidence=evidence)
