"""A proxy between one peer and the broker that speaks AMQP 0-9-1: it loses, doubles, delays and reorders messages.

It works on what the broker delivers, so every message passes it on its way to a receiver. To both sides all looks in
order: of a message that is lost the broker gets an acknowledgement, of one that comes twice it gets one.

A delivery is a method frame (basic.deliver), a header frame, and as many body frames as its size asks for, all on one
channel. A frame is type (1 byte), channel (2), size (4), that many bytes, and 0xCE.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pika import spec
from pika.frame import Body, Header, Method, decode_frame

#: `pass`, `drop`, `double`, or a number: after so many later messages.
Fate = str | int


@dataclass
class Delivered:
    """One message on its way to a peer."""

    channel: int
    tag: int
    exchange: str
    kind: str
    frames: bytes
    """As they came."""


@dataclass
class _Incoming:
    """A delivery whose frames are still coming in."""

    method: spec.Basic.Deliver
    frames: list[bytes]
    kind: str = ""
    missing: int = -1
    """Bytes of the body; -1 until the header has come."""


def seeded(seed: int, *, drop: float, double: float, delay: float, longest: int = 6) -> Callable[[Delivered], Fate]:
    """Fates by chance, the same for the same seed and sequence; shares of 1. Heartbeats are never lost or delayed:
    peers would rightly take their sender for dead."""
    chance = random.Random(seed)  # noqa: S311 - repeatable is what it has to be

    def fate(message: Delivered) -> Fate:
        drawn = chance.random()
        if ".peer." not in message.exchange:
            return "double" if drawn < double else "pass"
        if drawn < drop:
            return "drop"
        if drawn < drop + double:
            return "double"
        if drawn < drop + double + delay:
            return chance.randint(1, longest)
        return "pass"

    return fate


class MessageProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target`; a context manager."""

    def __init__(self, target: tuple[str, int], fate: Callable[[Delivered], Fate]) -> None:
        """`fate` is asked once for every message, in the order of their coming."""
        self.counts: Counter[str] = Counter()
        """Messages by fate: pass, drop, double, delay; and `overtaken`: delivered after a later one."""
        self._target, self._fate = target, fate
        self._ended = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> MessageProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes up who waits in accept
        self._thread.join(10)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ended:
                client.close()
                return
            broker = socket.create_connection(self._target)
            self._sockets += [client, broker]
            line = _Line(client, broker, self._fate, self.counts)
            for work in (line.to_client, line.to_broker):
                threading.Thread(target=work, daemon=True).start()


@dataclass
class _Line:
    """One connection through the proxy."""

    client: socket.socket
    broker: socket.socket
    fate: Callable[[Delivered], Fate]
    counts: Counter[str]
    _held: list[tuple[int, Delivered]] = field(default_factory=list)
    """Delayed messages, each with the number of later ones that must go first."""
    _owed: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Acknowledgements by channel and tag that the broker must not see: those of second copies."""
    _sending: threading.Lock = field(default_factory=threading.Lock)

    def to_client(self) -> None:
        """Take deliveries apart and do with each as its fate says; everything else passes."""
        incoming: dict[int, _Incoming] = {}
        with contextlib.suppress(OSError):  # cut
            for raw in _frames(self.broker):
                _, frame = decode_frame(raw)
                if isinstance(frame, Method) and isinstance(frame.method, spec.Basic.Deliver):
                    incoming[frame.channel_number] = _Incoming(frame.method, [raw])
                    continue
                part = incoming.get(getattr(frame, "channel_number", -1))
                if part is None or not isinstance(frame, Header | Body):
                    self.client.sendall(raw)
                    continue
                part.frames.append(raw)
                if isinstance(frame, Header):
                    part.missing, part.kind = frame.body_size, frame.properties.type or ""
                else:
                    part.missing -= len(frame.fragment)
                if part.missing == 0:
                    del incoming[frame.channel_number]
                    self._deliver(_delivered(frame.channel_number, part))
            self.client.shutdown(socket.SHUT_WR)

    def to_broker(self) -> None:
        """Everything passes but acknowledgements of copies."""
        with contextlib.suppress(OSError, EOFError):
            greeting = _exactly(self.client, 8)
            self.broker.sendall(greeting)
            for raw in _frames(self.client):
                channel, tag = _acknowledged(raw)
                if self._owed[channel, tag] > 0:
                    self._owed[channel, tag] -= 1
                    continue
                with self._sending:
                    self.broker.sendall(raw)
            self.broker.shutdown(socket.SHUT_WR)

    def _deliver(self, message: Delivered) -> None:
        fate = self.fate(message)
        self.counts["delay" if isinstance(fate, int) else fate] += 1
        if isinstance(fate, int):
            self._held.append((fate, message))
            return
        if fate == "drop":
            with self._sending:
                self.broker.sendall(_ack(message.channel, message.tag))
        else:
            if fate == "double":
                self._owed[message.channel, message.tag] += 1
            self.client.sendall(message.frames * (2 if fate == "double" else 1))
        due = [held for left, held in self._held if left <= 1]
        self._held = [(left - 1, held) for left, held in self._held if left > 1]
        for held in due:
            self.counts["overtaken"] += 1
            self.client.sendall(held.frames)


def _delivered(channel: int, part: _Incoming) -> Delivered:
    return Delivered(
        channel, part.method.delivery_tag or 0, part.method.exchange or "", part.kind, b"".join(part.frames)
    )


def _frames(source: socket.socket) -> Iterator[bytes]:
    """Whole frames until the connection ends."""
    while True:
        try:
            head = _exactly(source, spec.FRAME_HEADER_SIZE)
            (size,) = struct.unpack_from(">L", head, 3)
            yield head + _exactly(source, size + spec.FRAME_END_SIZE)
        except EOFError:
            return


def _exactly(source: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        data = source.recv(min(count, 65_536))
        if not data:
            raise EOFError
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def _acknowledged(raw: bytes) -> tuple[int, int]:
    """Channel and tag that a frame acknowledges; (0, 0), which is nobody's, for every other frame."""
    if raw[0] == spec.FRAME_METHOD and struct.unpack_from(">I", raw, 7)[0] == spec.Basic.Ack.INDEX:
        channel: int = struct.unpack_from(">H", raw, 1)[0]
        tag: int = struct.unpack_from(">Q", raw, 11)[0]
        return channel, tag
    return 0, 0


def _ack(channel: int, tag: int) -> bytes:
    raw: bytes = Method(channel, spec.Basic.Ack(delivery_tag=tag)).marshal()
    return raw
