"""What the codec raises about data; a caller's mistakes in arguments are TypeError and ValueError."""

from __future__ import annotations


class QsgdError(Exception):
    """Base of every error about a frame or a gradient; its text is one sentence."""


class CorruptFrame(QsgdError):
    """The bytes are not a frame that the encoder writes: damaged, cut short, too long, or of an unknown version."""


class SizeMismatch(QsgdError):
    """The frame is sound as far as read, but holds another number of values than the receiver expects."""


class NonFiniteGradient(QsgdError):
    """The gradient holds NaN or an infinity; `index` is the position of the first one."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"the gradient is not finite: value {index} is {value}")
        self.index = index
        self.value = value

    def __reduce__(self) -> tuple[type[NonFiniteGradient], tuple[int, float]]:
        # Exception's own form would hand the sentence to __init__ when it crosses a process boundary.
        return type(self), (self.index, self.value)
