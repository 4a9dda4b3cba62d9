"""A backend that streams: so many records a second on each connection, each with the time at which it was sent.

`python stream_backend.py PORT`. `GET /records?rate=100` is an NDJSON answer without end; with rate 0 it has one record.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time

RECORD = 200
"""Bytes of a record."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = b"text/event-stream"
GATHER = 1.0
"""Seconds without a further connection after which those of a rate begin: opening them is not what is measured."""
RATE = re.compile(rb"rate=(\d+)")


def chunk() -> bytes:
    """One record, stamped now, as a chunk of HTTP/1.1."""
    start = f'{{"m":"~~{time.monotonic_ns():019d}","x":"'
    record = (start + "x" * (RECORD - len(start) - 3) + '"}\n').encode()
    return b"%x\r\n%b\r\n" % (len(record), record)


class Backend:
    """All connections, by their rate."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._waiting: dict[int, socket.socket] = {}
        self._paced: dict[int, dict[int, socket.socket]] = {}
        self._due: dict[int, float] = {}

    def run(self) -> None:
        """Send and listen, for ever."""
        while True:
            now = time.monotonic()
            for rate, due in self._due.items():
                if due <= now:
                    self._due[rate] = max(due + 1 / rate, now - 0.1)
                    self._send(self._paced[rate])
            wait = min(self._due.values(), default=now + 1) - time.monotonic()
            for fd, _ in self._poll.poll(max(0.0, wait), 64):
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._receive(fd)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(5)
        self._waiting[connection.fileno()] = connection
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def _receive(self, fd: int) -> None:
        """A request, or the end of the connection."""
        connection = self._waiting.get(fd) or next(group[fd] for group in self._paced.values() if fd in group)
        try:
            asked = connection.recv(65536)
        except OSError:
            asked = b""
        if not asked:
            self._drop(fd, connection)
            return
        found = RATE.search(asked)
        rate = int(found[1]) if found else 0
        # Who is passed through asks for an event stream and looks whether it gets one; the records are the same.
        media = STREAM if b"Accept: " + STREAM in asked else b"application/x-ndjson"
        connection.sendall(HEAD % media + chunk())
        if rate:
            del self._waiting[fd]
            self._paced.setdefault(rate, {})[fd] = connection
            self._due[rate] = time.monotonic() + GATHER

    def _send(self, group: dict[int, socket.socket]) -> None:
        for fd, connection in list(group.items()):
            try:
                connection.sendall(chunk())
            except OSError:
                self._drop(fd, connection)

    def _drop(self, fd: int, connection: socket.socket) -> None:
        self._waiting.pop(fd, None)
        for group in self._paced.values():
            group.pop(fd, None)
        self._poll.unregister(fd)
        connection.close()


if __name__ == "__main__":
    Backend(int(sys.argv[1])).run()
