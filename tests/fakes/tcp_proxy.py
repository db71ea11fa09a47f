"""A TCP proxy that a test can cut, so that a real client loses a real connection at a chosen moment."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target`. A context manager; `cut` drops what is open."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.accepted = 0
        self._target = target
        self._open, self._ended = True, False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing a listener wakes nobody up who waits in accept; a last connection does.
        self._open, self._ended = False, True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(10)
        self._listener.close()
        self.cut()

    def cut(self, *, refuse: bool = False) -> None:
        """Drop all connections; with `refuse` also every later one, until `restore`."""
        with self._lock:
            if refuse:
                self._open = False
            for end in self._sockets:
                with contextlib.suppress(OSError):  # the other side was faster
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._sockets.clear()

    def restore(self) -> None:
        """Accept again."""
        self._open = True

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self._open:
                client.close()
                if self._ended:
                    return
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self.accepted += 1
                self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_forward, args=(source, sink), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # cut
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
