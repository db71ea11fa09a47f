"""Which public key belongs to which process, and whether what carries its name is its own. Pure.

A process makes its key when it starts and registers it in its member record, which it signs with that very key (proof
of possession). The record that S3 holds is the one that counts, because there only the holder of a rank may write it;
a greeting merely tells that it is time to look. A rank's next process takes its predecessors' keys along in its own
record, so that whoever joins late can still check what they signed.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from contract import wire
from contract.errors import PermanentError
from contract.header import FrameHeader, Kind
from contract.records import Heartbeat, Member, MemberRef
from contract.signing import Signed, SigningKey, usable, verify, verify_frame

#: The use under which a member record names the process's own key; `ed25519.<incarnation>` names a predecessor's.
USE = "ed25519"
#: So many predecessors' keys travel along.
PREDECESSORS = 32
#: Looks at S3 for the same rank that may bring nothing newer before it has to wait for the next poll.
VAIN_LOOKS = 3
#: Kinds of frames of which a process signs one per round, shard and group, and never a second, different one.
SINGLE = frozenset({Kind.UPDATE, Kind.SHARD})
#: So many of its own latest frames a process remembers to have signed.
_REMEMBERED = 256
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,9})\Z")


@dataclass(frozen=True)
class LookUp:
    """Neither yes nor no: the sender may be a newer process of its rank, so read that rank's member record in S3."""

    rank: int


#: None: genuine. A text: why not, in a word for counting. LookUp: ask again when S3 has been asked.
Verdict = LookUp | str | None


class Keyring:
    """The keys of one run's processes, as far as S3 has shown them. Ranks are below `peers`."""

    def __init__(self, run: str, peers: int) -> None:
        self._run, self._ranks = run, range(peers)
        self._keys: dict[MemberRef, str] = {}
        self._latest: dict[int, int] = {}  # incarnation by rank
        self._vain: Counter[int] = Counter()  # looks that brought nothing newer, by rank

    def learn(self, rank: int, found: Member | None) -> str | None:
        """Take in what S3 holds as the member record of `rank`, own ones included; why it is of no use, or None.

        `run`, `corrupt` (of another rank), `key` (it names none), `signature` (not by the key that it names) or
        `conflict`: another key is known for that process or a predecessor, and the first one stays.
        """
        self._vain[rank] += 1
        if found is None:
            return None
        if reason := self._misfit(rank, found):
            return reason
        registered = dict(_registered(found))
        if any(self._keys.get(member, key) != key for member, key in registered.items()):
            return "conflict"
        self._keys |= registered
        if found.incarnation > self._latest.get(rank, -1):
            self._latest[rank] = found.incarnation
            del self._vain[rank]
        return None

    def refresh(self) -> None:
        """Let ranks be looked up again where looks have found nothing newer: due with every poll of S3.

        Without that limit anybody could make every peer ask S3 as often as he sends garbage.
        """
        self._vain.clear()

    def key(self, member: MemberRef) -> str | None:
        """The public key of a process, or None."""
        return self._keys.get(member)

    def all(self) -> tuple[str, ...]:
        """Every public key that is known; the latest come first."""
        return tuple(reversed(self._keys.values()))

    def lacks(self, member: MemberRef) -> Verdict:
        """None when the key of `member` is known; `unknown_key` when no look at S3 could bring it."""
        if member in self._keys:
            return None
        newer = member.rank in self._ranks and member.incarnation > self._latest.get(member.rank, -1)
        return LookUp(member.rank) if newer and self._vain[member.rank] < VAIN_LOOKS else "unknown_key"

    def check(self, record: Signed) -> Verdict:
        """Whether a record (a heartbeat too) is by the process whose name it bears.

        Reasons: `run`, `unknown_key`, `signature`; of member records also `key` and `conflict`.
        """
        if record.run != self._run:
            return "run"
        member = author(record)
        if isinstance(record, Member):
            if reason := self._misfit(record.rank, record):
                return reason
            if member in self._keys:
                return None if self._keys[member] == record.public_keys[USE] else "conflict"
        missing = self.lacks(member)
        if missing is not None:
            return missing
        return None if verify(record, self._keys[member]) else "signature"

    def check_frame(self, header: FrameHeader) -> Verdict:
        """Whether a frame's header is by the process whose name it bears. Reasons: `run`, `unknown_key`, `signature`.

        The content is covered once it has been found to have the header's digest.
        """
        if header.run != self._run:
            return "run"
        member = MemberRef(rank=header.rank, incarnation=header.incarnation)
        missing = self.lacks(member)
        if missing is not None:
            return missing
        return None if verify_frame(header, self._keys[member]) else "signature"

    def _misfit(self, rank: int, member: Member) -> str | None:
        if member.run != self._run:
            return "run"
        if member.rank != rank or rank not in self._ranks or member.incarnation < 0:
            return "corrupt"
        if not all(usable(key) for _, key in _registered(member)) or USE not in member.public_keys:
            return "key"
        return None if verify(member, member.public_keys[USE]) else "signature"


class FrameSigner:
    """Signs this process's frames, and never two that others would have to call equivocation."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._signed: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def sign(self, frame: wire.Blob) -> bytes:
        """The frame with its signature. Raises PermanentError where another one of its round was signed before."""
        header = wire.decode_header(frame)
        if header.kind in SINGLE:
            if self._signed.setdefault(slot(header), header.digest) != header.digest:
                raise PermanentError(
                    f"this process has signed another {header.kind.name.lower()} frame for round {header.round} before"
                )
            while len(self._signed) > _REMEMBERED:
                self._signed.popitem(last=False)
        return self._key.sign_frame(frame)


def inherit(own: Mapping[str, str], held: Member) -> dict[str, str]:
    """What a member record that replaces `held` names as keys: the process's own and its predecessors'."""
    known = {member.incarnation: public for member, public in _registered(held)}
    kept = sorted(known)[-PREDECESSORS:]
    return {f"{USE}.{incarnation}": known[incarnation] for incarnation in kept} | dict(own)


def author(record: Signed) -> MemberRef:
    """The process whose name a record bears."""
    if isinstance(record, Member | Heartbeat):
        return MemberRef(rank=record.rank, incarnation=record.incarnation)
    return record.writer


def slot(header: FrameHeader) -> tuple[int, ...]:
    """What a process signs one frame for: kind, round, shard and group."""
    return int(header.kind), header.round, header.shard, header.group


def _registered(member: Member) -> Iterator[tuple[MemberRef, str]]:
    """All keys that a member record names, with the processes that they belong to."""
    for use, public in member.public_keys.items():
        name, _, number = use.partition(".")
        if use == USE:
            yield MemberRef(rank=member.rank, incarnation=member.incarnation), public
        elif name == USE and _NUMBER.match(number) and int(number) < member.incarnation:
            yield MemberRef(rank=member.rank, incarnation=int(number)), public
