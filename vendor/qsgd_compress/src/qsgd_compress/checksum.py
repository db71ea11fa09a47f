"""CRC-32C, from the C part where it is in use, else from google-crc32c."""

from __future__ import annotations

from .loading import NATIVE


def crc32c(*pieces: bytes | memoryview) -> int:
    """The CRC-32C of the pieces, one after the other."""
    if NATIVE is not None:
        crc = 0
        for piece in pieces:
            crc = NATIVE.crc32c(piece, crc)
        return crc
    import google_crc32c  # imported here: it costs a millisecond or so, and the C part does without
    import numpy as np

    crc = 0
    for piece in pieces:
        # The C form of google-crc32c refuses a memoryview, and takes an array over the same memory without copying.
        crc = google_crc32c.extend(crc, piece if isinstance(piece, bytes) else np.frombuffer(piece, np.uint8))
    return int(crc)
