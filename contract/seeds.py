"""Seeds in three name spaces, each a 63-bit number from SHA-256.

- public: everyone can compute it from the run's seed. The same seed gives the same run (DESIGN.md, invariant 8).
- peer: from a secret that only one peer knows, for what others must not predict.
- round: from (run, round), for work that whoever takes it over must repeat byte for byte.

The name spaces and the parts are separated unambiguously: `("ab", "c")`, `("a", "bc")` and `("a", "b", "c")` differ, as
do the number 1 and the text "1".
"""

from __future__ import annotations

import hashlib


def public_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) from the run's seed and what it is for: `public_seed(1, "order", rank, epoch)`."""
    return _derive(b"public", seed, *names)


def peer_seed(secret: bytes, *names: str | int) -> int:
    """A seed in [0, 2**63) that only the holder of `secret` can compute. Raises ValueError for fewer than 16 bytes."""
    if len(secret) < 16:
        raise ValueError("a peer's secret has at least 16 bytes")
    return _derive(b"peer", secret, *names)


def round_seed(run: str, round: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for work in one round of one run, the same whoever does it."""
    return _derive(b"round", run, round, *names)


def _derive(space: bytes, *parts: str | int | bytes) -> int:
    digest = hashlib.sha256(b"peerless seed " + space)
    for part in parts:
        tag = b"b" if isinstance(part, bytes) else b"i" if isinstance(part, int) else b"s"
        value = part if isinstance(part, bytes) else str(part).encode()
        digest.update(tag + len(value).to_bytes(4, "little") + value)
    return int.from_bytes(digest.digest()[:8], "little") >> 1
