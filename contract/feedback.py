"""Error feedback: what a peer has computed and no round has taken is added to its next gradient.

n is the number of values; g_t is the peer's gradient of round t, e_t its residual and Q its codec, all (n,) float32:

    u_t = g_t + e_t                             what the peer encodes
    e_(t+1) = u_t - decode(Q(u_t))              where the round took the contribution
    e_(t+1) = u_t                               where the round left it out (invariant 9)

So all that was taken, plus the residual, is the sum of all gradients but for float32 rounding: an error is not repeated
and not forgotten, it arrives later (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847). The residual is in
units of the peer's mean gradient. Rounds may weigh a peer by different sample counts, and optimizers other than plain
SGD do not add gradients up; what arrives later is then weighed as the later gradient is.

The residual stays bounded where the codec's relative error is below 1 (docs/decisions/0012).
"""

from __future__ import annotations

import numpy as np

from contract.codec import F32, Blob, GradientCodec
from contract.errors import CorruptObject


class ErrorFeedback:
    """The residual of one peer: one float32 vector (n,), a second one while it encodes, and none while it is zero.

    Depends on nothing but its inputs. The codec `none` loses nothing: its bytes are those of the bare codec, and only
    contributions that were left out make a residual.
    """

    def __init__(self, codec: GradientCodec, elements: int) -> None:
        """`elements` is n."""
        self._codec, self._elements = codec, elements
        self._residual: F32 | None = None  # of zeros
        self.includes_next = False
        """Whether the residual includes the gradient that `encode` gets next (`load`)."""

    def encode(self, gradient: F32, seed: int, codec: GradientCodec | None = None) -> bytes:
        """Bytes of `gradient` (n,) plus the residual, all of which is the residual until `taken` says otherwise.

        `codec` stands in for the one that is usual where contributions are cut into shards.

        Raises NonFiniteGradient, also where the sum leaves float32's range; the residual is what it was then.
        """
        if self.includes_next:
            owed = self.state
        else:
            with np.errstate(over="ignore"):  # the codec finds an overflow, and says where
                owed = gradient.copy() if self._residual is None else gradient + self._residual
        payload = (codec or self._codec).encode(owed, seed)
        self._residual, self.includes_next = owed, False
        return payload

    def owe(self, gradient: F32) -> None:
        """A gradient (n,) that came too late to be encoded for its round comes with the next one."""
        if self.includes_next:
            return  # it is the one that the residual has already
        with np.errstate(over="ignore"):
            self._residual = gradient.copy() if self._residual is None else self._residual + gradient

    def taken(self, payload: Blob, codec: GradientCodec | None = None) -> None:
        """A round has applied `payload` as this peer's contribution: the residual is what it lacks.

        These need not be the bytes that `encode` gave. Raises CorruptObject; the residual is what it was then.
        """
        rest = np.zeros(self._elements, np.float32) if self._residual is None else self._residual
        (codec or self._codec).accumulate(payload, rest, -1.0)
        self._residual = rest if rest.any() else None

    @property
    def state(self) -> F32:
        """A copy of the residual (n,), for a checkpoint between two rounds."""
        return np.zeros(self._elements, np.float32) if self._residual is None else self._residual.copy()

    def load(self, state: F32, includes_next: bool = False) -> None:
        """Go on from a copy of `state`. Raises CorruptObject for what cannot be a residual of this peer.

        `includes_next`: the gradient that `encode` gets next is in it already, because the state was taken between
        `encode` and the end of a round that is now computed again. It is not added a second time.
        """
        if state.dtype != np.float32 or state.shape != (self._elements,) or not np.isfinite(state).all():
            raise CorruptObject(f"a residual is {self._elements} finite values of float32")
        self._residual, self.includes_next = state.copy() if state.any() else None, includes_next

    def forget(self) -> None:
        """What was owed is not known any more: a round that this process did not compute has settled it."""
        self._residual, self.includes_next = None, False
