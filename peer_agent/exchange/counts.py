"""What an exchange has moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Bytes of message bodies and numbers of messages since the start; a body sent to n peers counts n times."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
