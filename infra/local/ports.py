"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
#: Below the ranges from which Linux and macOS take ports for outgoing connections (32768 and 49152 upwards), so that
#: no connection of anybody's can take a port between its choice here and the server's start.
_FIRST, _LAST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Distinct ports that nobody listens on now. A server may still lose a race for one; then start it again."""
    source = random.SystemRandom()
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                candidate.bind((LOOPBACK, source.randint(_FIRST, _LAST)))
            except OSError:
                candidate.close()
            else:
                held.append(candidate)
        return [candidate.getsockname()[1] for candidate in held]
    finally:
        for candidate in held:
            candidate.close()
